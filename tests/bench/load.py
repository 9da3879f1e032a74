"""`make load`: the endpoint under load, beside its engine alone.

    python -m tests.bench.load [--seconds N]

Prints the engine's time for one image after another in one process; then, of a real `prompt-iml
serve` with one replica, latencies of one client after another, and of requests at even distances at
80 % and at 300 % of that rate: how many were answered and how many refused (503), and how soon an
idle endpoint answers afterwards. At last, what full batches of four images would save. Server and
clients share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import cycle

import aiohttp
import numpy as np
from PIL import Image as PilImage

from prompt_iml.cluster.fleet.serve import endpoint_spec
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.pipeline.scan.scanner import RowMaker
from prompt_iml.pipeline.units import Sample
from tests.bench.photographs import jpegs
from tests.helpers.endpoint import serving

BATCH = 4
PICTURES = list(jpegs(20))


@dataclass
class Answers:
    """Latencies in seconds of what was answered, and the statuses of all requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        p50, p99 = 1e3 * np.quantile(self.seconds, [0.5, 0.99])
        counts = ", ".join(f"{count} x {status}" for status, count in self.statuses.items())
        return f"p50 {p50:7.0f} ms   p99 {p99:7.0f} ms   {counts}"


def engine_alone(seconds: float) -> Answers:
    """One image after another, in this process, with one thread."""
    maker, found = RowMaker(endpoint_spec(EndpointSettings())), Answers()
    list(maker.rows([Sample("", data=PICTURES[0])]))
    end = time.perf_counter() + seconds
    for picture in cycle(PICTURES):
        started = time.perf_counter()
        (row,) = maker.rows([Sample("", data=picture)])
        found.seconds.append(time.perf_counter() - started)
        found.statuses[row["status"]] += 1
        if time.perf_counter() > end:
            return found
    raise AssertionError


async def ask(session: aiohttp.ClientSession, url: str, picture: bytes, found: Answers) -> None:
    """Send a picture, and count the answer."""
    started = time.perf_counter()
    headers = {"Content-Type": "image/jpeg"}
    async with session.post(url, data=picture, headers=headers) as response:
        await response.read()
    later = " with Retry-After" if "Retry-After" in response.headers else ""
    found.statuses[f"{response.status}{later}"] += 1
    if response.status == 200:
        found.seconds.append(time.perf_counter() - started)


async def at_rate(url: str, per_second: float, seconds: float) -> Answers:
    """Send requests at even distances, whether others are answered or not."""
    found, pictures = Answers(), cycle(PICTURES)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(max(1, round(per_second * seconds))):
            group.create_task(ask(session, url, next(pictures), found))
            await asyncio.sleep(1 / per_second)
    return found


async def one_by_one(url: str, seconds: float) -> Answers:
    """Send a request as soon as the one before is answered."""
    found, pictures = Answers(), cycle(PICTURES)
    end = time.perf_counter() + seconds
    async with aiohttp.ClientSession() as session:
        while time.perf_counter() < end:
            await ask(session, url, next(pictures), found)
    return found


async def loads(url: str, seconds: float) -> None:
    """Measure the endpoint at each load."""
    await one_by_one(url, 2)
    alone = await one_by_one(url, seconds)
    print(f"{'endpoint, one client':28} {alone}", flush=True)
    rate = len(alone.seconds) / seconds
    for share in (0.8, 3.0):
        found = await at_rate(url, share * rate, seconds)
        print(f"{f'endpoint, {share:.0%} load':28} {found}", flush=True)
    after = await one_by_one(url, seconds / 4)
    print(f"{'endpoint, one client after':28} {after}", flush=True)


def scaled(picture: bytes, side: int) -> bytes:
    """Return a picture of another size."""
    sink = io.BytesIO()
    PilImage.open(io.BytesIO(picture)).resize((side, side)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def batches(rounds: int = 5, images: int = 4 * BATCH) -> None:
    """Print the CPU time of an image in batches of one and of four, the least of some rounds."""
    maker = RowMaker(endpoint_spec(EndpointSettings()))
    for side in (256, 512):
        samples = [Sample("", data=scaled(PICTURES[0], side))] * images
        least = dict.fromkeys((1, BATCH), float("inf"))
        for size in [*least] * (rounds + 1):
            maker._detector = replace(maker._detector, batch_size=size)
            started = time.process_time()
            list(maker.rows(samples))
            least[size] = min(least[size], (time.process_time() - started) / images)
        one, four = (1e3 * each for each in least.values())
        saved = (
            f"{one:.1f} ms alone, {four:.1f} ms in batches of {BATCH}: {1 - four / one:.0%} less"
        )
        print(f"{f'CPU of a {side}x{side} image':28} {saved}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    seconds = parser.parse_args().seconds
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
          f"load {os.getloadavg()[0]:.1f}; 512x512 JPEG, {seconds:g} s each")  # fmt: skip
    print(f"{'engine alone':28} {engine_alone(seconds)}", flush=True)
    with serving() as port:
        asyncio.run(loads(f"http://127.0.0.1:{port}/v1/scan", seconds))
    batches()


if __name__ == "__main__":
    main()
