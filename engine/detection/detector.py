"""Decoded images in, findings out: keeps the engine's batches full across images."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from statistics import fmean
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.postprocess import Region, localize
from prompt_iml.engine.detection.views import (
    LogitMap,
    Shape,
    Tiling,
    View,
    assemble,
    cut,
    cut_enlarged,
    mean,
    tile,
)
from prompt_iml.engine.errors import DeviceFull, InferError
from prompt_iml.engine.jpeg_quality import estimate_quality
from prompt_iml.engine.model.policy import Label, Policy
from prompt_iml.engine.runtimes.protocol import Batch, Engine

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about one image.

    Attributes:
        mask: (H, W) bool at stored size; None when no pixel is manipulated.
        manipulated_fraction: of the image's pixels.
        regions: largest first, at most 16.
        logits: the map behind the mask, at network resolution: heat maps and
            `views.probability_map` are made from it.
        score_raw: the network's score logit, the largest of the image's tiles: one
            manipulated tile makes a manipulated image. Of an image that is shown twice, the mean.
        score: calibrated probability that the image was manipulated.
        label, threshold: by the policy; threshold is None when it claims none, or when the
            image is too small or too compressed for it.
        mask_threshold: of this image's pixel probabilities.
        preprocess: id of how the image was shown to the network.
        infer_ms: the image's share of the engine's time, milliseconds.
    """

    mask: NDArray[np.bool_] | None
    manipulated_fraction: float
    regions: tuple[Region, ...]
    logits: LogitMap
    score_raw: float
    score: float
    label: Label
    threshold: float | None
    mask_threshold: float
    preprocess: str
    infer_ms: float


@dataclass(frozen=True, slots=True)
class _TileOutput:
    mask_logits: NDArray[np.float32]
    score_logit: float
    infer_ms: float


@dataclass(slots=True)
class _Showing:
    """One way in which an image is shown: its tiles share a lane, and so come out in order."""

    tiling: Tiling
    outputs: list[_TileOutput] = field(default_factory=list)

    @property
    def logits(self) -> LogitMap:
        return assemble(self.tiling, [output.mask_logits for output in self.outputs])

    @property
    def score_logit(self) -> float:
        return max(output.score_logit for output in self.outputs)


@dataclass(slots=True)
class _Open(Generic[K]):
    """An image some of whose tiles have not run yet."""

    key: K
    showings: list[_Showing]
    jpeg_quality: int | None
    failed: bool = False

    @property
    def complete(self) -> bool:
        return all(len(each.outputs) == len(each.tiling) for each in self.showings)


_Slot: TypeAlias = tuple[_Open[K], _Showing, int]  # an image, how it is shown, and which tile
_Lane: TypeAlias = deque[tuple[_Open[K], _Showing, int]]  # waiting, of one shape, first come first


@dataclass(frozen=True, slots=True)
class _Flight(Generic[K]):
    """A batch under way: its tiles and how many it was filled up to, the engine's ticket or why it
    has none, seconds so far."""

    slots: list[_Slot[K]]
    size: int
    ticket: Any
    seconds: float


@dataclass(slots=True)
class _Batches(Generic[K]):
    """Tiles into batches, and batches through the engine."""

    engine: Engine
    size: int
    observe: Callable[[int, int], None]
    lanes: defaultdict[Shape, _Lane[K]] = field(default_factory=lambda: defaultdict(deque))

    def add(self, opened: _Open[K]) -> Iterator[list[_Slot[K]]]:
        """The batches that an image's tiles complete."""
        for shown in opened.showings:
            lane = self.lanes[shown.tiling.tile_shape]
            lane.extend((opened, shown, index) for index in range(len(shown.tiling)))
            while len(lane) >= self.size:
                yield from self._next(lane)

    def rest(self) -> Iterator[list[_Slot[K]]]:
        """What no further tile will complete."""
        for lane in self.lanes.values():
            while lane:
                yield from self._next(lane)

    def _next(self, lane: _Lane[K]) -> Iterator[list[_Slot[K]]]:
        """The lane's next tiles but those of images that failed meanwhile."""
        slots = [lane.popleft() for _ in range(min(len(lane), self.size))]
        if slots := [slot for slot in slots if not slot[0].failed]:
            yield slots

    def depart(self, slots: list[_Slot[K]]) -> _Flight[K]:
        """Submit a batch of exactly `size` tiles: where some lack, the last repeats.

        Of more only if the size was halved while these waited.
        """
        tiles = [tile(shown.tiling, index) for _, shown, index in slots]
        tables = [shown.tiling.qtable for _, shown, _ in slots]
        lack = self.size - len(slots)
        batch = Batch(_stack(tiles + tiles[-1:] * lack), _stack(tables + tables[-1:] * lack))
        self.observe(len(slots), len(batch.image))
        start = time.perf_counter()
        try:
            ticket = self.engine.submit(batch)
        except InferError as error:
            ticket = error
        return _Flight(slots, len(batch.image), ticket, time.perf_counter() - start)

    def outputs(self, flight: _Flight[K]) -> list[_TileOutput | InferError]:
        """One outcome a slot; after a failed batch each slot runs alone, or in smaller ones."""
        try:
            return self._collect(flight)
        except DeviceFull as error:
            if flight.size == 1:
                return [error]
            self.size = min(self.size, flight.size // 2)
            parts = _parts(flight.slots, self.size)
        except InferError as error:
            if len(flight.slots) == 1:
                return [error]
            parts = _parts(flight.slots, 1)
        return [outcome for part in parts for outcome in self.outputs(self.depart(part))]

    def _collect(self, flight: _Flight[K]) -> list[_TileOutput | InferError]:
        if isinstance(flight.ticket, InferError):
            raise flight.ticket
        start = time.perf_counter()
        detection = self.engine.collect(flight.ticket)
        seconds = flight.seconds + time.perf_counter() - start
        masks, scores = detection.mask_logits, detection.score_logit
        if not (np.isfinite(masks).all() and np.isfinite(scores).all()):
            raise InferError(f"{self.engine.name} gave logits that are not finite")
        count = len(flight.slots)
        infer_ms = seconds * 1e3 / count
        # Copies: the runtime may write its next output into the same memory.
        return [_TileOutput(masks[i].copy(), float(scores[i]), infer_ms) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Detector:
    """An engine with the view and the policy of its model.

    Attributes:
        engine: the runtime.
        view: how the model wants to see images.
        policy: calibration and thresholds.
        batch_size: tiles per engine call. Every call has exactly this many, so an image's
            finding does not depend on the images around it.
        observe: told of each batch: the tiles in it, and its size.
    """

    engine: Engine
    view: View
    policy: Policy
    batch_size: int = 1
    observe: Callable[[int, int], None] = lambda tiles, size: None

    def detect(self, images: Iterable[tuple[K, Image]]) -> Iterator[tuple[K, Finding | InferError]]:
        """Findings of a stream of images, each as soon as its last tile has run.

        Tiles of one shape share batches, across images. Images come out in the order in which
        they complete; with batch_size 1 that is the order in which they came. Fewer than
        batch_size tiles of each shape wait at any time, so `native` with its four shapes holds
        at most 4 * (batch_size - 1) images, and those under way, while it asks for the next.

        An image on which the engine fails yields the `InferError`: after a failed batch each
        of its tiles runs alone, so one image cannot fail its neighbours. Where the device is full,
        batches are half as large from then on.
        """
        flights: deque[_Flight[K]] = deque()
        batches = _Batches[K](self.engine, self.batch_size, self.observe)
        for key, image in images:
            tilings = cut(image, self.view), cut_enlarged(image, self.view)
            showings = [_Showing(tiling) for tiling in tilings if tiling]
            opened = _Open(key, showings, _jpeg_quality(image))
            for slots in batches.add(opened):
                flights.append(batches.depart(slots))
                yield from self._land(batches, flights, self.engine.depth - 1)
        for slots in batches.rest():
            flights.append(batches.depart(slots))
            yield from self._land(batches, flights, self.engine.depth - 1)
        yield from self._land(batches, flights, 0)

    def _land(
        self, batches: _Batches[K], flights: deque[_Flight[K]], left: int
    ) -> Iterator[tuple[K, Finding | InferError]]:
        """Wait until so many batches are under way; yield the images that this completes."""
        while len(flights) > left:
            flight = flights.popleft()
            for (opened, shown, _), output in zip(
                flight.slots, batches.outputs(flight), strict=True
            ):
                if opened.failed:
                    continue
                if isinstance(output, InferError):
                    opened.failed = True
                    yield opened.key, output
                    continue
                shown.outputs.append(output)
                if opened.complete:
                    yield opened.key, self._conclude(opened)

    def _conclude(self, opened: _Open[K]) -> Finding:
        first, *others = opened.showings
        logits = reduce(mean, (each.logits for each in others), first.logits)
        mask_threshold = self.policy.pixel_threshold(logits.peak)
        localization = localize(logits, mask_threshold)
        score_raw = fmean(each.score_logit for each in opened.showings)
        score = self.policy.score(score_raw)
        label, threshold = self.policy.label(
            score, side=min(logits.shape), jpeg_quality=opened.jpeg_quality
        )
        return Finding(
            mask=localization.mask,
            manipulated_fraction=localization.manipulated_fraction,
            regions=localization.regions,
            logits=logits,
            score_raw=score_raw,
            score=score,
            label=label,
            threshold=threshold,
            mask_threshold=mask_threshold,
            preprocess=opened.showings[-1].tiling.preprocess,
            infer_ms=sum(each.infer_ms for shown in opened.showings for each in shown.outputs),
        )


def _jpeg_quality(image: Image) -> int | None:
    return None if image.luma_table is None else estimate_quality(image.luma_table)


def _parts(slots: list[_Slot[K]], size: int) -> list[list[_Slot[K]]]:
    return [slots[i : i + size] for i in range(0, len(slots), size)]


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """`np.stack`, which would copy a single array too."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
