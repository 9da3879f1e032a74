"""Progress on stderr: a line redrawn in place on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from prompt_iml.pipeline.logs import is_json, log

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 0.5
STALL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Done:
    """Work that the actors have reported.

    Attributes:
        images: rows made by this launch.
        size_bytes: size of these images, with the shard overhead of units that ended.
        resumed_bytes: size of the units that an earlier launch committed.
        labels: rows by label.
    """

    images: int = 0
    size_bytes: int = 0
    resumed_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)


class Tally:
    """Work done and units begun, as the actors report them.

    It is kept in memory only: where its process is restarted, the progress and the count of
    crashes over each unit start at zero.
    """

    def __init__(self) -> None:
        self._done = Done()
        self._begun: Counter[str] = Counter()
        self._at: dict[str, Counter[tuple[int, bool]]] = {}

    def begin(self, unit_id: str) -> int:
        """Record that an actor begins a unit; return the number that began and did not end it."""
        self._begun[unit_id] += 1
        return self._begun[unit_id] - 1

    def end(self, unit_id: str) -> None:
        """Record that the unit is committed."""
        del self._begun[unit_id]
        self._at.pop(unit_id, None)

    def begin_image(self, unit_id: str, done: int, is_image: bool) -> int:
        """Record that a process begins an image of a unit (True), or reads the next one (False).

        Args:
            done: images of the unit that are done.

        Returns:
            How many processes ended there before, and none behind it.
        """
        known = self._at.get(unit_id, Counter())
        # What a process got past was no cause of the deaths there.
        counts = Counter({place: count for place, count in known.items() if place[0] >= done})
        counts[done, is_image] += 1
        self._at[unit_id] = counts
        return counts[done, is_image] - 1 - (0 if is_image else counts[done, True])

    def add(self, more: Done) -> None:
        """Add the work of an actor since its last report."""
        self._done = Done(
            self._done.images + more.images,
            self._done.size_bytes + more.size_bytes,
            self._done.resumed_bytes + more.resumed_bytes,
            self._done.labels + more.labels,
        )

    def read(self) -> Done:
        """Return the sum."""
        return self._done


class Progress:
    """Display of images, rate and time left while the `with` block runs.

    Args:
        read: function that returns the work done so far, None if unknown; called in a thread.
        total_bytes: size of all inputs, which is known before the number of images; 0 if unknown.
        stream: stream to write to.
    """

    def __init__(
        self, read: Callable[[], Done | None], total_bytes: int, stream: TextIO = sys.stderr
    ) -> None:
        self._read = read
        self._total_bytes = total_bytes
        self._stream = stream
        self._terminal = stream.isatty() and not is_json()
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._terminal:
            self._show("\r\x1b[K")

    def _run(self) -> None:
        stall = Stall()
        while not self._over.wait(TERMINAL_SECONDS if self._terminal else LINE_SECONDS):
            done = self._read()
            if warning := stall.warning(done, time.monotonic()):
                self._show(f"\r\x1b[K{warning}\n" if self._terminal else f"{warning}\n")
            if done:
                line = progress_line(done, self._total_bytes, time.monotonic() - self._started)
                self._show(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")

    def _show(self, text: str) -> None:
        if is_json():
            log(text.rstrip())
        else:
            self._stream.write(text)
            self._stream.flush()


class Stall:
    """Detector of stalls, which warns once for each."""

    def __init__(self) -> None:
        self._last: Done | None = None
        self._since = -1.0

    def warning(self, done: Done | None, now: float) -> str | None:
        """Return a warning when `done` has not changed for `STALL_SECONDS` before `now`."""
        if done != self._last or self._since < 0:
            self._last, self._since = done, now
        if now - self._since < STALL_SECONDS:
            return None
        self._since = now + 10 * STALL_SECONDS  # warn again, but not soon
        return (
            f"No image was scanned for {STALL_SECONDS:.0f} s. The cluster may be short of CPUs, or "
            "the object store down: `ray status` shows the pending work."
        )


def progress_line(done: Done, total_bytes: int, seconds: float) -> str:
    """Return a line such as `1,234 images  56.7/s  2 manipulated  42%  ETA 0:01:23`."""
    line = f"{done.images:,} images  {done.images / max(seconds, 1e-9):,.1f}/s"
    shown = ("manipulated", "uncertain")
    line += "".join(f"  {done.labels[label]:,} {label}" for label in shown if done.labels[label])
    left = total_bytes - done.resumed_bytes - done.size_bytes
    if total_bytes <= 0 or done.size_bytes <= 0:
        return line
    share = min(1 - left / total_bytes, 1.0)
    return f"{line}  {share:.0%}  ETA {clock(max(left, 0) / done.size_bytes * seconds)}"


def clock(seconds: float) -> str:
    """Return a duration as `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
