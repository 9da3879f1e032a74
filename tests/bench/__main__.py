"""`make bench`: the ratios of docs/benchmarks.md, printed as measured.

python -m tests.bench [NAME...]      names: kernel, engines, compiled, picture, scan, null, beside
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

from tests.bench import one_picture, pipelines
from tests.bench.engines import CONTEXT, DEFAULT, engine_milliseconds
from tests.bench.kernel import engine_seconds, operator_seconds, search_seconds
from tests.bench.null_model import write_null_model
from tests.bench.photographs import write_shards
from tests.bench.rates import Rate, decode_rate, engine_rate, scan_rate

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
    searches = search_seconds()
    for longest, each in searches.items():
        what = f"search for matches, 512x512, vectors of {longest} bytes"
        print(f"{what:56} {1e3 * each:9.1f} ms {each / searches[64]:9.2f} x 64 bytes")
    print()
    seconds = engine_seconds()
    gain = seconds["without"] / seconds["with"]
    print(f"{'CPU default, 512x512, 1 thread: with our kernel':56} {1e3 * seconds['with']:9.1f} ms")
    print(f"{'without / with':56} {gain:9.2f}\n", flush=True)


def bench_engines(compiled: bool = False) -> None:
    """The CPU default beside other runtimes and an earlier graph: one image, one thread.

    CPU-milliseconds, so that others on the machine count less."""
    for side in (512, 256):
        taken = engine_milliseconds(side, compiled)
        whole = taken[DEFAULT] + taken[CONTEXT]
        for name, ms in taken.items():
            of = whole if name.startswith("graph of") else taken[DEFAULT]
            ratio = "" if name in (DEFAULT, CONTEXT) else f"{ms / of:9.2f} x the default"
            ratio += " and context" if of == whole else ""
            print(f"{f'{name}, {side}x{side}, 1 thread':48} {ms:9.1f} CPU-ms {ratio}", flush=True)
        print()


def bench_compiled() -> None:
    """The same with `torch.compile`, which takes minutes."""
    bench_engines(compiled=True)


def bench_beside(folder: Path) -> None:
    """A scan beside Daft and plain Ray Data, two processes each."""
    rates = pipelines.measure(folder)
    scan = rates.pop("scan")
    assert isinstance(scan, Rate)
    show("scan with a null network, 2 actors", scan)
    for name, rate in rates.items():
        if isinstance(rate, str):
            print(f"{name:40} {rate}\n", flush=True)
        else:
            show(f"{name} with it, 2 processes", rate)
            ratio(f"scan / {name}", scan, rate, goal=1)


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
    model = write_null_model(folder / "model", context=False)
    decode = decode_rate(shards)
    # ONNX Runtime, whose calls cost least, and no context: what is measured is the pipeline.
    scan = scan_rate(folder / "shards", folder / "out", str(model), "onnxruntime")
    show("plain decode loop, 2 processes", decode)
    show("scan with a null network, 2 actors", scan)
    ratio("scan with a null network / plain decode loop", scan, decode, goal=0.9)


def bench_picture(folder: Path) -> None:
    """One picture as a whole process, by its size."""
    for name, taken in one_picture.measure(folder).items():
        print(
            f"{name:40} {taken.seconds:9.2f} s {taken.cpu:9.2f} CPU-s {taken.mebibytes:9.0f} MiB",
            flush=True,
        )


def show(what: str, rate: Rate) -> None:
    """One measured rate."""
    start_up = f", start-up {rate.start_up:.1f} s apart" if rate.start_up else ""
    print(f"{what:40} {rate.per_second:9.1f} images/s  ({rate.images} images{start_up})")


def ratio(what: str, ours: Rate, other: Rate, goal: float) -> None:
    """The number that counts."""
    print(f"{what:40} {ours.per_second / other.per_second:9.2f}  (goal {goal})\n", flush=True)


BENCHES = {"kernel": bench_kernel, "engines": bench_engines, "compiled": bench_compiled}
SCANS = {
    "picture": bench_picture,
    "scan": bench_scan,
    "null": bench_null,
    "beside": bench_beside,
}
USUAL = [
    "kernel",
    "compiled",
    "picture",
    "scan",
    "null",
    "beside",
]  # `engines` is a part of `compiled`


def main(names: list[str]) -> None:
    """Run the named benchmarks."""
    print(f"{platform.machine()}, {_processor()}, Python {platform.python_version()}\n")
    for name in (name for name in names if name in BENCHES):
        BENCHES[name]()
    for name in (name for name in names if name in SCANS):
        with tempfile.TemporaryDirectory() as folder:
            SCANS[name](Path(folder))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


if __name__ == "__main__":
    main(sys.argv[1:] or USUAL)
