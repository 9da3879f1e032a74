"""Maps of another model: found by name, read in every form, and measured as ours are."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import BadLabels, MissingInput, UsageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.evaluation import ImageResult
from prompt_iml.pipeline.evaluation.predictions import (
    Predictions,
    evaluate_predictions,
    fitted,
)
from prompt_iml.pipeline.truth import Faults, Label, read_labels
from tests.helpers.stores import Folder

SIZE = (40, 60)  # height and width


def truth_mask() -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[10:30, 20:50] = True
    return mask


def npz(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def npy(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def image(array: Any, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, kind)
    return sink.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Write a set of two forged images, one without a mask, two authentic and a damaged one."""
    files = Folder(tmp_path)
    grey = np.full(SIZE, 90, np.uint8)
    for name in ("Tp/1.jpg", "Tp/2.jpg", "Au/1.jpg", "Au/3.jpg"):
        files.put(f"set/{name}", image(grey, "JPEG"))
    files.put("set/Au/4.jpg", b"\xff\xd8\xff\xe0 and no more")
    files.put("set/Gt/1.png", image(truth_mask()))
    return tmp_path


def write_maps(place: Path) -> str:
    """Write a map that finds the mask, one that finds all, two that find nothing and a fifth."""
    files, found, none = Folder(place), truth_mask().astype(np.float32), np.zeros(SIZE, np.float32)
    files.put("maps/Tp/1.jpg.npz", npz(map=0.2 + 0.6 * found, score=0.9, conf=found))
    files.put("maps/Tp/2.npy", npy(none + 0.7))
    files.put("maps/Au/1.png", image(none.astype(np.uint8)))
    files.put("maps/3.png", image(none.astype(np.uint8)))
    files.put("maps/4.png", image(none.astype(np.uint8)))
    return str(place / "maps")


def test_perfect_maps_are_measured_as_perfect(place: Path) -> None:
    maps = Predictions(write_maps(place))
    labels = read_labels(place / "set")
    maps.check(labels, Faults("set"))
    outcomes = {each.label.uri[-8:]: each.outcome for each in evaluate_predictions(maps, labels)}
    found = outcomes["Tp/1.jpg"]
    assert isinstance(found, ImageResult)
    assert (found.f1, found.iou, found.best_f1, found.pixel_auc) == (1, 1, 1, 1)
    assert found.score == pytest.approx(0.9)
    bare = outcomes["Tp/2.jpg"]
    assert isinstance(bare, ImageResult)
    assert np.isnan(bare.f1)
    assert (bare.forged, bare.masked, bare.label) == (True, 1.0, "manipulated")
    assert [type(outcomes[f"Au/{n}.jpg"]) is ImageResult for n in (1, 3, 4)] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", npy(truth_mask().astype(np.float64))),
        ("a.npy", npy(truth_mask()[None])),
        ("a.npz", npz(pred=truth_mask())),
        ("a.png", image(truth_mask())),
        ("a.png", image(truth_mask().astype(np.uint8))),
        ("a.png", image(truth_mask().astype(np.uint8) * np.uint8(255))),
        ("a.png", image(truth_mask().astype(np.uint16) * np.uint16(65535))),
        ("a.png", image(np.repeat(truth_mask()[..., None] * np.uint8(255), 3, 2))),
        ("a.tif", image(truth_mask().astype(np.float32), "TIFF")),
    ],
)
def test_every_form_of_a_map(name: str, data: bytes, tmp_path: Path) -> None:
    uri = Folder(tmp_path).put(name, data)
    values, score = Predictions(str(tmp_path)).load(uri)
    assert score is None
    assert (values == truth_mask()).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_dark_map_is_no_mask_where_others_are_grey(
    kind: type[np.uint8 | np.uint16], tmp_path: Path
) -> None:
    dark = np.zeros(SIZE, kind)
    dark[0, 0] = 1
    uri = Folder(tmp_path).put("dark.png", image(dark))
    Folder(tmp_path).put("grey.png", image(np.full(SIZE, 230, kind)))
    values, _ = Predictions(str(tmp_path)).load(uri)
    assert values.max() == np.float32(1 / np.iinfo(kind).max)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.npy", npy(np.full(SIZE, 1.5)), "not probabilities"),
        ("1.npy", npy(np.full(SIZE, np.nan)), "not probabilities"),
        ("1.npy", npy(np.zeros((3, *SIZE))), "height and width"),
        ("1.npy", npy(np.array([{}])), "pickle"),
        ("1.npz", npz(logits=np.zeros(SIZE)), "none of the arrays map"),
        ("1.npz", b"no archive", "1.npz is no map"),
        ("1.npz", b"", "1.npz is no map"),
        ("1.npz", npy(np.zeros(SIZE)), "1.npz is no map"),
        ("1.npz", npz(map=np.zeros(SIZE))[:-300], "1.npz is no map"),
        ("1.npz", npz(map=np.zeros(SIZE), score=-2.3), "score -2.3"),
        ("1.npz", npz(map=np.zeros(SIZE), score=np.nan), "score nan"),
        ("1.npz", npz(map=np.zeros(SIZE), score=[1, 0]), "1.npz is no map"),
        ("1.npy", b"", "1.npy is no map"),
        ("1.png", image(np.eye(3, dtype=np.uint8)[None] * np.uint8(255)), "coloured"),
        ("1.png", b"no picture", "1.png is no map"),
    ],
)
def test_what_is_no_map_is_named(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    Folder(tmp_path).put(f"maps/{name}", data)
    uri = Folder(tmp_path).put("1.jpg", image(np.zeros(SIZE, np.uint8), "JPEG"))
    maps = Predictions(str(tmp_path / "maps"))
    with pytest.raises(BadLabels, match=message):
        list(evaluate_predictions(maps, [Label(0, uri, None, "authentic")]))


def test_a_map_of_another_size_is_scaled() -> None:
    small = np.zeros((4, 6), np.float32)
    small[:, :3] = 1
    scaled = fitted(small, SIZE)
    assert scaled.shape == SIZE
    assert scaled[:, :24].min() == 1
    assert scaled[:, 36:].max() == 0


def test_maps_that_are_missing_or_in_doubt_are_named_together(place: Path) -> None:
    files = Folder(place)
    for name in ("a/1.png", "b/1.png", "3.png"):
        files.put(f"maps/{name}", image(truth_mask()))
    maps = Predictions(str(place / "maps"))
    with pytest.raises(BadLabels) as raised:
        maps.check(read_labels(place / "set"), Faults("set"))
    told = str(raised.value)
    assert "Tp/2.jpg: has no map in" in told
    assert "Tp/1.jpg: has the maps" in told
    assert "3.jpg" not in told
    with pytest.raises(MissingInput):
        Predictions(str(place / "nowhere"))
    (place / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no map"):
        Predictions(str(place / "empty"))


def test_sets_of_the_same_name_are_told_apart(place: Path) -> None:
    write_maps(place)
    long = "\u56fe" * 83  # with an extension, as long as names are
    for folder in ("a", "b"):
        (place / folder).mkdir()
        Folder(place).put(f"{folder}/{long}.jpg", image(np.full(SIZE, 90, np.uint8), "JPEG"))
        (place / folder / "set.csv").write_text(f"image,label\n{long}.jpg,authentic\n")
    Folder(place).put(f"maps/{long}.png", image(truth_mask()))
    flags = ["--predictions", str(place / "maps"), "--masks", str(place / "masks")]
    flags += ["--results", str(place / "r.csv"), "--output", str(place / "e.json")]
    assert main(["evaluate", str(place / "a/set.csv"), str(place / "b/set.csv"), *flags]) == 0
    with (place / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["a/set", "b/set"]
    assert len({row["mask_file"] for row in rows}) == 2
    assert all((place / "masks" / row["mask_file"]).exists() for row in rows)


def evaluated(place: Path, *flags: str) -> dict[str, Any]:
    output = place / "e.json"
    assert main(["evaluate", str(place / "set"), "--output", str(output), *flags]) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert isinstance(result, dict)
    return result


def test_the_masks_that_are_written_are_maps_with_the_same_result(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--predictions", write_maps(place), "--masks", str(place / "masks")]
    first = evaluated(place, *flags, "--results", str(place / "r.csv"))
    assert (first["f1"], first["masked"], first["forged"], first["failed"]) == (1, 1, 2, 1)
    rows = list(csv.DictReader((place / "r.csv").read_text().splitlines()))
    assert [row["error_code"] for row in rows].count("truncated") == 1
    assert {row["mask_file"] for row in rows} == {
        "Au/1.jpg.png", "Au/3.jpg.png", "Tp/1.jpg.png", "Tp/2.jpg.png", "",
    }  # fmt: skip
    assert {row["truth"] for row in rows} == {"authentic", "manipulated"}
    Folder(place).put("masks/Au/4.png", image(truth_mask()))
    table = str(place / "r.parquet")
    again = evaluated(place, "--predictions", str(place / "masks"), "--results", table)
    same = ("f1", "iou", "false_positive_rate", "true_positive_rate", "flagged_rate")
    assert [again[name] for name in same] == [first[name] for name in same]
    assert "F1, IoU: at a probability of 0.5;" in capsys.readouterr().err
    assert pq.read_table(table).num_rows == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predictions", "maps", "--perturbation", "jpeg-70"], "no --policy, --perturbation"),
        (["--results", "rows.xlsx"], "ends in .csv, .jsonl, .parquet"),
        (["--predictions", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_flag_is_refused(
    flags: list[str],
    message: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert main(["evaluate", "set", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
