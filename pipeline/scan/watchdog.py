"""End a process that is stuck in an image or a shard, so that the scan can find and name it."""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Engine, Pending

Stage = Literal["fetch", "decode", "infer"]

EXIT_STUCK = 86
TICK_SECONDS = 1.0
FETCH_SECONDS = 1800.0  # to read the next image: requests to a store time out sooner


class Watch(Protocol):
    """Observer of a scan's work: a watchdog, or the pipe to a parent process."""

    def working(self, stage: Stage) -> AbstractContextManager[None]:
        """Return a context for reading the next image, decoding it, or one call of the engine."""
        ...


class Unwatched:
    """`Watch` that does nothing."""

    def working(self, stage: Stage) -> AbstractContextManager[None]:
        """See `Watch`."""
        return nullcontext()


class Watchdog:
    """Watchdog that ends the process when a stage takes longer than it may.

    A thread checks every `TICK_SECONDS`. Where native code holds Python's lock, so that the thread
    cannot run, a timer of `faulthandler`, which the thread restarts at every check, ends the
    process. Both print the stacks of all threads on stderr.

    Args:
        seconds: limit of one decode, and of one call of the engine.
        fetch_seconds: limit of reading the next image.
    """

    def __init__(self, seconds: float, fetch_seconds: float = FETCH_SECONDS) -> None:
        self._limits: dict[Stage, float] = {
            "fetch": fetch_seconds, "decode": seconds, "infer": seconds,
        }  # fmt: skip
        self._deadlines: dict[object, float] = {}
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """See `Watch`."""
        key = object()
        self._deadlines[key] = time.monotonic() + self._limits[stage]
        try:
            yield
        finally:
            del self._deadlines[key]

    def _run(self) -> None:
        while True:
            shortest = min(self._limits.values())
            faulthandler.dump_traceback_later(shortest + TICK_SECONDS, exit=True)
            if time.monotonic() > min(list(self._deadlines.values()), default=math.inf):
                faulthandler.dump_traceback()
                os._exit(EXIT_STUCK)
            time.sleep(TICK_SECONDS)


@dataclass(frozen=True, slots=True)
class _WatchedBatch:
    """Pending batch; waiting for it is watched."""

    pending: Pending
    watch: Watch

    def result(self) -> Detection:
        """See `Pending`."""
        with self.watch.working("infer"):
            return self.pending.result()


class WatchedEngine(Engine):
    """Engine whose calls are watched."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self.name, self.batch, self.depth = engine.name, engine.batch, engine.depth
        self._engine, self._watch = engine, watch

    def load_prompts(self, prompts: PromptSet) -> None:
        """See `Engine`."""
        self._engine.load_prompts(prompts)

    def submit(self, batch: Batch) -> Pending:
        """Start a batch; both this and the wait for its result are watched."""
        with self._watch.working("infer"):
            return _WatchedBatch(self._engine.submit(batch), self._watch)
