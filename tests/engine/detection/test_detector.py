"""Streaming detection, with engines whose outputs are known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
from numpy.typing import NDArray

from prompt_iml.engine.detection import detector as detecting
from prompt_iml.engine.detection.detector import PATIENCE, Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.detection.score import PixelModel, ScoreModel
from prompt_iml.engine.detection.views import View
from prompt_iml.engine.errors import InferError
from prompt_iml.engine.model.folder import known_models, load_model
from prompt_iml.engine.model.policy import UNTRAINED, Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine

POISON = 13  # first pixel of a tile on which the engine fails
NATIVE = View("native")
POLICY = Policy("test", 2.0, 0.0, 0.9, 0.2)
SHAPES = [(1, 1), (384, 256), (512, 512), (700, 900), (100, 600), (200, 200), (513, 512)]


@dataclass
class Brightness(Engine):
    """An engine whose mask logits rise with the mean red of a cell; the score is their maximum."""

    name: str = "brightness"
    seen: list[tuple[int, ...]] = field(default_factory=list)
    tables: list[NDArray[np.float32]] = field(default_factory=list)

    def load_prompts(self, prompts: PromptSet) -> None:
        raise NotImplementedError

    def submit(self, batch: Batch) -> Done:
        n, height, width, _ = batch.image.shape
        self.seen.append(batch.image.shape)
        self.tables.append(batch.qtable)
        red = batch.image[..., 0].astype(np.float32).reshape(n, height // 4, 4, width // 4, 4)
        logits = (red.mean(axis=(2, 4)) - 100) / 50
        return Done(Detection(logits, logits.max(axis=(1, 2))))


class Fragile(Brightness):
    """An engine that fails on a batch with a poisoned tile."""

    def submit(self, batch: Batch) -> Done:
        done = super().submit(batch)
        if (batch.image[:, 0, 0, 0] == POISON).any():
            raise InferError("poisoned")
        return done


class Overflowing(Brightness):
    """An engine that returns NaN where `Fragile` fails."""

    def submit(self, batch: Batch) -> Done:
        done = super().submit(batch)
        done.detection.mask_logits[batch.image[:, 0, 0, 0] == POISON] = np.nan
        return done


@dataclass
class Reusing(Brightness):
    """An engine that returns every output in the same memory, as a runtime may."""

    memory: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, 128, 128), "f4"))

    def submit(self, batch: Batch) -> Done:
        detection = super().submit(batch).result()
        self.memory[:] = detection.mask_logits
        return Done(Detection(self.memory, detection.score_logit))


def _image(shape: tuple[int, int], seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 160, (shape[0] // 16 + 1, shape[1] // 16 + 1, 3), np.uint8)
    pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)[: shape[0], : shape[1]]
    return Image(np.ascontiguousarray(pixels))


def _square(y: int, x: int, shape: tuple[int, int] = (700, 900)) -> Image:
    pixels = np.full((*shape, 3), 20, np.uint8)
    pixels[y : y + 120, x : x + 90] = 200
    return Image(pixels)


def _poisoned(shape: tuple[int, int], y: int = 0, x: int = 0) -> Image:
    pixels = _image(shape).pixels
    pixels[y, x, 0] = POISON
    return Image(pixels)


def _one(image: Image, detector: Detector) -> Finding:
    ((_, finding),) = detector.detect([("only", image)])
    assert isinstance(finding, Finding)
    return finding


def _pixels(finding: Finding) -> NDArray[np.bool_]:
    return np.zeros(finding.logits.shape, bool) if finding.mask is None else finding.mask


def _same(a: Finding | InferError, b: Finding | InferError) -> bool:
    """Return whether two findings are equal to the bit, except for the time."""
    assert isinstance(a, Finding)
    assert isinstance(b, Finding)
    masks = np.array_equal(_pixels(a), _pixels(b))
    scores = (a.score_raw, a.score, a.label, a.regions) == (
        b.score_raw,
        b.score,
        b.label,
        b.regions,
    )
    return masks and scores and np.array_equal(a.logits.cells, b.logits.cells)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("order", [1, -1])
def test_alone_or_in_a_crowd(batch_size: int, order: int) -> None:
    images = [(i, _image(shape, i)) for i, shape in enumerate(SHAPES * 2)]
    alone = Detector(Brightness(), NATIVE, POLICY)
    crowd = dict(Detector(Brightness(), NATIVE, POLICY, batch_size).detect(images[::order]))
    assert crowd.keys() == dict(images).keys()
    assert all(_same(crowd[key], _one(image, alone)) for key, image in images)


@pytest.mark.parametrize("shift", [(8, 0), (0, 8), (8, 8), (0, 64)])
def test_a_square_moved_by_8_moves_its_mask_by_8(shift: tuple[int, int]) -> None:
    detector = Detector(Brightness(), NATIVE, POLICY)
    mask = _one(_square(317, 391), detector).mask
    moved = _one(_square(317 + shift[0], 391 + shift[1]), detector).mask
    assert mask is not None
    assert mask.sum() == pytest.approx(120 * 90, rel=0.1)
    np.testing.assert_array_equal(moved, np.roll(mask, shift, (0, 1)))


def test_finding() -> None:
    finding = _one(_square(320, 392), Detector(Brightness(), NATIVE, POLICY))
    (region,) = finding.regions
    assert finding.mask is not None
    assert finding.mask.shape == (700, 900)
    assert (region.x, region.y, region.width, region.height) == (392, 320, 90, 120)
    assert finding.manipulated_fraction == finding.mask.mean() == region.area / 630_000
    assert finding.score_raw == 2.0
    assert finding.score == pytest.approx(1 / (1 + np.exp(-4)))
    assert (finding.label, finding.threshold) == ("manipulated", 0.9)
    assert (finding.mask_threshold, finding.preprocess) == (0.5, "native-256-512")


def test_a_share_of_the_peak_leaves_out_weaker_regions() -> None:
    image = _square(320, 392)
    image.pixels[100:200, 100:200] = 140
    found = [
        _one(image, Detector(Brightness(), NATIVE, replace(POLICY, mask_share=share)))
        for share in (0.0, 0.9)
    ]
    assert [len(finding.regions) for finding in found] == [2, 1]
    assert found[0].mask_threshold == 0.5
    assert found[1].mask_threshold == pytest.approx(0.9 * found[1].logits.peak)


def test_a_pixel_model_makes_the_mask_of_the_highest_expected_f1() -> None:
    calibrated = replace(POLICY, pixel_model=PixelModel(4.0, -1.0, 0.5))
    plain, finding = (
        _one(_square(320, 392), Detector(Brightness(), NATIVE, policy))
        for policy in (POLICY, calibrated)
    )
    assert plain.mask_confidence is None
    assert finding.mask_confidence is not None
    assert 0.5 < finding.mask_confidence < 1
    assert finding.mask_threshold == finding.mask_confidence / 2
    np.testing.assert_array_equal(finding.statistics.cells, plain.statistics.cells)
    np.testing.assert_allclose(finding.logits.cells, 4 * plain.logits.cells, atol=1e-5)
    (region,) = finding.regions
    assert (region.x, region.y) == (392, 320)
    assert region.mean_score > finding.mask_threshold


def test_no_mask_is_drawn_that_is_not_believed() -> None:
    policy = replace(POLICY, pixel_model=PixelModel(2.0, -1.0, 0.5))
    doubtful = replace(policy, least_confidence=1.0)
    authentic = replace(policy, manipulated_at=1.0, authentic_below=1.0)
    for each, label in ((doubtful, "manipulated"), (authentic, "authentic")):
        finding = _one(_square(320, 392), Detector(Brightness(), NATIVE, each))
        assert (finding.label, finding.mask, finding.regions) == (label, None, ())
        assert finding.manipulated_fraction == 0
        assert finding.mask_confidence is not None


def test_the_score_is_that_of_the_policys_model() -> None:
    model = ScoreModel({"max": 2.0, "log_tiles": -1.0}, 0.5)
    policy = replace(POLICY, score_model=model)
    finding = _one(_square(320, 392), Detector(Brightness(), NATIVE, policy))
    assert finding.score_raw == pytest.approx(2 * 2.0 - np.log(4) + 0.5)
    assert finding.score == policy.score(finding.score_raw)


def test_a_small_picture_without_a_table_has_two_views() -> None:
    image = _square(16, 24, (160, 200))
    once, twice = (
        _one(Image(image.pixels, table), Detector(Brightness(), NATIVE, POLICY))
        for table in (np.full(64, 4, np.float32), None)
    )
    assert [each.preprocess for each in (once, twice)] == [
        "native-256-512",
        "native-256-512-enlarged",
    ]
    assert once.mask is not None
    assert twice.mask is not None
    assert twice.mask.shape == once.mask.shape == (160, 200)
    assert (once.mask != twice.mask).mean() < 0.01
    assert (
        once.score_raw <= twice.score_raw <= once.score_raw + 0.5
    )  # bicubic scaling overshoots at edges


def test_nothing_found() -> None:
    image = Image(np.full((384, 256, 3), 20, np.uint8))
    finding = _one(image, Detector(Brightness(), NATIVE, POLICY))
    assert finding.mask is None
    assert (finding.label, finding.manipulated_fraction, finding.regions) == ("authentic", 0, ())


def test_untrained_is_always_uncertain() -> None:
    finding = _one(_square(320, 392), Detector(Brightness(), NATIVE, UNTRAINED))
    assert (finding.label, finding.threshold) == ("uncertain", None)


def test_what_is_beyond_the_policy_is_uncertain() -> None:
    limited = Policy("test", 2.0, 0.0, 0.9, 0.2, min_side=300, min_jpeg_quality=50)
    detector = Detector(Brightness(), NATIVE, limited)
    pixels = _square(320, 392).pixels
    tables = [None, np.full(64, 10, np.float32), np.full(64, 200, np.float32)]
    labels = [_one(Image(pixels, table), detector).label for table in tables]
    assert labels == ["manipulated", "manipulated", "uncertain"]
    small = _one(Image(pixels[300:500]), detector)
    assert (small.label, small.threshold) == ("uncertain", None)
    assert small.mask is not None


def test_the_score_is_the_largest_of_the_tiles() -> None:
    finding = _one(_square(580, 810), Detector(Brightness(), NATIVE, POLICY))
    assert finding.score_raw == 2.0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_are_always_full(batch_size: int) -> None:
    engine = Brightness()
    enlarged = {
        (256, 256): 1 + 4,
        (512, 512): 0,
        (256, 512): 3,
    }  # tiles of 1x1, 200x200 and 100x600
    list(Detector(engine, NATIVE, POLICY, batch_size).detect(enumerate(map(_image, SHAPES))))
    tiles = {(256, 256): 1 + 2 + 1, (512, 512): 1 + 4 + 2, (256, 512): 2}
    tiles = {shape: count + enlarged[shape] for shape, count in tiles.items()}
    expected = [shape for shape, count in tiles.items() for _ in range(-(-count // batch_size))]
    assert sorted(engine.seen) == sorted((batch_size, *shape, 3) for shape in expected)


def test_a_network_without_context_takes_many_tiles() -> None:
    image = _image((700, 900))
    without = Detector(Brightness(), replace(NATIVE, context=False), POLICY)
    assert _same(_one(image, without), _one(image, Detector(Brightness(), NATIVE, POLICY)))


def test_tables_go_with_their_tiles() -> None:
    engine = Brightness()
    table = np.arange(1, 65, dtype=np.float32)
    images = [Image(_image((256, 256)).pixels, t) for t in (table, None)]
    list(Detector(engine, NATIVE, POLICY, 2).detect(enumerate(images)))
    np.testing.assert_array_equal(engine.tables, [[table, np.ones(64)]])


def test_findings_come_at_once_with_batch_size_1() -> None:
    asked: list[int] = []
    found = Detector(Brightness(), NATIVE, POLICY).detect(_counted(asked))
    for expected in range(3):
        assert next(found)[0] == expected
        assert asked == list(range(expected + 1))


def test_few_images_are_open_at_once() -> None:
    asked: list[int] = []
    done = 0
    for _ in Detector(Brightness(), NATIVE, POLICY, 4).detect(_counted(asked)):
        done += 1
        assert len(asked) - done <= 4 * 3
    assert done == 30


def test_a_tile_waits_for_a_bounded_number_of_images() -> None:
    shapes = chain([(512, 512)], repeat((200, 200), 200))
    detector, asked = Detector(Brightness(), NATIVE, POLICY, 4), list[int]()
    images = ((key, asked.append(key) or _image(shape)) for key, shape in enumerate(shapes))  # type: ignore[func-returns-value]
    assert next(key for key, _ in detector.detect(images) if key == 0) == 0
    assert len(asked) <= PATIENCE * 4 + 1


def test_callers_take_turns_where_no_batch_is_pending_between_findings() -> None:
    engine = Brightness()
    engine.depth = 2
    detector = Detector(engine, NATIVE, POLICY, depth=1)
    first, second = (detector.detect(enumerate([_image((512, 512))] * 3)) for _ in range(2))
    for mine, theirs in zip(first, second, strict=True):
        assert (mine[0], len(engine.seen)) == (theirs[0], 2 * (mine[0] + 1))


def _counted(asked: list[int]) -> Iterator[tuple[int, Image]]:
    for key in range(30):
        asked.append(key)
        yield key, _image(SHAPES[key % 7 if key % 3 else 2])


def test_no_images() -> None:
    assert list(Detector(Brightness(), NATIVE, POLICY).detect([])) == []


@pytest.mark.parametrize("engine", [Fragile, Overflowing])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_poisoned_image_fails_alone(engine: type[Brightness], batch_size: int) -> None:
    images = [_image((512, 512), 1), _poisoned((512, 512)), _image((700, 900), 2)]
    found = dict(Detector(engine(), NATIVE, POLICY, batch_size).detect(enumerate(images)))
    alone = Detector(Brightness(), NATIVE, POLICY)
    assert isinstance(found[1], InferError)
    assert _same(found[0], _one(images[0], alone))
    assert _same(found[2], _one(images[2], alone))


def test_an_image_that_cannot_be_prepared_fails_alone() -> None:
    nothing = Image(np.zeros((0, 300, 3), np.uint8), None)
    found = dict(Detector(Brightness(), NATIVE, POLICY).detect([(0, nothing), (1, _image((9, 9)))]))
    assert isinstance(found[0], InferError)
    assert isinstance(found[1], Finding)


@pytest.mark.parametrize("step", ["histogram", "localize", "best_threshold"])
def test_an_image_whose_finding_fails_fails_alone(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(POLICY, pixel_model=PixelModel(1.0, 0.0, 0.0))
    whole, images = getattr(detecting, step), [_image((700, 900)), _image((9, 9))]

    def failing_once(*arguments: object) -> object:
        monkeypatch.setattr(detecting, step, whole)
        raise MemoryError

    monkeypatch.setattr(detecting, step, failing_once)
    found = dict(Detector(Brightness(), NATIVE, policy).detect(enumerate(images)))
    assert isinstance(found[0], InferError)
    assert str(found[0]) == "after the network: MemoryError: "
    assert isinstance(found[1], Finding)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_one_bad_tile_fails_its_image_once(batch_size: int) -> None:
    images = [_poisoned((700, 900), 0, 392), _image((512, 512))]
    detector = Detector(Fragile(), NATIVE, POLICY, batch_size)
    kinds = [(key, type(result)) for key, result in detector.detect(enumerate(images))]
    assert kinds == [(0, InferError), (1, Finding)]


def test_a_failed_image_is_given_up() -> None:
    engine = Fragile()
    list(Detector(engine, NATIVE, POLICY).detect([(0, _poisoned((700, 2000)))]))
    assert len(engine.seen) == 1


def test_engines_may_reuse_their_memory() -> None:
    image = _image((700, 900))
    found = [_one(image, Detector(engine, NATIVE, POLICY)) for engine in (Reusing(), Brightness())]
    assert _same(found[0], found[1])


def test_infer_ms_is_shared() -> None:
    class Slow(Brightness):
        def submit(self, batch: Batch) -> Done:
            time.sleep(0.02)
            return super().submit(batch)

    images = enumerate([_image((512, 512)), _image((512, 512)), _image((512, 512))])
    found = Detector(Slow(), NATIVE, POLICY, 2).detect(images)
    first, second, last = [f.infer_ms for _, f in found if isinstance(f, Finding)]
    assert first == second >= 10
    assert last >= 20


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_packaged_model_alone_or_in_a_crowd(batch_size: int) -> None:
    if not known_models():
        pytest.skip("no model is packaged")
    model = load_model(known_models()[0])
    detector = Detector(open_engine(model, threads=1), model.view, model.policy, batch_size)
    images = [(name, _photograph(name)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
    crowd = dict(detector.detect(images[::-1]))
    assert all(_same(crowd[name], _one(image, detector)) for name, image in images)


def _photograph(name: str) -> Image:
    with PIL.Image.open(Path(skimage.data.__file__).parent / name) as file:
        return Image(np.asarray(file.convert("RGB")))
