"""Folder of a run: its configuration, plan, parts and manifest.

    OUTPUT/results/part-<unit id>.parquet     one per unit; its existence is the commit
    OUTPUT/results/part-<digest of the run id>-g<generation>-<digest>.parquet    merged
    OUTPUT/_runs/<run id>/config.json         written first: all settings that shape rows
    OUTPUT/_runs/<run id>/plan/*.parquet      the units
    OUTPUT/_runs/<run id>/plan.json           names the plan's files; the plan exists with it
    OUTPUT/_runs/<run id>/manifest.json       written last: all parts and counts
    OUTPUT/_runs/<run id>/manifest-000001.json, ...   one per compaction; the newest is current
    OUTPUT/_runs/<run id>/summary.json        of the last launch: rate, notes

All files but summary.json are created once and never replaced, so that concurrent drivers and
retries converge on one table. A compaction does not replace the manifest either: it creates the
next generation, which names other parts with the same rows. `Run.manifest` returns the newest;
parts that it does not name no longer belong to the table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from prompt_iml.engine.errors import NotFound, RunMismatch
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects

Json = dict[str, Any]

REMOVED = {"decoder"}  # settings of earlier versions, which no longer bind a run
ADDED = {"graph_sha256"}  # what earlier versions did not record


@dataclass(frozen=True, slots=True)
class Run:
    """Run of a scan under an output.

    Attributes:
        output: URI of the output folder, without a trailing slash.
        run_id: unique under the output.
    """

    output: str
    run_id: str

    @property
    def folder(self) -> str:
        return f"{self.output}/_runs/{self.run_id}"

    @property
    def manifest_uri(self) -> str:
        return self.generation_uri(0)

    def generation_uri(self, generation: int) -> str:
        """Return the URI of a manifest: 0 is that of the scan, n that of the n-th compaction."""
        return f"{self.folder}/manifest{f'-{generation:06d}' if generation else ''}.json"

    @property
    def plan_uri(self) -> str:
        return f"{self.folder}/plan.json"

    def part_uri(self, unit_id: str) -> str:
        """Return the URI of a unit's part, whether it exists or not."""
        return f"{self.output}/results/part-{unit_id}.parquet"

    def unit_id(self, place: int, unit: str) -> str:
        """Return the hash of the run, the unit's place in the plan, and the unit as JSON.

        It covers the run because runs share one results folder, and the place because inputs may
        name a shard twice.
        """
        return hashlib.sha256(f"{self.run_id}\0{place}\0{unit}".encode()).hexdigest()[:32]

    def bind(self, config: Json) -> None:
        """Bind the run to its configuration; raise `RunMismatch` if it has another one."""
        uri = f"{self.folder}/config.json"
        if storage.create_once(uri, encode(config)):
            return
        bound = {key: config[key] for key in ADDED & config.keys()} | read_json(uri)
        bound = {key: value for key, value in bound.items() if key not in REMOVED}
        if bound != config:
            differing = [k for k in sorted(config | bound) if config.get(k) != bound.get(k)]
            raise RunMismatch(
                f"run {self.run_id} exists with another configuration ({', '.join(differing)}): "
                "choose another --run-id, or repeat the first command to resume it"
            )

    def config(self) -> Json | None:
        """Return the configuration that the run is bound to; None before `bind`."""
        uri = f"{self.folder}/config.json"
        return read_json(uri) if storage.exists(uri) else None

    def manifest(self) -> Json | None:
        """Return the current manifest; None while the run is not complete."""
        generations = self.generations()
        return read_json(self.generation_uri(generations[-1])) if generations else None

    def generations(self) -> list[int]:
        """Return the generations of the manifest, ascending; none is ever removed."""
        start = f"{self.folder}/manifest"
        try:
            names = [
                ref.uri.removeprefix(start) for ref in list_objects(self.folder, starts="manifest")
            ]
        except NotFound:
            return []
        numbers = (name.removesuffix(".json").removeprefix("-") or "0" for name in names)
        return sorted(int(number) for number in numbers if number.isdecimal())

    def commit(self, manifest: Json, generation: int = 0) -> Json:
        """Create a generation; return the current manifest, which may be another driver's."""
        if not storage.create_once(self.generation_uri(generation), encode(manifest)):
            log(f"note: another driver completed run {self.run_id} first; its manifest is kept")
        current = self.manifest()
        assert current is not None, "a manifest is never removed"
        return current

    def write_summary(self, summary: Json) -> None:
        """Replace the summary of the last launch."""
        storage.write(f"{self.folder}/summary.json", encode(summary))


def default_run_id(config: Json) -> str:
    """Return a run id that the same command finds again: a digest of its configuration."""
    return "scan-" + hashlib.sha256(encode(config)).hexdigest()[:12]


def encode(document: Json) -> bytes:
    """Serialize a document as the JSON of this folder."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def read_json(uri: str) -> Json:
    """Read one of the folder's documents."""
    document: Json = json.loads(storage.read_bytes(uri))
    return document
