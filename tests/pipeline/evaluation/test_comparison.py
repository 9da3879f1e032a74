"""Numbers against a known truth, computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image

from prompt_iml.engine.errors import MissingInput, UsageError
from prompt_iml.pipeline.evaluation.comparison import (
    Truth,
    auc,
    compare,
    f1_and_iou,
    read_rows,
    read_truth,
    table,
)
from prompt_iml.pipeline.run.masks import encode_mask
from prompt_iml.pipeline.run.schema import SCHEMA


def box(left: int, right: int) -> np.ndarray:
    mask = np.zeros((10, 20), bool)
    mask[:, left:right] = True
    return mask


def row(name: str, score: float, mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "sha256": name,
        "score": score,
        "mask_rle": encode_mask(mask),
        "mask_height": height,
        "mask_width": width,
    }


@pytest.fixture
def truth(tmp_path: Path) -> list[Truth]:
    Image.fromarray(box(0, 10)).save(tmp_path / "left.png")
    left = tmp_path / "left.png"
    return [
        Truth("a", "splice", left),
        Truth("b", "splice", left),
        Truth("c", "removal", left),
        Truth("d", "authentic", None),
        Truth("e", "authentic", None),
    ]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        row("a", 0.9, box(0, 10)),  # F1 1, IoU 1
        row("b", 0.4, box(5, 15)),  # F1 1/2, IoU 1/3
        row("c", 0.8, box(0, 0)),  # F1 0, IoU 0
        row("d", 0.4, box(0, 1)),  # 1/20 of the pixels
        row("e", 0.1, box(0, 0)),
    ]


def test_each_number_by_hand(rows: list[dict[str, Any]], truth: list[Truth]) -> None:
    found = compare(rows, truth)
    assert (found.forged, found.authentic, found.missing) == (3, 2, 0)
    assert found.f1 == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.iou == pytest.approx((1 + 1 / 3 + 0) / 3)
    kinds = [(each.kind, each.images, each.f1) for each in found.kinds]
    assert kinds == [("removal", 1, 0), ("splice", 2, 0.75)]
    assert found.flagged_rate == 0.5
    assert found.flagged_fraction == pytest.approx(1 / 40)
    assert found.auc == pytest.approx(5.5 / 6)  # b ties with d


def test_half_a_percent_masked_is_no_false_positive() -> None:
    mask = np.zeros((10, 20), bool)
    mask[0, 0] = True  # 1 pixel of 200
    truth = [Truth("d", "authentic", None)]
    assert compare([row("d", 0.5, mask)], truth).flagged_rate == 0
    mask[0, 1] = True
    assert compare([row("d", 0.5, mask)], truth).flagged_rate == 1


def test_images_without_a_row_are_counted_and_nothing_else(
    rows: list[dict[str, Any]], truth: list[Truth]
) -> None:
    found = compare(rows[:1], truth)
    assert (found.forged, found.authentic, found.missing) == (1, 0, 4)
    assert found.f1 == 1
    assert math.isnan(found.flagged_rate)
    assert math.isnan(found.auc)
    assert "no score           4 images" in table(found)


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 8, 200) / 8, rng.random(200) < 0.3
    pairs = scores[positive][:, None] - scores[~positive]
    assert auc(scores, positive) == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))


def test_two_empty_masks_have_no_f1() -> None:
    assert all(map(math.isnan, f1_and_iou(box(0, 0), box(0, 0))))


def test_a_mask_of_another_size_is_refused(tmp_path: Path, truth: list[Truth]) -> None:
    Image.fromarray(box(0, 10).T).save(tmp_path / "left.png")
    with pytest.raises(UsageError, match=r"left\.png"):
        compare([row("a", 0.9, box(0, 10))], truth)


def test_truth_is_read_beside_its_masks(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("image,mask,kind,sha256\na.tar#1.jpg,m/1.png,splice,aa\nb.jpg,,authentic,bb\n")
    splice, authentic = read_truth(path)
    assert splice == Truth("aa", "splice", tmp_path / "m/1.png")
    assert authentic == Truth("bb", "authentic", None)


def test_truth_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        read_truth(tmp_path / "truth.csv")
    (tmp_path / "truth.csv").write_text("image,mask\n")
    with pytest.raises(UsageError, match="kind, sha256"):
        read_truth(tmp_path / "truth.csv")


def test_only_scored_rows_of_known_images_are_read(
    rows: list[dict[str, Any]], truth: list[Truth]
) -> None:
    named = {"image_id": "", "uri": ""}
    stored = [each | named | {"status": "ok"} for each in rows[:3]]
    stored += [{"sha256": "d", "status": "failed"} | named, row("z", 1, box(0, 1)) | named]
    stored[-1]["status"] = "ok"
    results = ds.dataset(pa.Table.from_pylist(stored, SCHEMA))
    assert [each["sha256"] for each in read_rows(results, truth)] == ["a", "b", "c"]


def test_the_table_shows_every_number(rows: list[dict[str, Any]], truth: list[Truth]) -> None:
    printed = table(compare(rows, truth))
    assert printed.splitlines()[1:4] == [
        "removal            1     0.000   0.000",
        "splice             2     0.750   0.667",
        "all                3     0.500   0.444",
    ]
    assert "50% of them with more than 0.5% of the pixels masked (mean 2.50%)" in printed
    assert printed.splitlines()[-1] == "image AUC      0.917"
