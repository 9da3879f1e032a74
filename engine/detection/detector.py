"""Find manipulated regions in a stream of decoded images, with full batches across images.

image -> views -> tiles -> queue of their shape -> batch -> engine -> outputs -> Finding
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.closer import can_look_closer, merged, remaining, suspicious
from prompt_iml.engine.detection.context import NO_CONTEXT, Context, picture_context, tile_matches
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.postprocess import Localization, Region, localize
from prompt_iml.engine.detection.score import Statistics, best_threshold, histogram
from prompt_iml.engine.detection.views import (
    LogitMap,
    Shape,
    Tiling,
    View,
    assemble,
    cut,
    cut_enlarged,
    cut_stored,
    mean,
)
from prompt_iml.engine.detection.views import tile as cut_tile
from prompt_iml.engine.errors import DeviceFull, ImageError, InferError
from prompt_iml.engine.model.policy import Label, Policy
from prompt_iml.engine.runtimes.protocol import Batch, Engine, Pending

K = TypeVar("K")

PATIENCE = 4  # batches: a tile that has waited for so many images runs in a batch that is not full


@dataclass(frozen=True, slots=True)
class Finding:
    """Result for one image.

    Attributes:
        mask: (H, W) bool at stored size; None when no pixel is manipulated.
        manipulated_fraction: share of the image's pixels in the mask, 0..1.
        regions: connected regions of the mask, largest first, at most 16.
        logits: mask logits at network resolution, from which heat maps and
            `views.probability_map` are made; calibrated if the policy has a `pixel_model`.
        statistics: statistics of the network's outputs, before any calibration.
        score_raw: score logit of the policy's `score_model`. Without one, the largest of the
            image's tiles, because one manipulated tile makes a manipulated image; with two views,
            their mean.
        score: calibrated probability that the image was manipulated, 0..1.
        label, threshold: by the policy; the threshold is None when the policy claims none, or
            when the image is too small or too compressed for it.
        mask_threshold: probability above which this image's pixels are in the mask.
        mask_confidence: expected F1 of that mask, 0..1, also where the policy leaves the mask out;
            None if the policy has no `pixel_model`.
        preprocess: id of the image's last view, as `Tiling.preprocess`.
        infer_ms: the image's share of the engine's time, milliseconds.
    """

    mask: NDArray[np.bool_] | None
    manipulated_fraction: float
    regions: tuple[Region, ...]
    logits: LogitMap
    statistics: Statistics
    score_raw: float
    score: float
    label: Label
    threshold: float | None
    mask_threshold: float
    mask_confidence: float | None
    preprocess: str
    infer_ms: float


@dataclass(frozen=True, slots=True)
class _TileOutput:
    """Network output for one tile.

    Attributes:
        mask_logits: (tile height / 4, tile width / 4) float32.
        score_logit: the network's score of the tile, before calibration.
        infer_ms: the tile's share of its batch's time, milliseconds.
    """

    mask_logits: NDArray[np.float32]
    score_logit: float
    infer_ms: float


@dataclass(slots=True)
class _ImageView:
    """One view of an image: its tiling, its context, the numbers of the tiles that are shown, and
    the outputs of those that have run, in order.

    All tiles of a view have one shape, so they pass through one queue and stay in order.
    """

    tiling: Tiling
    context: Context
    numbers: Sequence[int]
    outputs: list[_TileOutput] = field(default_factory=list)

    @property
    def tile_logits(self) -> list[NDArray[np.float32]]:
        return [output.mask_logits for output in self.outputs]

    @property
    def logits(self) -> LogitMap:
        return assemble(self.tiling, self.tile_logits)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(output.score_logit for output in self.outputs)


@dataclass(slots=True)
class _PendingImage(Generic[K]):
    """An image of which some tiles have not run yet.

    Attributes:
        key: the caller's name for the image.
        number: how many images came before it.
        views: the image as stored or scaled, and for a small picture an enlarged view
            (`cut_enlarged`).
        jpeg_quality: estimated, 1..100; None when the file is no JPEG.
        stored: the image, until a closer look at it begins; None if there will be none.
        closer: the closer look, once it has begun.
        failed: true once the engine has failed on one of its tiles; the others are then skipped.
    """

    key: K
    number: int
    views: list[_ImageView]
    jpeg_quality: int | None
    stored: Image | None = None
    closer: _ImageView | None = None
    failed: bool = False

    @property
    def shown(self) -> list[_ImageView]:
        """All views, with the closer look."""
        return [*self.views, *([self.closer] if self.closer else [])]

    @property
    def complete(self) -> bool:
        """True if all tiles of the views so far have run."""
        return all(len(view.outputs) == len(view.numbers) for view in self.shown)

    def outcome(self) -> tuple[LogitMap, tuple[tuple[float, ...], ...]]:
        """Return the blended map, and the scores of the tiles of each view."""
        first, *others = self.views
        logits = reduce(mean, (each.logits for each in others), first.logits)
        if closer := self.closer:
            logits, shown = merged(logits, closer.tiling, closer.numbers, closer.tile_logits)
            return logits, ((*remaining(first.tiling, first.scores, shown), *closer.scores),)
        return logits, tuple(view.scores for view in self.views)


class _Tile(NamedTuple, Generic[K]):
    """A waiting tile: its image, its view, and its number in the view's tiling."""

    image: _PendingImage[K]
    view: _ImageView
    number: int


@dataclass(frozen=True, slots=True)
class _PendingBatch(Generic[K]):
    """A batch that was submitted to the engine.

    Attributes:
        tiles: at most `size` tiles; the rest of the batch repeats the last one.
        size: number of images in the batch.
        output: the engine's pending output, or its error if it refused the batch.
        seconds: time that `submit` took.
    """

    tiles: list[_Tile[K]]
    size: int
    output: Pending | InferError
    seconds: float


@dataclass(slots=True)
class _Batcher(Generic[K]):
    """Groups waiting tiles into batches, and passes batches through the engine.

    Attributes:
        engine: the runtime.
        size: number of tiles in a batch; halved when the device is full.
        observe: see `Detector`.
        queues: waiting tiles by shape, first in, first out.
    """

    engine: Engine
    size: int
    observe: Callable[[int, int], None]
    queues: defaultdict[Shape, deque[_Tile[K]]] = field(default_factory=lambda: defaultdict(deque))

    def add(self, image: _PendingImage[K], view: _ImageView) -> None:
        """Queue the tiles of an image's view."""
        tiles = (_Tile(image, view, number) for number in view.numbers)
        self.queues[view.tiling.tile_shape].extend(tiles)

    def batches(self, newest: int | None) -> Iterator[list[_Tile[K]]]:
        """Yield the waiting tiles in batches, also those that are added meanwhile.

        Args:
            newest: number of the image that came last; tiles that do not fill a batch are left
                waiting, until `PATIENCE` batches' worth of images have come after theirs. None: all
                images have come, and no tile is left.
        """
        while queue := self._ready(newest):
            tiles = [queue.popleft() for _ in range(min(len(queue), self.size))]
            if tiles := [tile for tile in tiles if not tile.image.failed]:
                yield tiles

    def _ready(self, newest: int | None) -> deque[_Tile[K]] | None:
        """Return the first queue whose tiles are to run, as `batches` has it."""
        for queue in filter(None, self.queues.values()):
            if newest is None or len(queue) >= self.size:
                return queue
            if newest - queue[0].image.number >= PATIENCE * self.size:
                return queue
        return None

    def submit(self, tiles: list[_Tile[K]]) -> _PendingBatch[K]:
        """Submit a batch of exactly `size` images: the last tile repeats where tiles are missing.

        The batch is larger only if `size` was halved after its tiles left the queue.
        """
        padded = tiles + tiles[-1:] * (self.size - len(tiles))
        batch = Batch(
            _stack([cut_tile(tile.view.tiling, tile.number) for tile in padded]),
            _stack([tile.view.tiling.qtable for tile in padded]),
            _stack([tile.view.context.histogram for tile in padded]),
            _stack([_tile_matches(tile) for tile in padded]),
        )
        self.observe(len(tiles), len(batch.image))
        start = time.perf_counter()
        output: Pending | InferError
        try:
            output = self.engine.submit(batch)
        except InferError as error:
            output = error.bare()
        return _PendingBatch(tiles, len(batch.image), output, time.perf_counter() - start)

    def collect(self, pending: _PendingBatch[K]) -> list[_TileOutput | InferError]:
        """Wait for a batch and return one outcome for each of its tiles.

        After a failed batch each tile runs alone; where the device was full, in smaller batches.
        """
        try:
            return self._outputs(pending)
        except DeviceFull as error:
            if pending.size == 1:
                return [error]
            self.size = min(self.size, pending.size // 2)
            parts = _parts(pending.tiles, self.size)
        except InferError as error:
            if len(pending.tiles) == 1:
                return [error]
            parts = _parts(pending.tiles, 1)
        return [outcome for part in parts for outcome in self.collect(self.submit(part))]

    def _outputs(self, pending: _PendingBatch[K]) -> list[_TileOutput | InferError]:
        if isinstance(pending.output, InferError):
            raise pending.output
        start = time.perf_counter()
        detection = pending.output.result()
        seconds = pending.seconds + time.perf_counter() - start
        masks, scores = detection.mask_logits, detection.score_logit
        if not (np.isfinite(masks).all() and np.isfinite(scores).all()):
            raise InferError(f"{self.engine.name} returned logits that are not finite")
        count = len(pending.tiles)
        infer_ms = seconds * 1e3 / count
        # Copies: the runtime may write its next output into the same memory.
        return [_TileOutput(masks[i].copy(), float(scores[i]), infer_ms) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Detector:
    """An engine with the view and the policy of its model.

    Attributes:
        engine: the runtime.
        view: how images are prepared for the model.
        policy: calibration and thresholds.
        batch_size: number of tiles in a batch. Every batch has exactly this many, so an image's
            finding does not depend on the images around it.
        observe: called for each batch with the number of tiles in it and its size.
        depth: most batches that may be pending at once; None: as many as suit the engine. With 1
            none is pending while the caller has a finding, so that callers can take turns.
    """

    engine: Engine
    view: View
    policy: Policy
    batch_size: int = 1
    observe: Callable[[int, int], None] = lambda tiles, size: None
    depth: int | None = None

    def detect(
        self, images: Iterable[tuple[K, Image | ImageError]]
    ) -> Iterator[tuple[K, Finding | ImageError]]:
        """Yield the finding of each image as soon as its last tile has run.

        Tiles of one shape share batches, across images. Images come out in the order in which
        they complete; with batch_size 1 and depth 1 that is the order in which they came. Fewer
        than batch_size tiles of each shape wait at any time, so `native` with its four shapes holds
        at most 4 * (batch_size - 1) images, and those in pending batches, before it takes the next
        one; and none waits while more than `PATIENCE` * batch_size others come. An image that gets
        a closer look keeps its stored pixels until that ends.

        An image that cannot be prepared, or on which the engine fails, yields the `InferError`:
        after a failed batch each of its tiles runs alone, so one image cannot fail its neighbours.
        Once the device was full, batches are half as large.

        Args:
            images: (key, image) pairs; the key comes back with the finding. In place of an image
                that could not be read its error is yielded at once.
        """
        pending: deque[_PendingBatch[K]] = deque()
        batcher = _Batcher[K](self.engine, self.batch_size, self.observe)
        for number, (key, image) in enumerate(images):
            prepared = image if isinstance(image, ImageError) else self._prepare(key, number, image)
            if isinstance(prepared, ImageError):
                yield key, prepared
            else:
                for view in prepared.views:
                    batcher.add(prepared, view)
            yield from self._run(batcher, pending, number)
        while pending or any(batcher.queues.values()):  # what is collected may queue closer looks
            yield from self._run(batcher, pending, None)
            yield from self._collect(batcher, pending, 0)

    def _run(
        self, batcher: _Batcher[K], pending: deque[_PendingBatch[K]], newest: int | None
    ) -> Iterator[tuple[K, Finding | InferError]]:
        """Submit the batches that wait; yield the images that are completed meanwhile."""
        for tiles in batcher.batches(newest):
            pending.append(batcher.submit(tiles))
            yield from self._collect(batcher, pending, (self.depth or self.engine.depth) - 1)

    def _prepare(self, key: K, number: int, image: Image) -> _PendingImage[K] | InferError:
        """Return `_opened`, or the error of an image that cannot be prepared."""
        try:
            return self._opened(key, number, image)
        except Exception as error:  # broad, because no image may end the job
            return _failed("before", error)

    def _opened(self, key: K, number: int, image: Image) -> _PendingImage[K]:
        """Return an image with its first views; one that they scale down is kept as stored."""
        first = cut(image, self.view, self.policy.closer_look)
        tilings = first, cut_enlarged(image, self.view)
        views = [self._shown(each, range(len(each))) for each in tilings if each]
        scaled = self.view.name == "native" and first.pixels.shape[:2] != first.stored_shape
        closer = scaled and self.policy.closer_look and can_look_closer(image, self.view)
        stored = image if closer else None
        return _PendingImage(key, number, views, image.jpeg_quality, stored)

    def _shown(self, tiling: Tiling, numbers: Sequence[int]) -> _ImageView:
        return _ImageView(tiling, self._context(tiling), numbers)

    def _closer(self, image: _PendingImage[K]) -> _ImageView | None:
        """Begin the closer look at an image whose scaled picture has run; None if it has none."""
        if image.stored is None:
            return None
        (scaled,) = image.views
        tiling = replace(
            cut_stored(image.stored, self.view), preprocess=f"{scaled.tiling.preprocess}-closer"
        )
        numbers = suspicious(scaled.logits, tiling, self.policy.closer_look)
        image.stored, image.closer = None, self._shown(tiling, numbers)
        return image.closer

    def _context(self, tiling: Tiling) -> Context:
        """Return the context of a view's pixels, or an empty one if the network takes none."""
        if self.view.context:
            return picture_context(tiling.pixels, tiling.qtable)
        return NO_CONTEXT

    def _collect(
        self, batcher: _Batcher[K], pending: deque[_PendingBatch[K]], limit: int
    ) -> Iterator[tuple[K, Finding | InferError]]:
        """Collect the oldest batches until at most `limit` are pending; yield the images completed.

        An image on which the engine failed is complete at its first failure.
        """
        while len(pending) > limit:
            batch = pending.popleft()
            for (image, view, _), output in zip(batch.tiles, batcher.collect(batch), strict=True):
                if image.failed:
                    continue
                if isinstance(output, InferError):
                    image.failed = True
                    yield image.key, output
                    continue
                view.outputs.append(output)
                if image.complete and (found := self._completed(batcher, image)):
                    yield image.key, found

    def _completed(
        self, batcher: _Batcher[K], image: _PendingImage[K]
    ) -> Finding | InferError | None:
        """Return the finding of an image whose tiles have run, or the error of finding it; None if
        the image gets a closer look, whose tiles are queued."""
        try:
            if closer := self._closer(image):
                batcher.add(image, closer)
                return None
            return self._finding(image)
        except Exception as error:  # broad, because no image may end the job
            image.failed = True
            return _failed("after", error)

    def _finding(self, image: _PendingImage[K]) -> Finding:
        """Blend tiles and views, and apply the policy."""
        logits, scores = image.outcome()
        statistics = Statistics(
            tiles=scores,
            cells=histogram(logits.cells),
            megapixels=logits.shape[0] * logits.shape[1] / 1e6,
        )
        score_raw = self.policy.score_logit(statistics)
        score = self.policy.score(score_raw)
        label, threshold = self.policy.label(
            score,
            side=min(logits.shape),
            jpeg_quality=image.jpeg_quality,
            megapixels=statistics.megapixels,
        )
        mask_threshold, confidence = self.policy.pixel_threshold(logits.peak), None
        if pixels := self.policy.pixel_model:
            confidence = pixels.confidence(statistics.cells, score_raw)
            mask_threshold = best_threshold(confidence)
            logits = replace(logits, cells=pixels.calibrated(logits.cells, score_raw))
        believed = self.policy.believes(label, confidence)
        localization = localize(logits, mask_threshold) if believed else Localization()
        return Finding(
            mask=localization.mask,
            manipulated_fraction=localization.manipulated_fraction,
            regions=localization.regions,
            logits=logits,
            statistics=statistics,
            score_raw=score_raw,
            score=score,
            label=label,
            threshold=threshold,
            mask_threshold=mask_threshold,
            mask_confidence=confidence,
            preprocess=image.shown[-1].tiling.preprocess,
            infer_ms=sum(output.infer_ms for view in image.shown for output in view.outputs),
        )


def _failed(when: str, error: Exception) -> InferError:
    return InferError(f"{when} the network: {type(error).__name__}: {error}")


def _tile_matches(tile: _Tile[K]) -> NDArray[np.float32]:
    if not tile.view.context.matches.size:  # the network takes none
        return tile.view.context.matches
    top, left = tile.view.tiling.place(tile.number)
    return tile_matches(tile.view.context, top, left, tile.view.tiling.tile_shape)


def _parts(tiles: list[_Tile[K]], size: int) -> list[list[_Tile[K]]]:
    return [tiles[i : i + size] for i in range(0, len(tiles), size)]


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return `np.stack(arrays)`, but as a view of a single array, which `np.stack` would copy."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
