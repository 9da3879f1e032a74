"""A run's folder: what it is bound to, its plan, its parts, its manifest.

    OUTPUT/results/part-<unit id>.parquet     one a unit; its existence is the commit
    OUTPUT/results/part-<digest of the run id>-g<generation>-<digest>.parquet    many, merged
    OUTPUT/_runs/<run id>/config.json         written first: what the run is bound to
    OUTPUT/_runs/<run id>/plan/*.parquet      the units
    OUTPUT/_runs/<run id>/plan.json           names the plan's files; the plan exists with it
    OUTPUT/_runs/<run id>/manifest.json       written last: every part, every count
    OUTPUT/_runs/<run id>/manifest-000001.json, ...   of each compaction; the newest stands
    OUTPUT/_runs/<run id>/summary.json        of the last launch: rate, notes

All but summary.json are created once and never replaced, so that any number of drivers and
retries converge on one table. A compaction does not replace the manifest either: it creates the
next generation, which names other parts with the same rows. Every reader asks `Run.manifest`,
which finds the newest; parts that it does not name are no part of the table any more.
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

GONE = {"decoder"}  # settings of earlier versions, which bind a run no more


@dataclass(frozen=True, slots=True)
class Run:
    """One run under one output.

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
        """Where a generation of the manifest is: 0 the scan's, n that of the n-th compaction."""
        return f"{self.folder}/manifest{f'-{generation:06d}' if generation else ''}.json"

    @property
    def plan_uri(self) -> str:
        return f"{self.folder}/plan.json"

    def part_uri(self, unit_id: str) -> str:
        """Where a unit's rows are, or will be."""
        return f"{self.output}/results/part-{unit_id}.parquet"

    def unit_id(self, place: int, unit: str) -> str:
        """Hash of the run, the unit's place in its plan and what the unit, as JSON, names: URIs,
        range, sizes, etags.

        The run is part of it because runs share one results folder: the same images scanned by
        another model are other rows. The place is, because inputs may name a shard twice.
        """
        return hashlib.sha256(f"{self.run_id}\0{place}\0{unit}".encode()).hexdigest()[:32]

    def bind(self, config: Json) -> None:
        """Bind the run to its configuration; raise `RunMismatch` when it has another one."""
        uri = f"{self.folder}/config.json"
        if storage.create_once(uri, encode(config)):
            return
        bound = {key: value for key, value in read_json(uri).items() if key not in GONE}
        if bound != config:
            differing = [k for k in sorted(config | bound) if config.get(k) != bound.get(k)]
            raise RunMismatch(
                f"run {self.run_id} exists with another configuration ({', '.join(differing)}): "
                "choose another --run-id, or repeat the first command to resume it"
            )

    def config(self) -> Json | None:
        """What the run is bound to, or None when it is not yet."""
        uri = f"{self.folder}/config.json"
        return read_json(uri) if storage.exists(uri) else None

    def manifest(self) -> Json | None:
        """The manifest that stands, or None while the run is not complete."""
        generations = self.generations()
        return read_json(self.generation_uri(generations[-1])) if generations else None

    def generations(self) -> list[int]:
        """The generations of the manifest that there are, ascending; none are ever removed."""
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
        """Create a generation; returns the manifest that stands, which may be another driver's."""
        if not storage.create_once(self.generation_uri(generation), encode(manifest)):
            log(f"note: another driver completed run {self.run_id} first; what it wrote stands")
        standing = self.manifest()
        assert standing is not None, "a manifest is never removed"
        return standing

    def write_summary(self, summary: Json) -> None:
        """Replace the summary of the last launch."""
        storage.write(f"{self.folder}/summary.json", encode(summary))


def default_run_id(config: Json) -> str:
    """A run id that the same command finds again: the digest of its configuration."""
    return "scan-" + hashlib.sha256(encode(config)).hexdigest()[:12]


def encode(document: Json) -> bytes:
    """JSON as this folder holds it."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def read_json(uri: str) -> Json:
    """Read one of the folder's documents."""
    document: Json = json.loads(storage.read_bytes(uri))
    return document
