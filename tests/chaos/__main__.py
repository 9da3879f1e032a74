"""Scan under a killer, and compare with a scan that nobody disturbed.

    python -m tests.chaos --kills 100

A Ray cluster of three nodes scans the same shards again and again, while at random times
something is killed (SIGKILL): a scan actor, any worker, a whole node, the driver (which is run
again, by the same command), or whoever comes next to a named point between fetching and the
manifest. Ends with one line of JSON: kills by kind, and images lost, doubled and changed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import skimage.data
from PIL import Image
from ray.cluster_utils import Cluster

from prompt_iml.pipeline.cli import CRASHED
from tests.helpers.archives import pack_tar

ROOT = Path(__file__).parent.parent.parent
PLANT = ROOT / "tests" / "chaos" / "plant"
POINTS = [
    f"{when}_{what}"
    for what in ("fetch", "infer", "part", "plan", "manifest")
    for when in ("before", "after")
]
KINDS = ("actor", "worker", "node", "driver", "point", "point")
NODES = 3
SECONDS = 1.0, 9.0  # between two kills: a driver takes ten to begin
KILLS_PER_RUN = 15  # then it may end
WAITING = 2  # tokens at most, so that nobody is killed at one point again and again
MEMBERS = 8  # of a shard
FINDING = ["image_id", "sha256", "status", "error_code", "score_raw", "mask_rle"]
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")

Table = dict[str, list[tuple[Any, ...]]]


def write_shards(folder: Path, shards: int) -> None:
    """Crops of real photographs, each another, in tar shards; one of each shard is damaged."""
    rng = random.Random(0)
    photographs = [
        Image.open(Path(skimage.data.__file__).parent / name).convert("RGB") for name in PHOTOGRAPHS
    ]
    for shard in range(shards):
        members = {}
        for member in range(MEMBERS):
            x, y = rng.randrange(100), rng.randrange(60)
            sink = io.BytesIO()
            rng.choice(photographs).crop((x, y, x + 240, y + 200)).save(sink, "JPEG")
            members[f"{member}.jpg"] = sink.getvalue()[: 900 if member == 5 else None]
        (folder / f"{shard:02}.tar").write_bytes(pack_tar(members))


def read_table(output: Path) -> Table:
    """What was found, by image; more than one finding where a row is doubled."""
    found: Table = {}
    for part in sorted((output / "results").glob("*.parquet")):
        for row in pq.ParquetFile(part).read(FINDING).to_pylist():
            found.setdefault(row["image_id"], []).append(tuple(row.values()))
    return found


class Chaos:
    """A cluster, the scan on it, and the killer.

    Attributes:
        kills: by kind; what came to a named point is counted under the point.
        crashes: drivers that Ray took along, and that were run again as if they had been killed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.crashes = 0
        self._folder, self._random = folder, random.Random(seed)
        self._tokens = folder / "tokens"
        self._tokens.mkdir()
        os.environ |= {
            "PYTHONPATH": f"{PLANT}:{ROOT}",
            "CHAOS_TOKENS": str(self._tokens),
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "8",  # fewer call a busy head dead
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._cluster = Cluster()
        self._cluster.add_node(num_cpus=0)
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(NODES)]

    def scan(self, source: Path, output: Path, most: int) -> None:
        """Until it is done, with at most so many kills in all."""
        driver = self._drive(source, output)
        while True:
            try:
                code = driver.wait(self._random.uniform(*SECONDS))
            except subprocess.TimeoutExpired:
                self._count_tokens()
                if self.kills.total() < most:
                    self._kill(self._random.choice(KINDS), driver)
                continue
            if code == 0:
                self._count_tokens()
                return
            if code == CRASHED and self.crashes < self.kills.total():
                self.crashes += 1
            elif code != -signal.SIGKILL:
                told = (self._folder / "driver.log").read_text(errors="replace")[-5000:]
                raise RuntimeError(f"{told}\nthe scan ended with {code}")
            driver = self._drive(source, output)

    def end(self) -> None:
        """Everything."""
        self._cluster.shutdown()

    def _drive(self, source: Path, output: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prompt_iml.pipeline.cli", "scan", str(source / "*.tar")]
        where = ["--output", str(output), "--address", self._cluster.address]
        pool = ["--min-actors", "1", "--max-actors", str(NODES), "--max-failure-rate", "1"]
        with (self._folder / "driver.log").open("ab") as log:
            return subprocess.Popen([*command, *where, *pool], stdout=log, stderr=log)

    def _new_node(self) -> Any:
        try:
            return self._cluster.add_node(num_cpus=1)
        except Exception:  # Ray's only one, of a machine too busy to start it in time
            return self._cluster.add_node(num_cpus=1)

    def _kill(self, kind: str, driver: subprocess.Popen[bytes]) -> None:
        if kind == "point":
            if sum(1 for _ in self._tokens.iterdir()) < WAITING:
                point = self._random.choice(POINTS)
                (self._tokens / f"{point}-{time.monotonic_ns()}").touch()
            return
        if kind == "driver":
            driver.kill()
        elif kind == "node":
            place = self._random.randrange(NODES)
            self._cluster.remove_node(self._nodes[place], allow_graceful=False)
            self._nodes[place] = self._new_node()
        else:
            victims = self._workers("ScanActor" if kind == "actor" else "")
            if not victims:
                return
            os.kill(self._random.choice(victims), signal.SIGKILL)
        self.kills[kind] += 1

    def _workers(self, name: str) -> list[int]:
        """Worker processes of this cluster whose title has `name`."""
        ours, found = f"CHAOS_TOKENS={self._tokens}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
                is_ours = ours in (process / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if is_ours and title.startswith(b"ray::") and name.encode() in title:
                found.append(int(process.name))
        return found

    def _count_tokens(self) -> None:
        for token in self._tokens.glob("used-*"):
            self.kills[token.name.split("-")[1]] += 1
            token.unlink()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "shards"
        source.mkdir()
        write_shards(source, args.shards)
        chaos = Chaos(folder, args.seed)
        chaos.scan(source, folder / "clean", most=0)
        clean = read_table(folder / "clean")
        wrong: Counter[str] = Counter(lost=0, doubled=0, changed=0)
        runs = 0
        while chaos.kills.total() < args.kills:
            runs += 1
            most = min(args.kills, chaos.kills.total() + KILLS_PER_RUN)
            chaos.scan(source, folder / f"run-{runs}", most)
            found = read_table(folder / f"run-{runs}")
            wrong["lost"] += len(clean.keys() - found.keys())
            wrong["doubled"] += sum(len(rows) > 1 for rows in found.values())
            wrong["changed"] += sum(found.get(i, rows)[:1] != rows for i, rows in clean.items())
            print(f"{chaos.kills.total()} kills, {runs} runs, {dict(wrong)}", file=sys.stderr)
        chaos.end()
    images = sum(map(len, clean.values()))
    told = {"kills": chaos.kills, "crashes": chaos.crashes, "runs": runs, "images": images}
    print(json.dumps(told | wrong))
    sys.exit(any(wrong.values()))


if __name__ == "__main__":
    main()
