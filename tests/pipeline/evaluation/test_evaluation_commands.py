"""`prompt-iml evaluate` and `prompt-iml calibrate`, from flags to files."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.demo.photographs import generate_set, write_shards
from prompt_iml.pipeline.evaluation import SetResult
from prompt_iml.pipeline.evaluation.plots import blank_figure

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write four forged and four authentic images in shards."""
    folder = tmp_path_factory.mktemp("evaluation") / "photos"
    return str(write_shards(generate_set(1, ("splice", "copy-move") * 2), folder, shards=1))


def test_evaluate_writes_a_table_and_json(
    truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "evaluation.json"
    arguments = [truth, "--perturbation", "none,jpeg-70", "--output", str(output), "--limit", "4"]
    rows, masks = tmp_path / "rows.jsonl", tmp_path / "masks"
    arguments += ["--results", str(rows), "--masks", str(masks)]
    assert main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr()
    assert "F1, IoU: at the policy's mask threshold;" in printed.err
    stored = json.loads(output.read_text())
    assert json.loads(printed.out.splitlines()[-1]) == stored
    results = [SetResult.from_dict(fields) for fields in stored["results"]]
    assert [(r.set, r.perturbation) for r in results] == [("photos", "none"), ("photos", "jpeg-70")]
    assert all(r.forged + r.authentic == 4 for r in results)
    lines = [line for line in printed.err.splitlines() if line.startswith(("set", "photos"))]
    sets, sizes = lines[:3], lines[3:]
    assert len({len(line) for line in sets}) == 1
    assert "megapixels" in sizes[0]
    assert [line.split()[2] for line in sizes].count("all") == 2
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["perturbation"] for row in written] == ["none"] * 4 + ["jpeg-70"] * 4
    for row in written:
        with Image.open(masks / row["mask_file"]) as mask:
            assert np.asarray(mask).mean() == pytest.approx(row["masked"])


@needs_matplotlib
def test_a_style_in_the_working_folder_has_no_effect(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("figure.facecolor: red\ntext.usetex: True\n")
    code = f"from {blank_figure.__module__} import *; print(blank_figure(1, 1).get_facecolor())"
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert printed == "(1.0, 1.0, 1.0, 1.0)\n"


@needs_matplotlib
def test_calibrate_writes_a_policy_that_evaluate_reads(
    truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, plots = tmp_path / "policy.json", [tmp_path / "r.png", tmp_path / "e.png"]
    flags = ["--perturbation", "none", "--id", "trial", "--plot", str(plots[0])]
    report = tmp_path / "report.json"
    flags += ["--output", str(policy), "--report", str(report)]
    assert main(["calibrate", truth, *flags]) == 0
    assert f"next: prompt-iml scan INPUTS --policy {policy}\n" in capsys.readouterr().err
    made = Policy.from_json(policy.read_text())
    assert (made.id, made.min_side, made.false_positive_rate) == ("trial", 128, 0.0)
    numbers = json.loads(report.read_text())
    assert (numbers["forged"], numbers["groups"][0]["authentic"]) == (4, 4)
    flags = ["--policy", str(policy), "--output", str(tmp_path / "e.json"), "--plot", str(plots[1])]
    assert main(["evaluate", truth, *flags]) == 0
    (result,) = json.loads((tmp_path / "e.json").read_text())["results"]
    assert result["false_positive_rate"] == 0
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--perturbation", "sepia"], "sepia"),
        (["--policy", "nowhere.json"], "nowhere.json"),
        (["--model", "nobody"], "nobody"),
        (["--plot", "a.png"], "pip install"),
        (["--output", "."], ". cannot be written"),
        (["--output", "s3://b/e.json"], "s3://b/e.json is not on this machine"),
        (["--masks", "s3://b/masks"], "s3://b/masks is not on this machine"),
        (["--masks", __file__], "is not a folder: choose another --masks"),
        (["--output", f"{__file__}/new/e.json"], "cannot be written"),
    ],
)
def test_a_wrong_flag_is_refused_before_any_work(
    truth: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prompt_iml.pipeline.evaluation.plots.find_spec", lambda _: None)
    assert main(["evaluate", truth, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("none.csv", "cannot read none.csv: No such file or directory: check the path"),
        (".", "it needs the folders Tp, Gt and Au"),
        ("columns.csv", "add the column image, mask"),
        ("binary.csv", "add the column image, mask or label"),
        ("images.csv", "images.csv row 0 (from 0): "),
    ],
)
def test_a_wrong_manifest_is_one_line_and_writes_nothing(
    command: str,
    manifest: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the heading of a table nor a file is written, and no model is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"prompt_iml.pipeline.evaluation.{command}.load_model", None)
    (tmp_path / "columns.csv").write_text("picture\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xd8\n")
    (tmp_path / "images.csv").write_text("image,mask\nnone.png,\n")
    files = sorted(tmp_path.iterdir())
    assert main([command, manifest, "--output", "new/output.json"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert sorted(tmp_path.iterdir()) == files
