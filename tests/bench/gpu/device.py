"""The device that is measured, and its clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

REHEARSED = os.environ.get("PROMPT_IML_REHEARSE") == "1"
DEVICE = torch.device("cpu" if REHEARSED else "cuda")
ROUNDS, CALLS = (1, 1) if REHEARSED else (7, 10)
WARM_UP = 1 if REHEARSED else 2  # compiles, allocates


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a part; None where it could not be measured, and `note` says why."""

    name: str
    value: float | None
    unit: str
    note: str = ""


def missing() -> str | None:
    """Return why nothing can be measured here."""
    return None if REHEARSED or torch.cuda.is_available() else "PyTorch finds no GPU"


def facts() -> dict[str, str]:
    """Return what identifies this machine. Raises RuntimeError without a GPU."""
    if reason := missing():
        raise RuntimeError(reason)
    found = {"gpu": "rehearsal on a CPU", "torch": torch.__version__}
    if REHEARSED:
        return found
    major, minor = torch.cuda.get_device_capability()
    return found | {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
    }


def synchronize() -> None:
    """Wait for the device."""
    if not REHEARSED:
        torch.cuda.synchronize()


def milliseconds(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return milliseconds of a call, the median over rounds in which the ways take turns."""
    for way in ways.values():
        for _ in range(WARM_UP):
            way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(_round(way))
    return {name: sorted(each)[ROUNDS // 2] for name, each in taken.items()}


def _round(way: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    if REHEARSED:
        way()
        return 1e3 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS
