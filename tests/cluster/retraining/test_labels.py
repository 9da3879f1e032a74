"""Reviewers' labels: reading, errors that name the row, training examples, split by content."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml.cluster.retraining.labels import (
    LabelledExamples,
    LabelledImage,
    evaluate_labels,
    fetch_images,
    mask_of,
)
from prompt_iml.engine.errors import BadLabels, EmptySource, MissingInput
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.truth import Label, read_labels
from tests.helpers.archives import TarOf
from tests.helpers.stores import Folder, Store

Row = Mapping[str, Any]
SIZE = (300, 420)  # height and width; neither is a multiple of 8


def picture(seed: int, size: tuple[int, int] = SIZE, encoding: str = "JPEG") -> bytes:
    """Return a smooth random picture, saved at quality 80."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1]).save(sink, encoding, quality=80)
    return sink.getvalue()


def mask_png(size: tuple[int, int] = SIZE, *, empty: bool = False) -> bytes:
    mask = np.zeros(size, bool)
    mask[-40:-10, 200:230] = not empty
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "PNG")
    return sink.getvalue()


def write(store: Store, rows: Sequence[Row]) -> str:
    sink = io.BytesIO()
    columns = {name: [row.get(name) for row in rows] for name in ("uri", "member", "label", "mask")}
    kinds = {"uri": pa.string(), "member": pa.string(), "label": pa.string(), "mask": pa.binary()}
    pq.write_table(pa.table(columns, pa.schema(kinds)), sink)
    return store.put("labels.parquet", sink.getvalue())


def one_of(*, held_back: bool, after: int) -> bytes:
    """Return a picture that is (or is not) held back."""
    for seed in range(after, after + 100):
        data = picture(seed)
        if probe(data, "authentic").held_back == held_back:
            return data
    raise AssertionError("no such picture")


def probe(data: bytes, label: Any, mask: bytes | None = None) -> LabelledImage:
    row = Label(0, "file:///x", None, label, mask)
    return LabelledImage(
        row, data, hashlib.sha256(data).hexdigest(), *SIZE, manipulated=label == "manipulated"
    )


def test_images_of_folders_and_shards(store: Store, tar_of: TarOf) -> None:
    pictures = {f"{seed}.jpg": picture(seed) for seed in range(4)}
    shard = store.put("a.tar", tar_of({n: pictures[n] for n in ("2.jpg", "1.jpg", "3.jpg")}))
    plain = store.put("0.jpg", pictures["0.jpg"])
    sink = io.BytesIO()
    pq.write_table(pa.table({"jpg": [picture(4), picture(5)]}), sink)
    table = store.put("a.parquet", sink.getvalue())
    labels = write(
        store,
        [
            {"uri": shard, "member": "3.jpg", "label": "manipulated", "mask": mask_png()},
            {"uri": plain, "label": "authentic"},
            {"uri": shard, "member": "2.jpg", "label": "manipulated"},
            {"uri": table, "member": "1", "label": "authentic"},
        ],
    )
    images = fetch_images(labels)
    assert [image.label.row for image in images] == [0, 1, 2, 3]
    named = [pictures[n] for n in ("3.jpg", "0.jpg", "2.jpg")]
    assert [image.data for image in images] == [*named, picture(5)]
    assert mask_of(images[0]).sum() == 30 * 30
    assert not mask_of(images[1]).any()
    assert images[2].held_back  # no mask: it never trains
    assert not images[2].trains


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": "GOOD", "label": "uncertain"}, "has the label 'uncertain'"),
        ({"uri": "", "label": "authentic"}, "has no image"),
        ({"uri": "ftp://x/y", "label": "authentic"}, "cannot read"),
        ({"uri": "NONE", "label": "authentic"}, "not_found"),
        ({"uri": "TEXT", "label": "authentic"}, "unsupported"),
        ({"uri": "SHARD", "member": "9.jpg", "label": "authentic"}, "names the image 9.jpg, which"),
        ({"uri": "NONE", "member": "9.jpg", "label": "authentic"}, "no such input"),
        ({"uri": "GOOD", "member": "9.jpg", "label": "authentic"}, "names the image 9.jpg, which"),
        (
            {"uri": "GOOD", "label": "authentic", "mask": mask_png()},
            "an image with a mask authentic",
        ),
        ({"uri": "GOOD", "label": "manipulated", "mask": b"GIF"}, "mask that is not a PNG"),
        (
            {"uri": "GOOD", "label": "manipulated", "mask": mask_png()[:90]},
            "mask that is not a PNG",
        ),
        (
            {"uri": "GOOD", "label": "manipulated", "mask": mask_png((420, 300))},
            r"mask of \(300, 420\) pixels for a stored image of \(420, 300\)",
        ),
        (
            {"uri": "GOOD", "label": "manipulated", "mask": mask_png(empty=True)},
            "mask without a pixel above",
        ),
        ({"uri": "FIRST", "label": "manipulated"}, "contradicts row 0, which has the same bytes"),
        ({"uri": "TWIN", "label": "manipulated"}, "contradicts row 0"),
    ],
)
def test_a_bad_row_is_named(row: Row, message: str, folder: Folder, tar_of: TarOf) -> None:
    uris = {
        "FIRST": folder.put("first.jpg", picture(1)),
        "TWIN": folder.put("twin.jpg", picture(1)),
        "GOOD": folder.put("good.jpg", picture(2)),
        "TEXT": folder.put("text.txt", b"no image"),
        "SHARD": folder.put("a.tar", tar_of({"1.jpg": picture(3)})),
        "NONE": f"{folder.uri}/none.jpg",
    }
    rows = [{"uri": uris["FIRST"], "label": "authentic"}, {**row, "uri": uris.get(row["uri"], "")}]
    if row["uri"].startswith("ftp"):
        rows[1]["uri"] = row["uri"]
    with pytest.raises(
        BadLabels, match=rf"labels\.parquet row 1 \(from 0\): .*{message}"
    ) as raised:
        fetch_images(write(folder, rows))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_duplicate_images_keep_the_mask(folder: Folder, reverse: bool) -> None:
    bare, masked = ({"uri": folder.put(n, picture(1)), "label": "manipulated"} for n in "ab")
    rows: list[Row] = [bare, {**masked, "mask": mask_png()}]
    (image,) = fetch_images(write(folder, rows[::-1] if reverse else rows))
    assert mask_of(image).sum() == 30 * 30
    other = Image.open(io.BytesIO(mask_png())).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    sink = io.BytesIO()
    other.save(sink, "PNG")
    with pytest.raises(BadLabels, match="another mask than row 0"):
        fetch_images(write(folder, [{**bare, "mask": sink.getvalue()}, rows[1]]))


def test_members_that_are_not_utf8_are_named_as_in_the_results(
    folder: Folder, tar_of: TarOf
) -> None:
    shard = folder.put("a.tar", tar_of({os.fsdecode(b"caf\xe9.jpg"): picture(1)}))
    row = {"uri": shard, "member": "caf\\xe9.jpg", "label": "authentic"}
    assert len(fetch_images(write(folder, [row]))) == 1


def test_images_without_mask_count_except_in_pixel_measures(folder: Folder) -> None:
    model = load_model("prompt-iml-micro")
    none = {"authentic_below": 0.0, "manipulated_at_sizes": (), "min_side": None}
    policy = replace(model.policy, manipulated_at=1e-6, **none)
    masked = one_of(held_back=True, after=0)
    rows: list[Row] = [
        {"uri": folder.put("m.jpg", masked), "label": "manipulated", "mask": mask_png()}
    ]
    rows += [
        {"uri": folder.put(f"{n}.jpg", picture(500 + n)), "label": "manipulated"} for n in (1, 2)
    ]
    images = fetch_images(write(folder, rows))
    result = evaluate_labels(open_engine(model), model, policy, images, folder.path)
    assert result
    assert (result.forged, result.masked, result.true_positive_rate) == (3, 1, 1.0)
    assert 0 <= result.f1 <= 1


def test_a_bad_labels_file_is_refused(store: Store) -> None:
    with pytest.raises(MissingInput, match="no such file"):
        read_labels(f"{store.uri}/none.parquet")
    with pytest.raises(EmptySource, match="lists no image"):
        read_labels(store.put("a.csv", b"uri,label\n"))
    with pytest.raises(BadLabels, match="not a Parquet file"):
        read_labels(store.put("a.parquet", b"PAR1 and no more"))
    with pytest.raises(EmptySource, match="lists no image"):
        read_labels(write(store, []))
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a"]}), sink)
    with pytest.raises(BadLabels, match="add the column mask or label"):
        read_labels(store.put("b.parquet", sink.getvalue()))


@pytest.fixture
def labels(folder: Folder) -> str:
    """Write labels of two images that train, one of each kind, and of two held-back images."""
    rows: list[Row] = []
    for held_back in (False, True):
        for n, label in enumerate(("authentic", "manipulated")):
            uri = folder.put(f"{held_back}-{label}.jpg", one_of(held_back=held_back, after=100 * n))
            mask = mask_png() if label == "manipulated" else None
            rows.append({"uri": uri, "label": label, "mask": mask})
    return write(folder, rows)


def test_examples_lie_on_the_grid_and_repeat(labels: str) -> None:
    examples = LabelledExamples(labels)
    trained = {
        image.manipulated: np.asarray(Image.open(io.BytesIO(image.data)))
        for image in fetch_images(labels)
        if image.trains
    }
    kinds = []
    for seed in range(20):
        example = examples.example(3, seed)
        again = examples.example(3, seed)
        assert np.array_equal(example.pixels, again.pixels)
        assert example.pixels.shape == (256, 256, 3)
        assert example.mask.shape == (256, 256)
        assert example.qtable.shape == (64,)
        assert example.qtable.max() > 1
        assert example.mask.any() == (example.kind == "labelled")
        assert on_grid(example.pixels, trained[example.kind == "labelled"])
        kinds.append(example.kind)
    assert 4 < kinds.count("labelled") < 16


def on_grid(window: np.ndarray, whole: np.ndarray) -> bool:
    height, width, _ = whole.shape
    return any(
        np.array_equal(window, whole[row : row + 256, column : column + 256])
        for row in range(0, height - 255, 8)
        for column in range(0, width - 255, 8)
    )


def test_held_back_images_never_train(labels: str) -> None:
    held_back = [image.data for image in fetch_images(labels) if image.held_back]
    assert len(held_back) == 2
    examples = LabelledExamples(labels)
    windows = {examples.example(seed).pixels.tobytes() for seed in range(30)}
    for data in held_back:
        whole = np.asarray(Image.open(io.BytesIO(data)))
        assert not any(
            on_grid(np.frombuffer(one, np.uint8).reshape(256, 256, 3), whole) for one in windows
        )


def test_about_a_fifth_is_held_back() -> None:
    rng = np.random.default_rng(0)
    sides = [probe(rng.bytes(32), "authentic").held_back for _ in range(1000)]
    assert 150 < sum(sides) < 250


def test_small_images_and_images_without_mask_do_not_train(folder: Folder) -> None:
    rows = [
        {"uri": folder.put("s.jpg", picture(1, (200, 400))), "label": "authentic"},
        {"uri": folder.put("m.jpg", picture(2)), "label": "manipulated"},
    ]
    with pytest.raises(BadLabels, match="label more"):
        LabelledExamples(write(folder, rows))
