"""A closer look: tiles on the stored pixels replace what the scaled picture gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from prompt_iml.engine.detection import detector
from prompt_iml.engine.detection.closer import MOST_TILES, merged, remaining, suspicious
from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.views import LogitMap, View, assemble, cut, cut_stored, tile
from prompt_iml.engine.errors import InferError
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine

VIEW = View("native", (128,), max_tiles=4)
POLICY = Policy("test", 2.0, 0.0, 0.9, 0.2, closer_look=3)
TABLE = np.full(64, 7, np.float32)


class Red(Engine):
    """An engine whose mask logits are the mean red of a cell; the score is their maximum."""

    name = "red"

    def __init__(self) -> None:
        self.tables: list[float] = []

    def load_prompts(self, prompts: PromptSet) -> None:
        raise NotImplementedError

    def submit(self, batch: Batch) -> Done:
        self.tables += [float(table[0]) for table in batch.qtable]
        logits = np.stack([_cell_means(pixels) for pixels in batch.image])
        return Done(Detection(logits, logits.max(axis=(1, 2))))


def _cell_means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = pixels.shape[:2]
    red = pixels[..., 0].astype(np.float32).reshape(height // 4, 4, width // 4, 4)
    return np.asarray((red.mean(axis=(1, 3)) - 100) / 50, np.float32)


def _photo(*places: tuple[int, int], side: int = 24) -> Image:
    """A dark picture of 600x800 with bright squares at these corners."""
    pixels = np.full((600, 800, 3), 20, np.uint8)
    for y, x in places:
        pixels[y : y + side, x : x + side] = 220
    return Image(pixels, TABLE)


def _coarse(image: Image) -> LogitMap:
    tiling = cut(image, VIEW)
    return assemble(tiling, [_cell_means(tile(tiling, i)) for i in range(len(tiling))])


def _found(image: Image, engine: Engine, policy: Policy = POLICY, batch: int = 1) -> Finding:
    ((_, found),) = Detector(engine, VIEW, policy, batch).detect([("only", image)])
    assert isinstance(found, Finding)
    return found


def test_the_most_suspicious_tiles_are_chosen() -> None:
    image = _photo((40, 40), (500, 700))
    stored = cut_stored(image, VIEW)
    first, last = suspicious(_coarse(image), stored, 2)
    assert (stored.place(first), stored.place(last)) == ((0, 0), (472, 672))
    assert suspicious(_coarse(image), stored, 1000) == list(range(len(stored)))


def test_a_place_is_chosen_once() -> None:
    image = _photo((110, 110), (500, 700))  # the first lies in four tiles, as they overlap
    stored = cut_stored(image, VIEW)
    places = [stored.place(number) for number in suspicious(_coarse(image), stored, 2)]
    assert places[1] == (472, 672)


def test_equal_tiles_are_chosen_in_order() -> None:
    flat = Image(np.zeros((600, 800, 3), np.uint8))
    assert suspicious(_coarse(flat), cut_stored(flat, VIEW), 3) == [0, 1, 2]


def test_the_map_is_replaced_where_tiles_were_shown() -> None:
    image = _photo((40, 40), (500, 700))
    coarse, stored = _coarse(image), cut_stored(image, VIEW)
    fives = [np.full((32, 32), 5, np.float32)] * 2
    logits, shown = merged(coarse, stored, [0, len(stored) - 1], fives)
    assert (logits.extent, logits.shape) == (coarse.extent, coarse.shape)
    np.testing.assert_allclose(logits.cells[shown], 5, rtol=1e-6)
    np.testing.assert_array_equal(logits.cells[~shown], coarse.cells[~shown])
    expected = np.prod(coarse.cells.shape) * 2 * 128**2 / (600 * 800)
    assert shown.sum() == pytest.approx(expected, rel=0.1)


def test_tiles_that_were_shown_lose_their_score() -> None:
    tiling = cut(_photo(), VIEW)
    shown = np.zeros(_coarse(_photo()).cells.shape, bool)
    shown[:24, :32] = True
    assert remaining(tiling, range(len(tiling)), shown) == list(range(1, len(tiling)))


def test_a_large_picture_is_shown_again_with_its_table() -> None:
    image, engine = _photo((40, 40), (500, 700)), Red()
    found = _found(image, engine)
    assert engine.tables == [1] * 4 + [7] * 3
    assert found.preprocess == "native-128-scaled-closer"
    assert found.mask is not None
    assert found.mask.shape == (600, 800)


def test_fine_detail_counts_as_it_is() -> None:
    image = _photo((40, 40), side=4)
    scaled, closer = (_found(image, Red(), replace(POLICY, closer_look=tiles)) for tiles in (0, 3))
    assert closer.score_raw == pytest.approx(2.4)
    assert scaled.score_raw < 1


def test_what_looked_suspicious_and_is_not_no_longer_counts() -> None:
    class Mild(Red):
        def submit(self, batch: Batch) -> Done:
            detection = super().submit(batch).result()
            scaled = batch.qtable[:, 0] == 1
            return Done(Detection(detection.mask_logits, scaled * detection.score_logit))

    detector = Detector(Mild(), replace(VIEW, max_tiles=30), POLICY)
    ((_, found),) = detector.detect([("only", _photo((40, 40)))])
    assert isinstance(found, Finding)
    assert found.preprocess.endswith("-closer")
    assert found.score_raw == 0


@pytest.mark.parametrize(("tiles", "preprocess"), [(0, "native-128-scaled"), (40, "native-128")])
def test_none_is_needed_or_wanted(tiles: int, preprocess: str) -> None:
    found = _found(_photo((40, 40)), Red(), replace(POLICY, closer_look=tiles))
    assert found.preprocess == preprocess


def test_a_thin_strip_gets_none() -> None:
    strip = Image(np.full((1, 128 * (MOST_TILES + 400), 3), 20, np.uint8), None)
    assert _found(strip, Red()).preprocess == "native-128-scaled"


@pytest.mark.parametrize("step", ["suspicious", "merged"])
def test_an_image_whose_closer_look_fails_fails_alone(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> object:
        raise MemoryError

    monkeypatch.setattr(detector, step, failing)
    images = [_photo((40, 40)), Image(np.full((90, 128, 3), 9, np.uint8))]
    found = dict(Detector(Red(), VIEW, POLICY).detect(enumerate(images)))
    assert isinstance(found[0], InferError)
    assert isinstance(found[1], Finding)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_alone_or_among_others(batch: int) -> None:
    images = [_photo((40, 40)), Image(np.full((90, 128, 3), 9, np.uint8)), _photo((300, 500))]
    for each in (images, images[::-1]):
        crowd = dict(Detector(Red(), VIEW, POLICY, batch).detect(enumerate(each)))
        for key, image in enumerate(each):
            alone, found = _found(image, Red()), crowd[key]
            assert isinstance(found, Finding)
            assert (found.score_raw, found.preprocess) == (alone.score_raw, alone.preprocess)
            np.testing.assert_array_equal(found.logits.cells, alone.logits.cells)


def test_no_more_batches_are_pending_than_the_engine_takes() -> None:
    class Deep(Red):
        depth, pending, most = 2, 0, 0

        def submit(self, batch: Batch) -> Done:
            engine, done = self, super().submit(batch)
            engine.pending += 1
            engine.most = max(engine.most, engine.pending)

            class Late(Done):
                def result(self) -> Detection:
                    engine.pending -= 1
                    return self.detection

            return Late(done.detection)

    engine = Deep()
    images = enumerate([_photo((40, 40)), _photo((300, 500))])
    assert len(list(Detector(engine, VIEW, POLICY).detect(images))) == 2
    assert engine.most == 2
