"""Reviews as truth: what holds of several decisions, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from prompt_iml.engine.errors import BadLabels, EmptySource, UsageError
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, Label, Rle, check_images, read_labels
from prompt_iml.pipeline.truth.masks import load_mask
from prompt_iml.pipeline.truth.reviews import Review, read_reviews, write_review
from tests.helpers.outputs import Row, commit, scored
from tests.helpers.reviewed import review_of
from tests.helpers.stores import Folder, Store

SIZE = (16, 24)


def mask(width: int) -> Rle:
    """Return a mask of so many columns."""
    pixels = np.zeros(SIZE, bool)
    pixels[:, :width] = True
    return Rle.of(pixels)


@pytest.fixture
def row(store: Store, photographs: Mapping[str, bytes]) -> Row:
    data = photographs["rocket.jpg"]
    return scored(store.put("in/rocket.jpg", data), data, 0.5)


def labels_of(store: Store, *reviews: Review) -> list[Label]:
    for review in reviews:
        write_review(f"{store.uri}/out/reviews", review)
    return read_labels(f"{store.uri}/out")


def test_an_output_and_its_reviews_are_the_same_truth(store: Store, row: Row) -> None:
    commit(f"{store.uri}/out", [row])
    with pytest.raises(UsageError, match="no reviews yet: make some with prompt-iml review"):
        read_labels(f"{store.uri}/out")
    (label,) = labels_of(store, review_of(row, "manipulated", mask=mask(9)))
    assert (label.uri, label.label, label.mask) == (row["uri"], "manipulated", mask(9))
    assert read_labels(f"{store.uri}/out/reviews") == [label]


WITH, WRONG, REAL = ("manipulated", mask(8)), ("mask_wrong", None), ("authentic", None)
UNSURE, GONE = ("unsure", None), ("withdrawn", None)
CASES: dict[str, tuple[list[tuple[str, tuple[Any, Rle | None]]], Any]] = {
    "later": ([("ann", REAL), ("ann", WITH)], ("manipulated", mask(8))),
    "unsure": ([("ann", WITH), ("ann", UNSURE)], None),
    "withdrawn": ([("ann", WITH), ("ann", GONE)], None),
    "decided again": ([("ann", GONE), ("ann", REAL)], ("authentic", None)),
    "wrong mask": ([("ann", WRONG)], ("manipulated", None)),
    "one is sure": ([("ann", UNSURE), ("bob", REAL)], ("authentic", None)),
    "disagree": ([("ann", WITH), ("bob", REAL)], None),
    "no longer": ([("ann", WITH), ("bob", REAL), ("bob", GONE)], ("manipulated", mask(8))),
    "mask disputed": ([("ann", WITH), ("bob", WRONG)], ("manipulated", None)),
    "alike": ([("ann", WITH), ("bob", ("manipulated", mask(10)))], ("manipulated", mask(8))),
    "unlike": ([("ann", WITH), ("bob", ("manipulated", mask(24)))], ("manipulated", None)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_holds(name: str, folder: Folder) -> None:
    given, expected = CASES[name]
    picture = {"image_id": "1", "uri": "file:///1", "member": None, "sha256": "5"}
    found = picture | {"label": "uncertain", "score": 0.5}
    other = review_of(found | {"image_id": "2", "uri": "file:///2"}, "authentic")
    reviews = [
        review_of(found, decision, reviewer=who, mask=drawn, after=after)
        for after, (who, (decision, drawn)) in enumerate(given)
    ]
    labels = labels_of(folder, *reversed(reviews), other)
    said = [(each.label, each.mask) for each in labels if each.uri == "file:///1"]
    assert said == ([expected] if expected else [])


def test_decisions_on_earlier_bytes_do_not_count(folder: Folder) -> None:
    old = {"image_id": "1", "uri": "file:///1", "member": None, "sha256": "5", "label": "uncertain"}
    old["score"] = 0.5
    new = review_of(old | {"sha256": "6"}, "authentic", reviewer="bob", after=1)
    (label,) = labels_of(folder, review_of(old, "mask_wrong"), new)
    assert (label.label, label.sha256) == ("authentic", "6")


def test_a_picture_that_changed_since_its_review_is_a_fault(
    store: Store, row: Row, photographs: Mapping[str, bytes]
) -> None:
    labels = labels_of(store, review_of(row, "authentic"))
    check_images(labels, Faults("out"))
    store.put("in/rocket.jpg", photographs["astronaut.jpg"])
    with pytest.raises(BadLabels, match=r"rocket\.jpg: fetch_failed: its bytes have changed"):
        check_images(labels, Faults("out"))


def test_where_nobody_is_sure_there_is_no_truth(folder: Folder) -> None:
    picture = {"image_id": "1", "uri": "file:///1", "member": None, "sha256": "5", "score": 0.5}
    with pytest.raises(EmptySource, match="no image yet on which reviewers agree"):
        labels_of(folder, review_of(picture | {"label": "uncertain"}, "unsure"))


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more"])
def test_a_damaged_file_is_named(damage: bytes, folder: Folder) -> None:
    name = folder.put("out/reviews/review-1.parquet", damage)
    with pytest.raises(BadLabels, match=r"review-1\.parquet holds no review"):
        read_labels(f"{folder.uri}/out")
    folder.remove("out/reviews/review-1.parquet")
    assert name not in read_reviews(f"{folder.uri}/out/reviews")


def test_any_damaged_byte_is_named_or_harmless(row: Row, folder: Folder) -> None:
    name = write_review(f"{folder.uri}/out/reviews", review_of(row, "manipulated", mask=mask(3)))
    whole = storage.read_bytes(name)
    for at in range(0, len(whole), 7):
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        storage.write(name, damaged)
        with suppress(BadLabels):
            read_reviews(f"{folder.uri}/out/reviews")


def test_a_decision_is_read_as_it_was_written(store: Store, row: Row) -> None:
    review = review_of(row, "manipulated", mask=mask(3), note="the moon\n\u202e")
    name = write_review(f"{store.uri}/out/reviews", review)
    assert read_reviews(f"{store.uri}/out/reviews") == {name: [review]}
    assert read_reviews(f"{store.uri}/out/reviews", {name}) == {}
    assert review.mask
    assert load_mask(review.mask).sum() == 3 * SIZE[0]
