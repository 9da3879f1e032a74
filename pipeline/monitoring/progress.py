"""Progress on stderr: one line that moves on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from prompt_iml.pipeline.logs import is_json, tell

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 0.5
STALL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Done:
    """What the actors have told so far.

    Attributes:
        images: rows made by this launch.
        size_bytes: of those images, and of what lay around them in units that ended.
        resumed_bytes: of the units that an earlier launch had committed.
    """

    images: int = 0
    size_bytes: int = 0
    resumed_bytes: int = 0


class Tally:
    """What the actors tell: what is done, and who began what. It may be lost: then the progress
    starts at nothing, and so does the count of the deaths over a unit."""

    def __init__(self) -> None:
        self._done = Done()
        self._begun: Counter[str] = Counter()

    def begin(self, unit_id: str) -> int:
        """Note that an actor begins a unit; how often one began it before and did not end it."""
        self._begun[unit_id] += 1
        return self._begun[unit_id] - 1

    def end(self, unit_id: str) -> None:
        """Note that the unit is committed."""
        del self._begun[unit_id]

    def add(self, more: Done) -> None:
        """Count what an actor did since it last told."""
        self._done = Done(
            self._done.images + more.images,
            self._done.size_bytes + more.size_bytes,
            self._done.resumed_bytes + more.resumed_bytes,
        )

    def read(self) -> Done:
        """The sum."""
        return self._done


class Progress:
    """Shows images, rate and time to go while the `with` block runs.

    Args:
        read: what is done so far; called from a thread; None when that cannot be told now.
        total_bytes: what there is to do; known before the number of images is; 0 if unknown.
        stream: where to write.
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
            tell(text.rstrip())
        else:
            self._stream.write(text)
            self._stream.flush()


class Stall:
    """Tells when nothing was done for long: once a stall."""

    def __init__(self) -> None:
        self._last: Done | None = None
        self._since = -1.0

    def warning(self, done: Done | None, now: float) -> str | None:
        """A line, when `done` has not changed for `STALL_SECONDS` before `now`."""
        if done != self._last or self._since < 0:
            self._last, self._since = done, now
        if now - self._since < STALL_SECONDS:
            return None
        self._since = now + 10 * STALL_SECONDS  # say it again, but not soon
        return (
            f"nothing was done for {STALL_SECONDS:.0f} s: is the cluster short of CPUs, or the "
            "store down? `ray status` tells what is waited for"
        )


def progress_line(done: Done, total_bytes: int, seconds: float) -> str:
    """`1,234 images  56.7/s  42%  ETA 0:01:23`."""
    line = f"{done.images:,} images  {done.images / max(seconds, 1e-9):,.1f}/s"
    left = total_bytes - done.resumed_bytes - done.size_bytes
    if total_bytes <= 0 or done.size_bytes <= 0:
        return line
    share = min(1 - left / total_bytes, 1.0)
    return f"{line}  {share:.0%}  ETA {clock(max(left, 0) / done.size_bytes * seconds)}"


def clock(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def say(line: str) -> None:
    """A line for the person at the terminal; stdout is for the summary alone."""
    tell(line)
