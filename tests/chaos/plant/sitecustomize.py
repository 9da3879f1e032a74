"""Read by every Python process that has this folder in PYTHONPATH: faults planted in the product.

Images whose last bytes name a poison do to the process what such images do to native decoders; or
reading them never ends.
A process that comes to a point for which a token lies in the folder CHAOS_TOKENS takes the token
and is killed there.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import prompt_iml.pipeline.scan.scanner
import prompt_iml.pipeline.scan.watchdog
from prompt_iml.pipeline.storage import storage

MARK = b"POISON:"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def allocate() -> None:
    """Ask for memory until it is refused; without a limit, die as by the kernel's killer.

    The memory stays untouched: filling gigabytes on a busy machine may take until the time-out.
    """
    limited = resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    held = []
    while limited or len(held) < 20:
        held.append(np.empty(16 << 20, np.uint8))
    die()


def spin() -> None:
    while True:
        pass


POISONS: dict[bytes, Callable[[], object]] = {
    b"segfault": lambda: ctypes.string_at(0),
    b"loop": spin,
    b"allocate": allocate,
}


def poisoned(decode: Callable[..., Any]) -> Callable[..., Any]:
    def decode_or_die(data: bytes, *args: Any, **options: Any) -> Any:
        _, mark, poison = data[-20:].partition(MARK)
        if mark:
            POISONS[poison]()
        return decode(data, *args, **options)

    return decode_or_die


def stuck(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_or_hang(*args: Any, **options: Any) -> Any:
        for sample in read(*args, **options):
            if (sample.data or b"").endswith(MARK + b"hang"):
                threading.Event().wait()
            yield sample

    return read_or_hang


def deadly(point: str) -> None:
    """Die here, if a token says so and the dice agree."""
    tokens = os.environ.get("CHAOS_TOKENS")
    if not tokens or random.random() < 0.5:
        return
    for token in Path(tokens).glob(f"{point}-*"):
        try:
            token.rename(token.with_name(f"used-{token.name}"))
        except FileNotFoundError:
            continue
        die()


def points(call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    """A deadly point before and one after a call."""

    def deadly_call(*args: Any, **options: Any) -> Any:
        deadly(f"before_{name(*args)}")
        result = call(*args, **options)
        deadly(f"after_{name(*args)}")
        return result

    return deadly_call


def written(uri: str, *_: Any) -> str:
    return "part" if "/results/part-" in uri else uri.rpartition("/")[2].partition(".")[0]


prompt_iml.pipeline.scan.scanner.decode = poisoned(prompt_iml.pipeline.scan.scanner.decode)  # type: ignore[attr-defined]
prompt_iml.pipeline.scan.scanner.read_unit = stuck(
    points(prompt_iml.pipeline.scan.scanner.read_unit, lambda *_: "fetch")
)  # type: ignore
engine_run = prompt_iml.pipeline.scan.watchdog.WatchedEngine.run
prompt_iml.pipeline.scan.watchdog.WatchedEngine.run = points(engine_run, lambda *_: "infer")  # type: ignore
storage.create_once = points(storage.create_once, written)
