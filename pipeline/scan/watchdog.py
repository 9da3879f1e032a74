"""Ends a process that is stuck in an image, so that the image can be found and named."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Engine, Pending

Stage = Literal["decode", "infer"]

EXIT_STUCK = 86
TICK_SECONDS = 1.0


class Watch(Protocol):
    """Whoever wants to know what a scan is doing."""

    def working(self, stage: Stage) -> AbstractContextManager[None]:
        """Around one image's decode, or one run of the engine."""
        ...


class Unwatched:
    """Nobody."""

    def working(self, stage: Stage) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()


class Watchdog:
    """Ends the process when a decode, or a run of the engine, takes longer than `seconds`.

    A loop that lets other threads run is seen by a thread of ours; one that does not, in native
    code that holds Python's lock, by a timer of `faulthandler` that this thread would put off.
    Both leave the stacks of all threads on stderr.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: dict[object, float] = {}
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextmanager
    def working(self, stage: Stage) -> Iterator[None]:
        """See `Watch`."""
        key = object()
        self._begun[key] = time.monotonic()
        try:
            yield
        finally:
            del self._begun[key]

    def _run(self) -> None:
        while True:
            faulthandler.dump_traceback_later(self._seconds + TICK_SECONDS, exit=True)
            begun = min(list(self._begun.values()), default=time.monotonic())
            if time.monotonic() - begun > self._seconds:
                faulthandler.dump_traceback()
                os._exit(EXIT_STUCK)
            time.sleep(TICK_SECONDS)


@dataclass(frozen=True, slots=True)
class _WatchedBatch:
    """A pending batch; waiting for it is watched."""

    pending: Pending
    watch: Watch

    def result(self) -> Detection:
        """See `Pending`."""
        with self.watch.working("infer"):
            return self.pending.result()


class WatchedEngine(Engine):
    """An engine whose runs are watched."""

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
