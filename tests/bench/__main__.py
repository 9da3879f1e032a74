"""`make bench`: every ratio of the README, printed as measured.

python -m tests.bench [NAME...]      names: kernel, default, scan, null
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

from tests.bench.kernel import engine_seconds, operator_seconds
from tests.bench.null_model import write_null_model
from tests.bench.photographs import write_shards
from tests.bench.rates import Rate, decode_rate, engine_rate, runtime_rates, scan_rate

IMAGES = 240
NULL_IMAGES = 20_000


def bench_kernel() -> None:
    """Our kernel of the deformable attention, alone and in the default engine."""
    for threads in (1, 2):
        seconds = operator_seconds(threads)
        for name, each in seconds.items():
            what = f"{name}, 21,760 queries, {threads} threads"
            print(f"{what:56} {1e3 * each:9.1f} ms")
        gain = seconds["ONNX Runtime, decomposed"] / seconds["our kernel"]
        print(f"{'ONNX Runtime / our kernel':56} {gain:9.2f}  (goal 5)\n", flush=True)
    seconds = engine_seconds()
    gain = seconds["without"] / seconds["with"]
    print(f"{'CPU default, 512x512, 1 thread: with our kernel':56} {1e3 * seconds['with']:9.1f} ms")
    print(f"{'without / with':56} {gain:9.2f}\n", flush=True)


def bench_default() -> None:
    """The CPU default against PyTorch eager: the packaged model, 512x512, batch 1, 2 threads."""
    rates = runtime_rates(("openvino", "onnxruntime", "torch"), threads=2)
    for name, rate in rates.items():
        show(f"{name}, 512x512, 2 threads", rate)
    ratio("CPU default / torch eager", rates["openvino"], rates["torch"], goal=3)


def bench_scan(folder: Path) -> None:
    """A scan against its own engine, two actors and two processes, one thread each."""
    shards = write_shards(folder / "shards", IMAGES, shards=20)
    engine = engine_rate(shards)
    scan = scan_rate(folder / "shards", folder / "out", "prompt-iml-micro")
    show("engine alone, 2 processes", engine)
    show("scan, 2 actors", scan)
    ratio("scan / engine alone", scan, engine, goal=0.97)


def bench_null(folder: Path) -> None:
    """A scan whose network does nothing against a plain loop that decodes, two processes each."""
    shards = write_shards(folder / "shards", NULL_IMAGES, shards=40)
    model = write_null_model(folder / "model")
    decode = decode_rate(shards)
    # ONNX Runtime, whose calls cost least: what is measured is the pipeline.
    scan = scan_rate(folder / "shards", folder / "out", str(model), "onnxruntime")
    show("plain decode loop, 2 processes", decode)
    show("scan with a null network, 2 actors", scan)
    ratio("scan with a null network / plain decode loop", scan, decode, goal=0.9)


def show(what: str, rate: Rate) -> None:
    """One measured rate."""
    start_up = f", start-up {rate.start_up:.1f} s apart" if rate.start_up else ""
    print(f"{what:40} {rate.per_second:9.1f} images/s  ({rate.images} images{start_up})")


def ratio(what: str, ours: Rate, other: Rate, goal: float) -> None:
    """The number that counts."""
    print(f"{what:40} {ours.per_second / other.per_second:9.2f}  (goal {goal})\n", flush=True)


def main(names: list[str]) -> None:
    """Run the named benchmarks."""
    print(f"{platform.machine()}, {_processor()}, Python {platform.python_version()}\n")
    if "kernel" in names:
        bench_kernel()
    if "default" in names:
        bench_default()
    for name, bench in (("scan", bench_scan), ("null", bench_null)):
        if name in names:
            with tempfile.TemporaryDirectory() as folder:
                bench(Path(folder))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


if __name__ == "__main__":
    main(sys.argv[1:] or ["kernel", "default", "scan", "null"])
