"""Findings in the forms of other tools, read by these tools, and labels on their way back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from prompt_iml.engine.errors import MissingInput
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.export.coco import area_and_box
from prompt_iml.pipeline.export.export import export
from prompt_iml.pipeline.export.names import file_name
from prompt_iml.pipeline.export.rows import Selection
from prompt_iml.pipeline.report.pictures import overlay
from prompt_iml.pipeline.run.folder import Json, Run
from prompt_iml.pipeline.run.masks import decode_mask, encode_mask
from prompt_iml.pipeline.run.schema import RowWriter, image_id
from prompt_iml.pipeline.settings import ExportSettings
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, check_images, read_labels
from prompt_iml.pipeline.truth.masks import load_mask
from tests.helpers.archives import TarOf
from tests.helpers.stores import Store

SIZE = (40, 60)  # height and width


def picture(seed: int) -> bytes:
    sink = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(SIZE[::-1]).save(sink, "PNG")
    return sink.getvalue()


def mask_of(seed: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[3 + seed : 20, 5:30] = mask[25:, 50 - seed :] = True
    return mask


def row_of(uri: str, member: str | None, seed: int, label: str) -> dict[str, Any]:
    mask = mask_of(seed) if label == "manipulated" else np.zeros(SIZE, bool)
    row = {"image_id": image_id(uri, member), "uri": uri, "member": member, "label": label}
    row |= {"sha256": hashlib.sha256(picture(seed)).hexdigest(), "status": "ok", "score": 0.75}
    row |= {"height": SIZE[0], "width": SIZE[1], "mask_height": SIZE[0], "mask_width": SIZE[1]}
    row |= {"media_type": "image/png", "mask_confidence": 0.5}
    return row | {"mask_rle": encode_mask(mask), "regions": [], "run_id": "r1"}


def committed(output: str, inputs: list[str], *rows: dict[str, Any]) -> str:
    """Write a run of one part; return the output."""
    run = Run(output, "r1")
    run.bind({"inputs": inputs, "max_pixels": 10**7})
    writer = RowWriter("u1", "r1")
    for row in rows:
        writer.add(row)
    storage.create_once(run.part_uri("u1"), writer.close())
    run.commit({"parts": [{"file": "results/part-u1.parquet"}]})
    return output


@pytest.fixture
def output(store: Store, tar_of: TarOf) -> str:
    """Write a run of two members of a shard, of which one has another mask, of two plain images
    and of one that is damaged."""
    shard = store.put("in/s.tar", tar_of({"x/1.png": picture(1), "x/2.png": picture(2)}))
    rows = [
        row_of(shard, "x/1.png", 1, "manipulated"),
        row_of(shard, "x/2.png", 2, "authentic"),
        row_of(store.put("in/3.png", picture(3)), None, 3, "manipulated"),
        row_of(store.put("in/deep/4.png", picture(4)), None, 4, "uncertain"),
    ]
    bad = {"uri": f"{store.uri}/in/bad.jpg", "status": "failed", "error_code": "corrupt"}
    rows.append(bad | {"image_id": image_id(bad["uri"], None), "run_id": "r1"})
    return committed(f"{store.uri}/out", [f"{store.uri}/in"], *rows)


def exported(output: str, to: Any, **options: Any) -> Json:
    return export(ExportSettings(output=output, to=to, **options))


def read(path: str) -> str:
    return storage.read_bytes(path).decode()


def test_coco_is_read_by_pycocotools_with_equal_masks(output: str, tmp_path: Path) -> None:
    made = exported(output, "coco")
    assert (made["images"], made["masks"]) == (4, 2)
    assert made["path"] == f"{output}/exports/coco.json"
    (tmp_path / "coco.json").write_text(read(made["path"]))
    found = COCO(tmp_path / "coco.json")
    assert sorted(found.imgs) == [1, 2, 3, 4]
    assert sorted(found.anns) == [1, 2]
    names = [found.imgs[number]["file_name"] for number in (1, 2, 3, 4)]
    assert names == ["s.tar/x/1.png", "s.tar/x/2.png", "3.png", "deep/4.png"]
    for annotation, seed in zip(found.loadAnns([1, 2]), (1, 3), strict=True):
        rle = found.annToRLE(annotation)
        assert (decode_mask(rle["counts"].encode(), *rle["size"]) == mask_of(seed)).all()
        assert annotation["area"] == mask_of(seed).sum() == coco.area(rle)
        assert annotation["bbox"] == coco.toBbox(rle).tolist()
        assert (annotation["iscrowd"], annotation["score"]) == (0, 0.75)
        assert annotation["attributes"] == {"mask_confidence": 0.5}
    assert found.getImgIds(catIds=found.getCatIds(["manipulated"])) == [1, 3]


@pytest.mark.parametrize(
    ("inputs", "uris", "names"),
    [
        (["/in"], ["file:///in/a/1.jpg", "file:///in/a/2.jpg"], ["a/1.jpg", "a/2.jpg"]),
        (["/in/a", "/in/b"], ["file:///in/a/1.jpg", "file:///in/b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["list.txt"], ["s3://b/x/1.jpg", "s3://b/x/y/2.jpg"], ["1.jpg", "y/2.jpg"]),
        (["list.txt"], ["file:///x/1.jpg", "s3://x/1.jpg"], ["file/x/1.jpg", "s3/x/1.jpg"]),
        (["/in/1.jpg"], ["file:///in/1.jpg"], ["1.jpg"]),
    ],
)
def test_names_of_files_lead_below_one_folder(
    inputs: list[str], uris: list[str], names: list[str], tmp_path: Path
) -> None:
    """Datumaro, and so CVAT, refuses paths that lead outside of the folder of images."""
    rows = [row_of(uri, None, 1, "manipulated") for uri in uris]
    path = exported(committed(f"file://{tmp_path}", inputs, *rows), "coco")["path"]
    assert [image["file_name"] for image in json.loads(read(path))["images"]] == names


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("a/b.jpg", "s.tar/a/b.jpg"),
        ("7", "s.tar/7.png"),
        ("../up.jpg", "up-012345678901.png"),
        ("/etc/passwd", "image-012345678901.png"),
        ("x" * 300 + ".jpg", "x" * 80 + "-012345678901.png"),
        ("a\0b.jpg", "a_b-012345678901.png"),
    ],
)
def test_members_are_named_as_files_can_be(member: str, name: str) -> None:
    row = row_of("file:///in/s.tar", member, 1, "authentic") | {"image_id": "0123456789" * 2}
    assert file_name(row, "file:///in/") == name


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    """Datumaro refuses a score that is null."""
    row = row_of("file:///in/1.png", None, 1, "manipulated")
    row |= dict.fromkeys(("score", "label", "mask_confidence"))
    path = exported(committed(f"file://{tmp_path}", ["/in"], row), "coco")["path"]
    assert "null" not in read(path)
    assert json.loads(read(path))["annotations"][0]["attributes"] == {}


def test_images_are_copied_for_tools_that_open_no_shards(output: str, store: Store) -> None:
    made = exported(output, "coco", images=True)
    assert made["path"] == f"{output}/exports/coco.json"
    names = ["s.tar/x/1.png", "s.tar/x/2.png", "3.png", "deep/4.png"]
    copies = [storage.read_bytes(f"{output}/exports/images/{name}") for name in names]
    assert copies == [picture(seed) for seed in (1, 2, 3, 4)]
    store.remove("in/s.tar")
    made = exported(output, "coco", images=True, path=f"{store.uri}/set/annotations/a.json")
    assert (made["images"], made["masks"], made["missing"]) == (2, 1, 2)
    assert storage.read_bytes(f"{store.uri}/set/images/3.png") == picture(3)
    with pytest.raises(ValueError, match="--images goes with --to coco"):
        exported(output, "csv", images=True)


def test_coco_goes_back_as_labels(output: str) -> None:
    labels = read_labels(exported(output, "coco")["path"])
    assert [label.label == "manipulated" for label in labels] == [True, False, True, False]
    check_images(labels, Faults("coco"))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_area_and_box_are_those_of_pycocotools(
    height: int, width: int, data: st.DataObject
) -> None:
    bits = data.draw(st.integers(1, 2 ** (height * width) - 1))
    flat = [bool(bits >> place & 1) for place in range(height * width)]
    counts = encode_mask(np.array(flat).reshape(height, width))
    assert counts is not None
    rle = {"size": [height, width], "counts": counts}
    area, box = area_and_box(counts, height)
    assert (area, box) == (coco.area(rle), coco.toBbox(rle).tolist())


def test_masks_come_with_an_index_that_is_a_truth(output: str, tmp_path: Path) -> None:
    made = exported(output, "masks", label=["manipulated", "authentic"])
    assert (made["images"], made["masks"]) == (3, 2)
    labels = read_labels(f"{made['path']}/index.csv")
    check_images(labels, Faults("index"))
    assert [label.label for label in labels] == ["manipulated", "authentic", "manipulated"]
    masks = [label.mask for label in labels]
    assert masks[0] is not None
    assert masks[2] is not None
    assert masks[1] is None
    assert (load_mask(masks[0]) == mask_of(1)).all()
    assert (load_mask(masks[2]) == mask_of(3)).all()


def test_overlays_show_the_mask_on_the_image_that_was_scanned(output: str, store: Store) -> None:
    assert exported(output, "overlays")["missing"] == 0
    index = read(f"{output}/exports/overlays/index.csv")
    first, second = csv.DictReader(index.splitlines())
    assert [first["member"], second["member"]] == ["x/1.png", ""]
    file = storage.read_bytes(f"{output}/exports/overlays/{first['overlay']}")
    drawn = np.asarray(Image.open(io.BytesIO(file))).astype(int)
    pixels = np.asarray(Image.open(io.BytesIO(picture(1))))
    assert np.abs(drawn - overlay(pixels, mask_of(1))).mean() < 20
    store.put("in/3.png", picture(9))
    store.remove("in/s.tar")
    made = exported(output, "overlays", path=f"{store.uri}/other")
    assert (made["images"], made["missing"]) == (2, 2)


def test_tables_have_every_row_and_no_heat_map(output: str) -> None:
    assert exported(output, "csv")["rows"] == 5
    rows = list(csv.DictReader(read(f"{output}/exports/results.csv").splitlines()))
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"]
    assert rows[0].keys() >= {"uri", "member", "score", "regions"}
    assert not rows[0].keys() & {"mask_rle", "heatmap_png"}
    assert exported(output, "jsonl", label=["manipulated"])["rows"] == 2
    lines = read(f"{output}/exports/results.jsonl").splitlines()
    masks = [decode_mask(json.loads(line)["mask_rle"].encode(), *SIZE) for line in lines]
    assert (masks[0] == mask_of(1)).all()
    assert "heatmap_png" not in json.loads(lines[0])


def test_a_csv_holds_no_formula(tmp_path: Path) -> None:
    row = row_of("file:///in/s.tar", '=HYPERLINK("http://evil")', 1, "manipulated")
    output = committed(f"file://{tmp_path}", ["/in"], row | {"content_id": "@a"}, row)
    exported(output, "csv")
    rows = list(csv.DictReader(read(f"{output}/exports/results.csv").splitlines()))
    assert [row["member"] for row in rows] == ['\'=HYPERLINK("http://evil")'] * 2
    assert [row["content_id"] for row in rows] == ["'@a", ""]
    assert rows[0]["uri"] == "file:///in/s.tar"
    exported(output, "jsonl")
    first = json.loads(read(f"{output}/exports/results.jsonl").splitlines()[0])
    assert first["member"] == row["member"]


@pytest.mark.parametrize("to", ["csv", "jsonl", "coco", "masks"])
def test_results_that_cannot_be_read_are_named(to: str, tmp_path: Path) -> None:
    rows = [row_of("file:///in/s.tar", str(n), 1, "manipulated") for n in range(200)]
    output = committed(f"file://{tmp_path}", ["/in"], *rows)
    part = tmp_path / "results" / "part-u1.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:4] + bytes(len(data) // 2) + data[len(data) // 2 + 4 :])
    with pytest.raises(MissingInput, match="no results to export"):
        exported(output, to)


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    name = "\u56fe" * 83 + ".png"  # 253 bytes
    (tmp_path / name).write_bytes(picture(1))
    output = committed(
        f"file://{tmp_path}/out",
        [str(tmp_path)],
        row_of(f"file://{tmp_path}/{name}", None, 1, "manipulated"),
    )
    assert exported(output, "coco", images=True)["missing"] == 0
    assert (tmp_path / "out" / "exports" / "images" / name).exists()


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    run = Run(f"file://{tmp_path}", "r1")
    run.bind({"inputs": ["file:///in"]})
    random = np.random.default_rng(0)
    for part in range(30):
        writer = RowWriter(f"u{part}", "r1")
        for number in range(50):
            row = row_of(f"file:///in/{part}-{number}.jpg", None, 1, "manipulated")
            writer.add(row | {"mask_rle": random.bytes(160_000)})
        storage.create_once(run.part_uri(f"u{part}"), writer.close())
    run.commit({"parts": [{"file": f"results/part-u{part}.parquet"} for part in range(30)]})
    before, most = pa.total_allocated_bytes(), 0
    for _ in Selection.of(run, ()).batches(["uri", "mask_rle"]):
        time.sleep(0.1)  # a writer that is slower than the reader
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 60e6  # of 240 MB of masks


def test_without_a_run_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "--to", "coco"]) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(MissingInput):
        exported(str(tmp_path), "coco")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def masks(tmp_path: Path) -> Iterator[Path]:
    """Write a folder of images and masks."""
    for name, data in {"images/1.png": picture(1), "images/2.png": picture(2)}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask_of(1)).save(tmp_path / "masks" / "1.png")
    return tmp_path


def test_import_writes_labels_with_their_masks(masks: Path) -> None:
    target = masks / "labels.parquet"
    assert main(["import", str(masks), "--output", str(target)]) == 0
    first, second = read_labels(target)
    assert (first.label, second.label, second.mask) == ("manipulated", "authentic", None)
    assert isinstance(first.mask, bytes)
    assert (load_mask(first.mask) == mask_of(1)).all()
    assert pq.read_schema(target).names[:4] == ["uri", "member", "label", "mask"]


def test_import_with_a_fault_writes_nothing(
    masks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(mask_of(1)[1:]).save(masks / "masks" / "1.png")
    (masks / "images" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert main(["import", str(masks), "--output", str(masks / "labels.parquet")]) == 2
    told = capsys.readouterr().err
    assert "2 faulty rows" in told
    assert "1.png: has a mask of (60, 39) pixels" in told
    assert sorted(path.name for path in masks.iterdir()) == ["images", "masks"]
