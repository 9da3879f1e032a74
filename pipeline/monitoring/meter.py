"""What one scan actor counts: plain sums, so that an image costs next to nothing."""

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
    """Sums of one scan actor since they were last passed on.

    Attributes:
        images: rows, by status and code.
        size_bytes: of the images.
        seconds: by stage. `fetch`, `decode`: in their threads; `wait`: the engine's for the next
            decoded image; `infer`: the engine; `commit`: writing a unit's file.
        tiles, slots: tiles that the engine ran, and places in the batches they filled.
        queue: decoded images that wait for the engine, at the last look.
        begun: when the unit at hand was begun, Unix time; 0: none is.
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
        """The same, with the time that each takes to come added to a stage."""
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
        """Count a batch."""
        self.tiles += tiles
        self.slots += slots
