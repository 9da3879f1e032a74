"""Rates in steady state, start-up told apart."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.runtimes.protocol import Batch
from tests.bench.loops import decode_shards, run_engine
from tests.bench.photographs import SIDE
from tests.helpers.processes import scan_command

PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second over `images`; `start_up` seconds are not in it."""

    images: int
    per_second: float
    start_up: float = 0.0


def one_image() -> Batch:
    """512x512 pixels of noise, and no table."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    return whole_pictures(pixels, np.ones((1, 64), np.float32))


def median_seconds(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of a call, median over rounds in which the ways take turns, so that noise hits all
    alike; each is called once before. `time.process_time` as clock counts what a thread computes,
    on a machine that others use too."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            for _ in range(calls):
                way()
            seconds[name].append((clock() - started) / calls)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def engine_rate(shards: list[Path]) -> Rate:
    """The engine in two processes at once, one thread each; only its own time counts."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        halves = [shards[i::PROCESSES] for i in range(PROCESSES)]
        done = list(pool.map(run_engine, halves))
    return Rate(sum(n for n, _ in done), sum(n / seconds for n, seconds in done))


def decode_rate(shards: list[Path]) -> Rate:
    """The plain loop in two processes, a shard at a time, from the first to the last image."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        list(pool.map(decode_shards, [[]] * PROCESSES))  # processes and imports
        started = time.perf_counter()
        images = sum(pool.map(decode_shards, [[shard] for shard in shards]))
        return Rate(images, images / (time.perf_counter() - started))


def scan_rate(source: Path, output: Path, model: str, engine: str = "auto") -> Rate:
    """`prompt-iml scan` as a user starts it; the rate is that between its first and last row."""
    command = scan_command(source, output)
    pool = ["--address", "local", "--max-actors", str(PROCESSES)]
    started = time.perf_counter()
    chosen = ["--model", model, "--engine", engine]
    subprocess.run([*command, *pool, *chosen], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    table = ds.dataset(output / "results").to_table(["scanned_at", "status"])
    assert set(table["status"].to_pylist()) == {"ok"}
    span = pc.min_max(table["scanned_at"]).as_py()
    seconds = (span["max"] - span["min"]).total_seconds()
    return Rate(table.num_rows, table.num_rows / seconds, wall - seconds)
