"""Counts of one scan actor: plain sums, which cost little time per image."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Stage = Literal["fetch", "decode", "wait", "infer", "commit"]


@dataclass(slots=True)
class Meter:
    """Sums of one scan actor since they were last exported.

    Attributes:
        images: rows, by status and code.
        size_bytes: bytes of the images.
        seconds: seconds by stage. `fetch`, `decode`: in their threads; `wait`: of the engine for
            the next decoded image; `infer`: in the engine; `commit`: writing a unit's file.
        tiles, slots: tiles that the engine ran, and the capacity of the batches that held them.
        queue: decoded images that waited for the engine when last counted.
        begun: Unix time at which the current unit was begun; 0 without one.
        model: (model, prompt set, engine) of the rows.
    """

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    size_bytes: int = 0
    seconds: defaultdict[Stage, float] = field(default_factory=lambda: defaultdict(float))
    tiles: int = 0
    slots: int = 0
    queue: int = 0
    begun: float = 0.0
    model: tuple[str, str, str] = ("", "", "")

    def timed(self, stage: Stage, source: Iterable[T]) -> Iterator[T]:
        """Yield the items of `source`; add the seconds that each takes to arrive to a stage."""
        iterator = iter(source)
        while True:
            started = time.perf_counter()
            try:
                each = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds[stage] += time.perf_counter() - started
            yield each

    def count(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        self.images[row["status"], row.get("error_code") or ""] += 1
        self.size_bytes += row.get("size_bytes") or 0
        self.seconds["decode"] += (row.get("decode_ms") or 0) / 1e3
        self.seconds["infer"] += (row.get("infer_ms") or 0) / 1e3

    def batch(self, tiles: int, slots: int) -> None:
        """Count a batch of `tiles` tiles with room for `slots`."""
        self.tiles += tiles
        self.slots += slots
