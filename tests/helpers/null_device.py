"""A device without a GPU that runs queued work as late as it may and in random order.

Only the order within a stream and events limit it, so an engine that forgets to wait for something
computes wrong results here in most runs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.errors import DeviceFull, InferError
from prompt_iml.engine.runtimes.overlap import Buffers, Shape
from prompt_iml.engine.runtimes.protocol import Batch, Engine

Array = NDArray[Any]
Work = Callable[[], None]


@dataclass
class Event:
    """A mark in a stream, and whether the stream has reached it."""

    come: bool = False


@dataclass
class Stream:
    """Queued work and events, first in, first out; `captured` while a graph is captured."""

    queue: deque[tuple[Work | Event, bool]] = field(default_factory=deque)
    captured: list[Work] | None = None

    def put(self, work: Work) -> None:
        """Queue work, or add it to the graph that is being captured."""
        if self.captured is not None:
            self.captured.append(work)
        else:
            self.queue.append((work, False))


class NullDevice:
    """See `engine.runtimes.overlap.Device`.

    Attributes:
        room: bytes of device memory.
        uploads: copies to the device.
        overlapped: uploads that ran while work was waiting in another stream.
        launches: launches of captured graphs.
    """

    def __init__(self, seed: int = 0, room: int = 1 << 40) -> None:
        self._random, self.room = random.Random(seed), room
        self._streams: list[Stream] = []
        self.uploads = self.overlapped = self.launches = 0

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.full(shape, 77, dtype)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Array:
        array = np.full(shape, 99, dtype)
        if array.nbytes > self.room:
            raise DeviceFull("no room on the null device")
        return array

    def stream(self) -> Stream:
        self._streams.append(Stream())
        return self._streams[-1]

    def upload(self, source: Array, target: Array, stream: Stream) -> None:
        def copy() -> None:
            self.uploads += 1
            self.overlapped += any(other.queue for other in self._streams if other is not stream)
            np.copyto(target, source)

        stream.put(copy)

    def download(self, source: Array, target: Array, stream: Stream) -> None:
        stream.put(lambda: np.copyto(target, source))

    def record(self, stream: Stream) -> Event:
        event = Event()
        stream.put(lambda: setattr(event, "come", True))
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        stream.queue.append((event, True))

    def synchronize(self, event: Event) -> None:
        while not event.come:
            self._advance()

    def capture(self, stream: Stream, work: Work) -> Work:
        stream.captured = []
        work()
        graph, stream.captured = stream.captured, None

        def launch() -> None:
            self.launches += 1
            stream.put(lambda: [each() for each in graph] and None)

        return launch

    def _advance(self) -> None:
        """Run the next work of a random stream that does not wait for an event."""
        ready = [stream for stream in self._streams if self._ready(stream)]
        if not ready:
            raise InferError("the streams wait for each other")
        work, _ = self._random.choice(ready).queue.popleft()
        if not isinstance(work, Event):
            work()

    def _ready(self, stream: Stream) -> bool:
        while stream.queue and isinstance(event := stream.queue[0][0], Event) and event.come:
            stream.queue.popleft()
        return bool(stream.queue) and not isinstance(stream.queue[0][0], Event)


class HostProgram:
    """A network on the null device: a CPU engine that runs when the device reaches its work."""

    def __init__(self, engine: Engine, largest: int, fits: int = 1 << 40) -> None:
        self.name, self.largest = f"null+{engine.name}", largest
        self._engine, self._fits = engine, fits
        self.shapes: list[Shape] = []

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Stream) -> None:
        if shape[0] > self._fits:
            raise DeviceFull(f"{shape[0]} images do not fit")
        self.shapes.append(shape)

        def work() -> None:
            found = self._engine.run(Batch(*(buffers[n].copy() for n in Batch.__slots__)))
            np.copyto(buffers["mask_logits"], found.mask_logits)
            np.copyto(buffers["score_logit"], found.score_logit)

        stream.put(work)
