"""Metrics of an evaluation, compared with cases by hand and with scikit-learn."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PilImage
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_auc_score

from prompt_iml.engine.detection.detector import Detector, Finding
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import BadLabels, EmptySource, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.policy import UNTRAINED, Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine
from prompt_iml.pipeline.demo.photographs import generate_set, write_shards
from prompt_iml.pipeline.evaluation import (
    ImageResult,
    SetResult,
    evaluate_images,
    evaluate_set,
)
from prompt_iml.pipeline.evaluation.comparison import compare, read_truth
from prompt_iml.pipeline.evaluation.images import MASK_THRESHOLDS
from prompt_iml.pipeline.evaluation.metrics import (
    best_f1,
    expected_calibration_error,
    f1_at,
    interval,
    masked_at,
    mean,
    pixel_auc,
    reliability,
    sweep,
)
from prompt_iml.pipeline.evaluation.perturbations import ALL, USUAL, expand, perturb
from prompt_iml.pipeline.evaluation.sets import Counts, size_class, size_name
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.scan.rows import result
from prompt_iml.pipeline.truth import read_labels

POLICY = Policy("test", 1.0, 0.0, 0.9, 0.2, 0.5, 0.01)


@dataclass
class Redness(Engine):
    """Engine whose mask logits are the red of 4x4 cells above 100; its score is 3 or -3."""

    name: str = "redness"

    def load_prompts(self, prompts: PromptSet) -> None:
        raise NotImplementedError

    def submit(self, batch: Batch) -> Done:
        n, height, width, _ = batch.image.shape
        red = batch.image[..., 0].astype(np.float32).reshape(n, height // 4, 4, width // 4, 4)
        logits = (red.mean(axis=(2, 4)) - 100) / 20
        scores = np.where(logits.max(axis=(1, 2)) > 0, 3, -3).astype(np.float32)
        return Done(Detection(logits, scores))


def blocks(*places: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Return a dark picture, (256, 256, 3) uint8, with bright places."""
    pixels = np.full((256, 256, 3), 20, np.uint8)
    for place in places:
        pixels[place] = 200
    return pixels


LEFT = slice(64, 128), slice(64, 128)
RIGHT = slice(64, 128), slice(128, 192)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write three forged images (found, half found, missed), two authentic ones, of which one has
    a false alarm, and a damaged one."""
    pictures = {
        "found.png": blocks(LEFT),
        "half.png": blocks(LEFT),
        "missed.png": blocks(),
        "quiet.png": blocks(),
        "alarm.png": blocks(RIGHT),
    }
    for name, pixels in pictures.items():
        PilImage.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    _write_mask(tmp_path / "left.png", LEFT)
    _write_mask(tmp_path / "both.png", LEFT, RIGHT)
    lines = ["image,mask", "found.png,left.png", "half.png,both.png", "missed.png,left.png"]
    lines += ["quiet.png,", "alarm.png,", "damaged.jpg,"]
    return _write(tmp_path / "manifest.csv", lines)


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def _write_mask(path: Path, *places: tuple[slice, slice]) -> None:
    PilImage.fromarray(blocks(*places)[..., 0] > 100).save(path)


def evaluate(manifest: Path, **options: Any) -> SetResult:
    options = {"policy": POLICY, **options}
    return evaluate_set(Redness(), load_model("prompt-iml-micro"), truth=manifest, **options)


def test_a_set_by_hand(manifest: Path) -> None:
    result = evaluate(manifest)
    assert (result.forged, result.authentic, result.failed) == (3, 2, 1)
    assert result.f1 == pytest.approx((1 + 2 / 3 + 0) / 3, abs=0.01)
    assert result.iou == pytest.approx((1 + 1 / 2 + 0) / 3, abs=0.01)
    everything = 2 * 64**2 / (256**2 + 64**2)  # mask every pixel: best where all logits are equal
    assert result.best_f1 == pytest.approx((1 + 2 / 3 + everything) / 3, abs=0.01)
    assert result.pixel_auc == pytest.approx((1 + 0.75 + 0.5) / 3, abs=0.01)
    assert result.image_auc == (2 * 0.75 + 0.25) / 3
    assert (result.false_positive_rate, result.flagged_rate) == (0.5, 0.5)
    assert result.true_positive_rate == pytest.approx(2 / 3)
    low, high = POLICY.score(-3), POLICY.score(3)
    forged_of_low = (1 / 3) / (1 / 3 + 1 / 2)
    forged_of_high = (2 / 3) / (2 / 3 + 1 / 2)
    expected = (5 / 12) * abs(low - forged_of_low) + (7 / 12) * abs(high - forged_of_high)
    assert result.ece == pytest.approx(expected)


def test_labels_are_counted_by_size(manifest: Path) -> None:
    every, small = evaluate(manifest).sizes
    assert (every.size, small.size) == ("all", "under 0.2")
    assert every.of_authentic == small.of_authentic
    assert every.of_authentic == Counts(2, authentic=1, uncertain=0, manipulated=1, masked=1)
    assert (every.of_forged.images, every.of_forged.manipulated) == (3, 2)
    assert every.of_authentic.share("masked") == 0.5
    assert every.false_positive_interval == pytest.approx((0.013, 0.987), abs=0.001)


@pytest.mark.parametrize(
    ("megapixels", "name"),
    [(0.1, "under 0.2"), (0.2, "0.2-1"), (3.9, "1-4"), (12.0, "4-13"), (24.0, "above 13")],
)
def test_size_classes(megapixels: float, name: str) -> None:
    assert size_name(size_class(megapixels)) == name


def test_an_interval_holds_what_its_bounds_make_unlikely() -> None:
    low, high = interval(3, 200)
    assert binom.sf(2, 200, low) == pytest.approx(0.025)
    assert binom.cdf(3, 200, high) == pytest.approx(0.025)
    assert interval(0, 10)[0] == 0
    assert interval(10, 10)[1] == 1


def test_an_untrained_policy_labels_nothing(manifest: Path) -> None:
    result = evaluate(manifest, policy=UNTRAINED)
    assert (result.false_positive_rate, result.true_positive_rate) == (0, 0)


def test_results_go_through_json(manifest: Path) -> None:
    result = evaluate(_write(manifest.with_name("few.csv"), ["image,mask", "quiet.png,"]))
    assert result.set == "few"
    assert math.isnan(result.f1)
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert SetResult.from_dict(stored).to_dict() == result.to_dict()
    assert SetResult.from_dict(stored).sizes == result.sizes
    older = {name: value for name, value in stored.items() if name != "sizes"}
    assert SetResult.from_dict(older).sizes == ()


@pytest.mark.parametrize("perturbation", ["none", "jpeg-90", "resize-0.5", "resize-2", "grid"])
def test_masks_move_with_their_image(manifest: Path, perturbation: str) -> None:
    result = evaluate(manifest, perturbation=perturbation)
    assert (result.forged, result.failed) == (3, 1)
    assert result.f1 == pytest.approx(5 / 9, abs=0.03)


def test_a_limit_is_spread_over_the_manifest(manifest: Path) -> None:
    names = [Path(label.uri).name for label in read_labels(manifest, 2)]
    assert names == ["found.png", "quiet.png"]
    assert len(read_labels(manifest, 100)) == 6


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["picture,mask", "found.png,"], UsageError, "column image"),
        (["image,mask"], EmptySource, "no image"),
        (["image,mask", "nobody.png,"], BadLabels, "nobody.png"),
        (["image,mask", "found.png,nobody.png"], BadLabels, "nobody.png"),
        (["image,mask", "found.png,damaged.jpg"], BadLabels, "damaged.jpg"),
        (
            ["image,mask", "found.png,small.png"],
            BadLabels,
            "found.png: has a mask of .8, 8.",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(
    manifest: Path, lines: list[str], error: type[Exception], message: str
) -> None:
    PilImage.new("L", (8, 8), 255).save(manifest.with_name("small.png"))
    with pytest.raises(error, match=message):
        evaluate(_write(manifest, lines))


def test_the_truth_of_the_demo_is_a_manifest(tmp_path: Path) -> None:
    images = list(generate_set(3, ("splice", "copy-move")))
    truth = write_shards(images, tmp_path / "demo", shards=2)
    result = evaluate(truth)
    assert (result.set, result.forged, result.authentic, result.failed) == ("demo", 2, 2, 0)
    assert [label.kind for label in read_labels(truth)] == [image.kind for image in images]


def test_evaluation_and_the_comparison_of_a_scan_agree(tmp_path: Path) -> None:
    """Both metrics agree for the same images: of `evaluate_set` and of rows of a scan."""
    images = list(generate_set(5, ("splice", "retouch")))
    truth = write_shards(images, tmp_path, shards=1)
    detector = Detector(Redness(), load_model("prompt-iml-micro").view, POLICY)
    decoded = {
        hashlib.sha256(i.data).hexdigest(): decode(i.data, DecodeLimits()).image for i in images
    }
    found = [(key, each) for key, each in detector.detect(decoded.items())]
    rows = [
        {"sha256": key} | result(each, heatmap=False)
        for key, each in found
        if isinstance(each, Finding)
    ]
    comparison, evaluated = compare(rows, read_truth(truth)), evaluate(truth)
    assert (evaluated.forged, evaluated.authentic) == (comparison.forged, comparison.authentic)
    assert (evaluated.f1, evaluated.iou) == pytest.approx((comparison.f1, comparison.iou))
    assert evaluated.flagged_rate == comparison.flagged_rate
    assert evaluated.image_auc == comparison.auc


def test_the_sweep_agrees_with_the_mask_of_the_detector(manifest: Path) -> None:
    detector = Detector(Redness(), load_model("prompt-iml-micro").view, POLICY)
    middle = int(np.flatnonzero(POLICY.mask_threshold == MASK_THRESHOLDS)[0])
    for evaluation in evaluate_images(detector, read_labels(manifest)):
        each = evaluation.outcome
        if isinstance(each, ImageResult):
            assert each.masked_at[middle] == pytest.approx(each.masked)
            assert each.f1_at[middle] == pytest.approx(each.f1, nan_ok=True)


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("one.png"), io.BytesIO())
    lines = ["image,mask", "a.tar#two.png,"]
    with pytest.raises(BadLabels, match="names the image two"):
        evaluate(_write(tmp_path / "manifest.csv", lines))


@pytest.fixture(params=[1, 2, 3])
def pixels(request: pytest.FixtureRequest) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (40, 30) logits with many ties, and a truth that correlates with them."""
    rng = np.random.default_rng(request.param)
    truth = rng.random((40, 30)) < 0.2
    return np.round(rng.normal(truth, 1.0), 1).astype(np.float32), truth


def test_pixel_auc_is_that_of_scikit_learn(pixels: Any) -> None:
    logits, truth = pixels
    expected = roc_auc_score(truth.ravel(), logits.ravel())
    assert pixel_auc(sweep(logits, truth)) == pytest.approx(expected)


def test_best_f1_is_that_of_scikit_learn(pixels: Any) -> None:
    logits, truth = pixels
    precision, recall, _ = precision_recall_curve(truth.ravel(), logits.ravel())
    expected = (2 * precision * recall / (precision + recall + 1e-12)).max()
    assert best_f1(sweep(logits, truth)) == pytest.approx(expected)


def test_every_threshold_as_if_it_were_the_only_one(pixels: Any) -> None:
    logits, truth = pixels
    levels = np.array([-9.0, -0.5, 0.0, 0.3, 9.0], np.float32)
    swept = sweep(logits, truth)
    for level, f1, share in zip(
        levels, f1_at(swept, levels), masked_at(swept, levels), strict=True
    ):
        found = logits > level
        assert f1 == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert share == found.mean()


def test_without_forged_pixels_nothing_is_measured() -> None:
    swept = sweep(np.zeros((4, 4), np.float32), np.zeros((4, 4), bool))
    assert math.isnan(best_f1(swept))
    assert math.isnan(pixel_auc(swept))
    assert np.isnan(f1_at(swept, np.zeros(1))).all()
    assert mean([math.nan, 1.0, 3.0]) == 2.0
    assert math.isnan(mean([math.nan]))


def test_reliability_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    forged = np.arange(400) % 2 == 0  # as many as authentic: the classes weigh alike anyway
    scores = rng.beta(2, 2, 400)
    share, score = calibration_curve(forged, scores, n_bins=10)
    table = reliability(scores, forged)
    np.testing.assert_allclose([each.forged for each in table], share)
    np.testing.assert_allclose([each.score for each in table], score)
    assert sum(each.weight for each in table) == pytest.approx(1)


def test_calibration_error_does_not_depend_on_how_many_are_authentic() -> None:
    forged = np.array([True, True, False, False])
    scores = np.array([1.0, 0.6, 0.6, 0.0])
    once = expected_calibration_error(reliability(scores, forged))
    authentic = np.concatenate([forged, forged[2:], forged[2:]])
    thrice = np.concatenate([scores, scores[2:], scores[2:]])
    assert once == pytest.approx(0.05)
    assert expected_calibration_error(reliability(thrice, authentic)) == pytest.approx(once)
    assert math.isnan(expected_calibration_error(reliability(scores, forged | True)))


def photograph() -> Image:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return Image(pixels, np.full(64, 7, np.float32))


@pytest.mark.parametrize("name", ALL)
def test_every_perturbation_keeps_what_it_documents(name: str) -> None:
    image = photograph()
    mask = image.pixels[..., 0] > 128
    changed, moved = perturb(name, image, mask, seed=1)
    again, _ = perturb(name, image, None, seed=1)
    assert changed.pixels.dtype == np.uint8
    assert moved is not None
    assert moved.shape == changed.pixels.shape[:2]
    np.testing.assert_array_equal(changed.pixels, again.pixels)
    assert (changed.luma_table is not None) == (name in ("none", "grid") or name[:5] == "jpeg-")
    same = changed.pixels.shape == image.pixels.shape and (changed.pixels == image.pixels).all()
    assert same == (name in ("none", "no-table"))


@pytest.mark.parametrize("name", ALL)
def test_a_pixel_survives(name: str) -> None:
    image = Image(np.full((1, 2, 3), 77, np.uint8))
    assert perturb(name, image, None)[0].pixels.size > 0


def test_strengths() -> None:
    image = photograph()
    assert perturb("resize-0.25", image, None)[0].pixels.shape == (40, 60, 3)
    table = perturb("jpeg-50", image, None)[0].luma_table
    assert table is not None
    assert table[0] == 16  # the standard's own table is that of quality 50
    spread = perturb("noise-15", Image(np.full((200, 200, 3), 128, np.uint8)), None)[0].pixels.std()
    assert spread == pytest.approx(15, rel=0.02)
    grey = Image(np.full((256, 256, 3), 128, np.uint8))
    pink = perturb("pink-15", grey, None)[0].pixels[..., 0] - 128.0
    power = np.abs(np.fft.fft2(pink)) ** 2
    assert power[8:16, 8:16].mean() / power[64:128, 64:128].mean() > 4  # white noise: 1
    assert pink.std() == pytest.approx(15, rel=0.02)
    assert set(np.unique(perturb("dither-2", image, None)[0].pixels)) == {0, 255}
    coarse, fine = (perturb(f"jpeg2000-{r}", image, None)[0].pixels for r in (100, 2))
    loss = [np.abs(pixels.astype(int) - image.pixels).mean() for pixels in (coarse, fine)]
    assert loss[0] > 2 * loss[1]
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    blurred = perturb("blur-15", Image(point), None)[0].pixels[..., 0]
    assert (np.flatnonzero(blurred.any(0)).min(), np.flatnonzero(blurred.any(0)).max()) >= (8, 22)
    np.testing.assert_array_equal(perturb("grid", image, None)[0].pixels, image.pixels[3:, 5:])
    darker = perturb("brightness-0.7", image, None)[0].pixels
    assert darker.mean() == pytest.approx(0.7 * image.pixels.mean(), rel=0.01)


def test_groups_are_spelt_out_once() -> None:
    assert expand(["usual", "none", "jpeg-50"]) == [*USUAL, "none"]
    assert expand(["all"]) == list(ALL)
    assert expand(["all", "paper"]) == list(ALL)


@pytest.mark.parametrize("name", ["sepia", "jpeg", "jpeg-0", "resize-9", "blur-x", ""])
def test_an_unknown_perturbation_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        expand([name])
