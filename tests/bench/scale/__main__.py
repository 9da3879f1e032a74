"""Measure rates and memory of planning, many images, many units and a soak: `make scale`.

    python -m tests.bench.scale [NAME...]     names: plan, images, units, soak, fuzzed

Prints one line for each, and writes the curves to --output as CSV and as one picture.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path

from PIL import Image
from skimage import data as photographs

from prompt_iml.pipeline.cli import FAILURES
from tests.bench.null_model import write_null_model
from tests.bench.photographs import write_shards
from tests.bench.scale.picture import draw
from tests.bench.scale.recorder import Recorder, Sample, growth, rate
from tests.fuzz.shards import shard
from tests.helpers.archives import pack_tar
from tests.helpers.ports import free_port, wait_for
from tests.helpers.processes import scan_command

FILES = 1_000_000  # real, in folders of a thousand
KEYS = 1_000_000  # listed over HTTP
SIMULATED = 10_000_000
IMAGES = 100_000
UNITS = 10_000
SOAK_SECONDS = 1800
FUZZED = 300  # hostile shards, and as many of photographs
TINY = 64  # pixels a side

Curves = dict[str, list[Sample]]


def plan(folder: Path) -> Curves:
    """Plan real files, a listing over S3, and references that are only generated."""
    source = write_files(folder / "files", FILES)
    curves = {"plan files": planned(str(source), folder / "of-files")}
    with bucket_of(KEYS) as environment:
        curves["plan s3 keys"] = planned("s3://bucket/photos", folder / "of-keys", environment)
    curves["plan simulated"] = planned(f"simulated:{SIMULATED}", folder / "of-simulated")
    return curves


def images(folder: Path) -> Curves:
    """Scan 10^5 tiny images in tar shards of a thousand with a network that does nothing."""
    write_tiny_shards(folder / "tiny", IMAGES // 1000, 1000)
    model = str(write_null_model(folder / "null"))
    return {"images": scanned(folder / "tiny", folder / "out", 1000, model)}


def units(folder: Path) -> Curves:
    """Scan 10^4 tar shards of three tiny images each."""
    write_tiny_shards(folder / "tiny", UNITS, 3)
    model = str(write_null_model(folder / "null"))
    return {"units": scanned(folder / "tiny", folder / "out", 1, model)}


def soak(folder: Path) -> Curves:
    """Scan photographs with the packaged model for half an hour."""
    write_shards(folder / "shards", 60_000, 1_000)
    out = folder / "out"
    return {"soak": scanned(folder / "shards", out, 60, "prompt-iml-micro", SOAK_SECONDS)}


def fuzzed(folder: Path) -> Curves:
    """Scan random hostile shards among good ones: all of it must end, with what was lost named."""
    source = folder / "fuzzed"
    write_tiny_shards(source, FUZZED, 8)
    for number in range(FUZZED):
        name, data = shard(number)
        (source / f"{number:06d}-{name}").write_bytes(data)
    out, model = folder / "out", str(write_null_model(folder / "null"))
    return {"fuzzed": scanned(source, out, 1, model, ends=FAILURES)}


def planned(source: str, output: Path, environment: dict[str, str] | None = None) -> list[Sample]:
    """Plan in another process and return the samples that it prints."""
    command = [sys.executable, "-m", "tests.bench.scale.planner", source, str(output)]
    done = subprocess.run(
        command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, check=True
    )
    return [Sample(**json.loads(line)) for line in done.stdout.splitlines()]


def scanned(
    source: Path,
    output: Path,
    per_part: int,
    model: str,
    seconds: float | None = None,
    ends: int = 0,
) -> list[Sample]:
    """Scan by the command line, until it `ends` with this exit code or `seconds` are over."""
    command = scan_command(source, output)
    chosen = ["--model", model, "--address", "local", "--max-actors", "2"]
    if model != "prompt-iml-micro":
        chosen += ["--engine", "onnxruntime"]  # its calls cost least: the pipeline is measured
    results = output / "results"

    def done() -> int:
        return per_part * sum(1 for _ in results.glob("*.parquet")) if results.exists() else 0

    with (
        subprocess.Popen([*command, *chosen], stdout=subprocess.DEVNULL) as scan,
        Recorder(scan.pid, done) as recorder,
    ):
        try:
            assert (code := scan.wait(seconds)) == ends, f"the scan ended with exit code {code}"
        except subprocess.TimeoutExpired:
            scan.terminate()
    return recorder.samples


def write_files(folder: Path, count: int) -> Path:
    """Write empty files, a thousand in each folder."""
    for place in range(count // 1000):
        (folder / f"{place:04d}").mkdir(parents=True)
        for number in range(1000):
            (folder / f"{place:04d}" / f"{number:03d}.jpg").touch()
    return folder


def write_tiny_shards(folder: Path, shards: int, members: int) -> None:
    """Write tar shards of crops of a photograph, as JPEG."""
    folder.mkdir()
    photograph = Image.fromarray(photographs.astronaut())
    for place in range(shards):
        sink = io.BytesIO()
        x = place % (photograph.width - TINY)
        photograph.crop((x, x, x + TINY, x + TINY)).save(sink, "JPEG", quality=80)
        tiny = {f"{number:06d}.jpg": sink.getvalue() for number in range(members)}
        (folder / f"{place:06d}.tar").write_bytes(pack_tar(tiny))


@contextmanager
def bucket_of(keys: int) -> Iterator[dict[str, str]]:
    """Yield the environment in which `s3://bucket` has so many keys (`tests.bench.scale.keys`)."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.scale.keys", str(port), str(keys)]
    with subprocess.Popen(command) as server:
        wait_for(port)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        server.terminate()


def report(name: str, samples: Sequence[Sample]) -> None:
    """Print one line of rates and memory."""
    last = samples[-1]
    early, late = rate(samples)
    per = 10 ** (len(str(last.done)) - 1)
    grown = [f"driver {max(s.driver for s in samples):.0f} MiB"]
    grown.append(f"{growth(samples, 'driver', per):+.1f} MiB per {per:,} more")
    if any(s.actor for s in samples):
        grown.append(f"largest actor {max(s.actor for s in samples):.0f} MiB")
        grown.append(f"{growth(samples, 'actor', per):+.1f} MiB per {per:,} more")
    rates = f"{early:9.0f}/s, then {late:9.0f}/s"
    took = f"{last.done:>12,} in {last.seconds:7.0f} s"
    print(f"{name:16} {took}   {rates}   {', '.join(grown)}", flush=True)


def keep(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Sample)])
        writer.writerows([f"{value:.6g}" for value in astuple(sample)] for sample in samples)


def main() -> None:
    """Run the named experiments."""
    each = plan, images, units, soak, fuzzed
    experiments = {experiment.__name__: experiment for experiment in each}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(experiments))
    parser.add_argument("--output", type=Path, default=Path("scale"))
    args = parser.parse_args()
    args.output.mkdir(exist_ok=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        flush=True,
    )
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            for curve, samples in experiments[name](Path(folder)).items():
                report(curve, samples)
                keep(args.output / f"{curve.replace(' ', '-')}.csv", samples)
            print(f"({name}: {time.monotonic() - started:.0f} s with its set-up)", flush=True)
    draw(args.output)


if __name__ == "__main__":
    main()
