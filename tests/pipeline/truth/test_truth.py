"""Truth in every form in which people keep it gives the same labels, and faults by row."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from prompt_iml.engine.errors import BadLabels, MissingInput, UsageError
from prompt_iml.pipeline.truth import (
    Faults,
    Label,
    Rle,
    check_images,
    read_images,
    read_labels,
    truth_of,
)
from prompt_iml.pipeline.truth.coco import coco_labels
from prompt_iml.pipeline.truth.masks import bright, load_mask
from tests.helpers.archives import TarOf
from tests.helpers.stores import Folder, Store

CASIA = Path(__file__).parents[4] / "shared/data/casia1_dev"
SIZE = (24, 32)  # height and width


def jpeg(orientation: int | None = None, size: tuple[int, int] = SIZE) -> bytes:
    sink, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x112] = orientation
    picture = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size))
    picture.save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def corner(size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[: size[0] // 3, : size[1] // 2] = True
    return mask


def png(mask: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Write a manipulated image with its mask, and an authentic one."""
    for name, data in {"a.jpg": jpeg(), "b.jpg": jpeg(1), "a.png": png(corner())}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


PAIRS = "image,mask\na.jpg,a.png\nb.jpg,\n"
PARQUET = io.BytesIO()
pq.write_table(pa.table({"Image": ["a.jpg", "b.jpg"], "mask": [png(corner()), None]}), PARQUET)
FORMS = {
    "plain.csv": PAIRS.encode(),
    "excel.csv": PAIRS.encode("utf-8-sig"),
    "windows.csv": PAIRS.replace("\n", "\r\n").encode(),
    "semicolon.csv": PAIRS.replace(",", ";").encode(),
    "sep.csv": b"sep=;\n" + PAIRS.replace(",", ";").encode(),
    "tabs.tsv": PAIRS.replace(",", "\t").encode(),
    "utf16.csv": PAIRS.encode("utf-16"),
    "packed.csv.gz": gzip.compress(PAIRS.encode()),
    "other.csv": b"Mask_Path, FileName, label\na.png, a.jpg, 1\n, b.jpg, 0\n",
    "no_header.txt": b"a.jpg,a.png,a.jpg\nb.jpg,None,b.jpg\n",
    "rows.jsonl": b'{"image": "a.jpg", "gt": "a.png"}\n{"image": "b.jpg", "gt": null}\n',
    "pairs.json": b'[["a.jpg", "a.png"],\n ["b.jpg", "Negative"]]',
    "objects.json": b'[{"path": "a.jpg", "mask": "a.png"}, {"path": "b.jpg", "mask": ""}]',
    "labels.parquet": PARQUET.getvalue(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_table(name: str, place: Path) -> None:
    (place / name).write_bytes(FORMS[name])
    first, second = read_labels(place / name)
    assert [each.uri for each in (first, second)] == [f"file://{place}/{n}.jpg" for n in "ab"]
    assert truth_of(first, SIZE, None).manipulated
    assert first.mask is not None
    assert (load_mask(first.mask) == corner()).all()
    assert (second.label, second.mask) == ("authentic", None)


def test_names_are_relative_to_the_table_or_to_where_one_stands(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "lists").mkdir()
    (place / "lists" / "a.csv").write_text("image,mask\na.jpg,a.png\nc.jpg,\n")
    (place / "lists" / "c.jpg").write_bytes(jpeg())
    monkeypatch.chdir(place)
    first, second = read_labels("lists/a.csv")
    assert first.mask == f"file://{place}/a.png"
    assert (first.uri, second.uri) == (f"file://{place}/a.jpg", f"file://{place}/lists/c.jpg")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "picture,mask\n", "add the column image$"),
        ("a.csv", "image\na.jpg\n", "add the column mask or label$"),
        ("a.csv", "", "add the column image, mask or label$"),
        ("a.json", "[[", "no JSON"),
        ("a.json", '[["a.jpg", "a.png"], 3]', r"row 1 \(from 0\): is neither"),
        ("a.json", '[["a.jpg"]]', r"row 0 \(from 0\): is neither an object nor a pair"),
        ("a.json", '[["a.jpg", 3]]', r"row 0 \(from 0\): is neither an object nor a pair"),
        ("a.json", '[{"image": "a.jpg", "mask_pth": "a.png"}]', "add the column mask or label$"),
        ("a.csv", "image,label\na.jpg,odd\nb.jpg,1\n,0\n", "2 faulty rows .*row 0: .*'odd'.*row 2"),
    ],
)
def test_a_wrong_table_is_refused(name: str, content: str, message: str, place: Path) -> None:
    (place / name).write_text(content)
    with pytest.raises(UsageError, match=message) as raised:
        read_labels(place / name)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_column_of_embedded_pictures_is_refused_in_one_line(column: str, place: Path) -> None:
    row = {"image": "a.jpg", "mask": "a.png", column: {"bytes": jpeg(), "path": "a.jpg"}}
    pq.write_table(pa.Table.from_pylist([row]), place / "a.parquet")
    with pytest.raises(BadLabels, match=f"the column {column} holds no names") as raised:
        read_labels(place / "a.parquet")
    assert len(str(raised.value)) < 300


def test_the_first_of_json_lines_may_be_long(place: Path) -> None:
    rows = [{"image": "a.jpg", "mask": "", "note": "x" * 9000}, {"image": "a.jpg", "mask": ""}]
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_labels(place / "a.jsonl")) == 2


@pytest.mark.parametrize("unknown", ["1", 2, [1], None])
def test_an_annotation_of_no_image_is_a_fault(unknown: Any, place: Path) -> None:
    """Else the picture that it belongs to would count as authentic."""
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "annotations": [{"image_id": unknown, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
    }
    (place / "a.json").write_text(json.dumps(document))
    with pytest.raises(BadLabels, match="annotations have the image_id"):
        read_labels(place / "a.json")


def test_an_image_may_be_listed_twice(place: Path, tar_of: TarOf) -> None:
    (place / "s.tar").write_bytes(tar_of({"x.jpg": jpeg(), "y.jpg": jpeg(1)}))
    rows = ["s.tar#y.jpg,a.png", "a.jpg,", "s.tar#x.jpg,", "s.tar#y.jpg,", "a.jpg,a.png"]
    (place / "a.csv").write_text("\n".join(["image,mask", *rows]))
    read = list(read_images(read_labels(place / "a.csv")))
    assert sorted(label.row for label, _ in read) == [0, 1, 2, 3, 4]
    of_y = [sample.data for label, sample in read if label.member == "y.jpg"]
    assert of_y == [jpeg(1)] * 2


def test_a_name_in_latin_1_is_named_as_missing(place: Path) -> None:
    (place / "a.csv").write_bytes(f"{PAIRS}caf\u00e9.jpg,\n".encode("latin-1"))
    with pytest.raises(BadLabels, match=r"row 2 .*caf\\xe9\.jpg: not_found"):
        check_images(read_labels(place / "a.csv"), Faults("a.csv"))


def test_all_faults_of_the_images_and_masks_are_reported_together(place: Path) -> None:
    (place / "small.png").write_bytes(png(corner((8, 8))))
    (place / "text.png").write_text("no image")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    rows = ["gone.jpg,", "a.jpg,small.png", "b.jpg,text.png", "broken.jpg,a.png"]
    rows += [f"gone-{n}.jpg," for n in range(9)]
    (place / "a.csv").write_text("\n".join(["image,mask", *rows]))
    with pytest.raises(BadLabels) as raised:
        check_images(read_labels(place / "a.csv"), Faults("a.csv"))
    told = str(raised.value)
    assert told.startswith("a.csv has 12 faulty rows (from 0): row 0: ")
    assert told.endswith("; and 2 more")
    for part in ("gone.jpg: not_found", "a.jpg: has a mask of (8, 8) pixels", "text.png"):
        assert part in told
    assert "broken.jpg" not in told  # it is counted as failed, and ends no evaluation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_picture_as_shown_is_turned_back(orientation: int) -> None:
    shown = Image.open(io.BytesIO(png(corner())))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)  # fmt: skip
    drawn = np.asarray(shown.transpose(turn) if turn and orientation > 4 else shown)
    label = Label(0, "file:///a.jpg", None, None, png(drawn))
    mask = truth_of(label, SIZE, orientation).mask
    assert mask is not None
    assert (mask == corner()).all()


def test_a_mask_of_another_size_is_refused() -> None:
    label = Label(0, "file:///a.jpg", None, None, png(corner(SIZE[::-1])))
    for orientation in (None, 1, 3):
        with pytest.raises(ValueError, match=r"mask of \(24, 32\) pixels for .*\(32, 24\)"):
            truth_of(label, SIZE, orientation)


def test_masks_of_0_and_1_are_masks() -> None:
    assert (bright(Image.fromarray(corner().astype(np.uint8))) == corner()).all()


def test_a_mask_in_a_dark_colour_is_not_taken_for_a_black_one() -> None:
    for dark in (2, 76, 127):  # pure red is 76
        with pytest.raises(ValueError, match=f"no pixel above 127, and is not black .{dark}."):
            bright(Image.fromarray(corner().astype(np.uint8) * dark))


def test_a_black_mask_is_of_an_authentic_image_unless_the_label_says_otherwise() -> None:
    black = png(np.zeros(SIZE, bool))
    assert not truth_of(Label(0, "file:///a", None, None, black), SIZE, None).manipulated
    assert not truth_of(Label(0, "file:///a", None, "authentic", black), SIZE, None).manipulated
    with pytest.raises(ValueError, match="without a pixel above 127"):
        truth_of(Label(0, "file:///a", None, "manipulated", black), SIZE, None)
    with pytest.raises(ValueError, match="mask authentic"):
        truth_of(Label(0, "file:///a", None, "authentic", png(corner())), SIZE, None)


def test_folders_of_a_benchmark(store: Store) -> None:
    for name in ("Tp/t.jpg", "Tp/u.jpg", "Au/a.jpg", "notes.txt"):
        store.put(f"set/{name}", jpeg())
    store.put("set/Gt/T_gt.png", png(corner()))
    labels = {label.uri.rpartition("/")[2]: label for label in read_labels(f"{store.uri}/set")}
    assert labels["a.jpg"].label == "authentic"
    assert (labels["u.jpg"].label, labels["u.jpg"].mask) == ("manipulated", None)
    assert labels["t.jpg"].mask == f"{store.uri}/set/Gt/T_gt.png"
    check_images(list(labels.values()), Faults("set"))
    store.put("set/Gt/nobody.png", png(corner()))
    with pytest.raises(BadLabels, match=r"mask .*nobody.png belongs to no image"):
        read_labels(f"{store.uri}/set")


def test_folders_of_images_and_masks(tmp_path: Path) -> None:
    files = Folder(tmp_path)
    for name in ("images/1_mask.jpg", "images/2.jpg", "images/3.jpg"):
        files.put(name, jpeg())
    files.put("masks/1_mask.png", png(corner()))
    files.put("masks/2.png", png(np.zeros(SIZE, bool)))
    labels = read_labels(tmp_path)
    found = [truth_of(label, SIZE, None).manipulated for label in labels]
    assert found == [True, False, False]
    assert [label.label for label in labels] == [None, None, "authentic"]


def test_masks_beside_their_images_as_in_imd2020(tmp_path: Path) -> None:
    files = Folder(tmp_path)
    for name in ("a/a_orig.jpg", "a/b_0.jpg", "a/b_1.jpg"):
        files.put(name, jpeg())
    for name in ("a/b_0_mask.png", "a/b_1_mask.png"):
        files.put(name, png(corner()))
    labels = read_labels(tmp_path)
    assert [label.label for label in labels] == ["authentic", "manipulated", "manipulated"]
    check_images(labels, Faults("set"))
    files.put("a/b_2.jpg", jpeg())
    files.put("a/c_mask.png", png(corner()))
    with pytest.raises(BadLabels, match=r"(?s)b_2.jpg has no mask beside it.*c_mask.png belongs"):
        read_labels(tmp_path)


def test_the_masks_of_coverage(tmp_path: Path) -> None:
    files = Folder(tmp_path)
    for name in ("image/1.tif", "image/1t.tif"):
        files.put(name, jpeg())
    for name in ("copy", "forged", "paste"):
        files.put(f"mask/1{name}.tif", png(corner()))
    found = {label.uri[-6:]: (label.mask or "none")[-11:] for label in read_labels(tmp_path)}
    assert found == {"/1.tif": "none", "1t.tif": "1forged.tif"}


def test_a_folder_of_tables_of_labels(tmp_path: Path) -> None:
    for name, uri in (("a", "file:///1.jpg"), ("b", "file:///2.jpg")):
        pq.write_table(
            pa.table({"uri": [uri], "label": ["manipulated"]}), tmp_path / f"{name}.parquet"
        )
    labels = read_labels(tmp_path)
    assert [(each.row, each.uri) for each in labels] == [(0, "file:///1.jpg"), (1, "file:///2.jpg")]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    Folder(tmp_path).put("holiday/1.jpg", jpeg())
    with pytest.raises(UsageError, match="it needs the folders Tp, Gt and Au"):
        read_labels(tmp_path)
    with pytest.raises(MissingInput, match="no such file"):
        read_labels(tmp_path / "nowhere")


def coco_file(place: Path, *segmentations: Any) -> Path:
    image = {"id": 7, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    annotations = [
        {"id": n, "image_id": 7, "category_id": 1, "segmentation": each}
        for n, each in enumerate(segmentations, 1)
    ]
    document = {"images": [image, {**image, "id": 8, "file_name": "b.jpg"}]}
    path = place / "instances.json"
    path.write_text(json.dumps(document | {"annotations": annotations, "categories": []}))
    return path


def segmentations() -> dict[str, Any]:
    compressed = coco.encode(np.asfortranarray(corner().astype(np.uint8)))["counts"].decode()
    columns = [8, 16] * 15 + [8, 16 + 16 * 24]
    height, width = SIZE[0] // 3, SIZE[1] // 2
    return {
        "compressed": {"size": SIZE, "counts": compressed},
        "runs": {"size": SIZE, "counts": [0, *columns]},
        "polygon": [[0, 0, width, 0, width, height, 0, height]],
    }


@pytest.mark.parametrize("form", segmentations())
def test_coco_annotations(form: str, place: Path) -> None:
    first, second = read_labels(coco_file(place, segmentations()[form]))
    assert isinstance(first.mask, Rle)
    assert (load_mask(first.mask) == corner()).all()
    assert (second.label, second.mask) == ("authentic", None)


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("gs://bucket/x.jpg", "gs://bucket/x.jpg"),
        ("https://server/x.jpg", "file:///in/a.jpg"),
        ("http://server/x.jpg", "file:///in/a.jpg"),
    ],
)
def test_coco_url_names_an_object_and_no_web_server(url: str, uri: str) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "coco_url": url}]
    document = {"images": images, "annotations": []}
    assert [label.uri for label in coco_labels(document, "file:///in/it.json", Faults("it"))] == [
        uri
    ]


@pytest.mark.parametrize(
    "shape",
    [
        {"size": SIZE, "counts": [0, 10**9]},
        {"size": SIZE, "counts": "oooooooo0"},
        {"size": SIZE, "counts": ""},
        [[0, 0, 1e308, 5]],
        [],
        None,
        [["a"]],
        [[0, 0, 9, 0, 9, None]],
        {"size": SIZE, "counts": [10**30]},
    ],
)
def test_an_annotation_that_does_not_fit_is_a_fault(shape: Any, place: Path) -> None:
    with pytest.raises(BadLabels, match=r"row 0 \(from 0\)"):
        read_labels(coco_file(place, shape))


@pytest.mark.parametrize("name", ["images/a.jpg", "images/train/a.jpg"])
def test_images_of_coco_lie_where_tools_write_them(name: str, tmp_path: Path) -> None:
    for each in (name, "data/b.jpg"):
        Folder(tmp_path).put(each, jpeg())
    (tmp_path / "annotations").mkdir()
    file = coco_file(tmp_path / "annotations", segmentations()["polygon"])
    labels = read_labels(file.rename(file.with_stem("instances_train")))
    assert [sample.error for _, sample in read_images(labels)] == [None, None]


@pytest.mark.skipif(not CASIA.exists(), reason="needs ../shared/data/casia1_dev")
def test_casia_is_the_same_by_its_manifest_and_by_its_folders() -> None:
    by_manifest, by_folders = read_labels(CASIA / "manifest.csv"), read_labels(CASIA)
    assert len(by_manifest) == 507
    assert {(e.uri, e.mask) for e in by_manifest} == {(e.uri, e.mask) for e in by_folders}
    check_images(by_folders, Faults("casia"))
