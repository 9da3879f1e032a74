"""Reviewers' labels: read, checked with the row named, cut into examples, split by content."""

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
    Label,
    LabelledExamples,
    LabelledImage,
    fetch_images,
    judge_labels,
    mask_of,
    read_labels,
)
from prompt_iml.engine.errors import BadLabels, EmptySource, MissingInput
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from tests.conftest import Folder, Store, TarOf

Row = Mapping[str, Any]
SIZE = (300, 420)  # height and width; neither is a multiple of 8


def picture(seed: int, size: tuple[int, int] = SIZE, encoding: str = "JPEG") -> bytes:
    """A tame picture of its own, saved at quality 80."""
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
    """A picture whose content lies on that side of the split."""
    for seed in range(after, after + 100):
        data = picture(seed)
        if probe(data, "authentic").held_back == held_back:
            return data
    raise AssertionError("the split is far from its share")


def probe(data: bytes, label: Any, mask: bytes | None = None) -> LabelledImage:
    row = Label(0, "file:///x", None, label, mask)
    return LabelledImage(row, data, hashlib.sha256(data).hexdigest(), *SIZE)


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
    ("row", "said"),
    [
        ({"uri": "GOOD", "label": "forged"}, "label 'forged' is neither"),
        ({"uri": "GOOD"}, "label None is neither"),
        ({"uri": "", "label": "authentic"}, "names no uri"),
        ({"uri": "ftp://x/y", "label": "authentic"}, "cannot read"),
        ({"uri": "NONE", "label": "authentic"}, "not_found"),
        ({"uri": "TEXT", "label": "authentic"}, "unsupported"),
        ({"uri": "SHARD", "member": "9.jpg", "label": "authentic"}, "has no image 9.jpg"),
        ({"uri": "NONE", "member": "9.jpg", "label": "authentic"}, "no such input"),
        ({"uri": "GOOD", "member": "9.jpg", "label": "authentic"}, "has no image 9.jpg"),
        ({"uri": "GOOD", "label": "authentic", "mask": mask_png()}, "authentic image has a mask"),
        ({"uri": "GOOD", "label": "manipulated", "mask": b"GIF"}, "mask is no PNG"),
        ({"uri": "GOOD", "label": "manipulated", "mask": mask_png()[:90]}, "mask is no PNG"),
        (
            {"uri": "GOOD", "label": "manipulated", "mask": mask_png((420, 300))},
            r"mask has \(300, 420\) pixels and its stored image \(420, 300\)",
        ),
        ({"uri": "GOOD", "label": "manipulated", "mask": mask_png(empty=True)}, "no pixel above"),
        ({"uri": "FIRST", "label": "manipulated"}, "image of row 0 again"),
        ({"uri": "TWIN", "label": "manipulated"}, "contradicts row 0"),
    ],
)
def test_a_bad_row_is_named(row: Row, said: str, folder: Folder, tar_of: TarOf) -> None:
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
    with pytest.raises(BadLabels, match=rf"labels\.parquet row 1 \(from 0\): .*{said}") as raised:
        fetch_images(write(folder, rows))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_labels_of_the_same_bytes_the_mask_is_kept(folder: Folder, turned: bool) -> None:
    bare, drawn = ({"uri": folder.put(n, picture(1)), "label": "manipulated"} for n in "ab")
    rows: list[Row] = [bare, {**drawn, "mask": mask_png()}]
    (image,) = fetch_images(write(folder, rows[::-1] if turned else rows))
    assert image.label.mask == mask_png()
    other = Image.open(io.BytesIO(mask_png())).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    sink = io.BytesIO()
    other.save(sink, "PNG")
    with pytest.raises(BadLabels, match="another mask than row 0"):
        fetch_images(write(folder, [{**bare, "mask": sink.getvalue()}, rows[1]]))


def test_a_name_that_is_no_text_is_labelled_as_the_results_show_it(
    folder: Folder, tar_of: TarOf
) -> None:
    shard = folder.put("a.tar", tar_of({os.fsdecode(b"caf\xe9.jpg"): picture(1)}))
    row = {"uri": shard, "member": "caf\\xe9.jpg", "label": "authentic"}
    assert len(fetch_images(write(folder, [row]))) == 1


def test_what_has_no_mask_counts_in_all_but_the_pixel_measures(folder: Folder) -> None:
    model = load_model("prompt-iml-micro")
    policy = replace(model.policy, manipulated_at=1e-6, authentic_below=0.0, min_side=None)
    masked = one_of(held_back=True, after=0)
    rows: list[Row] = [
        {"uri": folder.put("m.jpg", masked), "label": "manipulated", "mask": mask_png()}
    ]
    rows += [
        {"uri": folder.put(f"{n}.jpg", picture(500 + n)), "label": "manipulated"} for n in (1, 2)
    ]
    images = fetch_images(write(folder, rows))
    result = judge_labels(open_engine(model), model, policy, images, folder.path)
    assert result
    assert (result.forged, result.masked, result.true_positive_rate) == (3, 1, 1.0)
    assert 0 <= result.f1 <= 1


def test_a_file_that_holds_no_labels(store: Store) -> None:
    with pytest.raises(MissingInput, match="no such labels"):
        read_labels(f"{store.uri}/none.parquet")
    with pytest.raises(BadLabels, match="no Parquet file"):
        read_labels(store.put("a.csv", b"uri,label\n"))
    with pytest.raises(EmptySource, match="no row"):
        read_labels(write(store, []))
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a"]}), sink)
    with pytest.raises(BadLabels, match="no column label"):
        read_labels(store.put("b.parquet", sink.getvalue()))


@pytest.fixture
def labels(folder: Folder) -> str:
    """Two images that train, one of each kind, and two that are held back."""
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


def test_what_is_held_back_is_never_an_example(labels: str) -> None:
    held_back = [image.data for image in fetch_images(labels) if image.held_back]
    assert len(held_back) == 2
    examples = LabelledExamples(labels)
    shown = {examples.example(seed).pixels.tobytes() for seed in range(30)}
    for data in held_back:
        whole = np.asarray(Image.open(io.BytesIO(data)))
        assert not any(
            on_grid(np.frombuffer(one, np.uint8).reshape(256, 256, 3), whole) for one in shown
        )


def test_about_a_fifth_is_held_back() -> None:
    rng = np.random.default_rng(0)
    sides = [probe(rng.bytes(32), "authentic").held_back for _ in range(1000)]
    assert 150 < sum(sides) < 250


def test_small_images_and_masks_missing_leave_nothing_to_train_on(folder: Folder) -> None:
    rows = [
        {"uri": folder.put("s.jpg", picture(1, (200, 400))), "label": "authentic"},
        {"uri": folder.put("m.jpg", picture(2)), "label": "manipulated"},
    ]
    with pytest.raises(BadLabels, match="label more"):
        LabelledExamples(write(folder, rows))
