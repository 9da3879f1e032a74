"""A verdict, the library and a scan on Ray give the same rows, number for number."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prompt_iml import Detector, Finding, ImageError
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.run.masks import decode_mask
from tests.helpers.forged import forged

pytestmark = pytest.mark.usefixtures("cluster")
OWN = {"decode_ms", "infer_ms", "scanned_at", "run_id", "mask_rle", "heatmap_png"}


@pytest.fixture
def pictures(photographs: dict[str, bytes], tmp_path: Path) -> Path:
    """A folder of pictures: several tiles, a turned JPEG, PNG, WebP, one too small, two bad."""
    (folder := tmp_path / "pictures").mkdir()
    tiny = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(tiny, "PNG")
    files = {
        "large.jpg": forged("JPEG", size=(1100, 700)),
        "turned.jpg": forged("JPEG", orientation=6),
        "forged.png": forged("PNG"),
        "coffee.webp": photographs["coffee.webp"],
        "tiny.png": tiny.getvalue(),
        "broken.jpg": photographs["rocket.jpg"][:2000],
        "notes.txt": b"no picture",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def own(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OWN}


def test_verdict_library_and_scan_are_one(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", str(pictures), "--output", str(tmp_path / "out")]) == 3
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    lines = err.splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("7 images: "))
    assert [line.split()[0] for line in lines[at + 1 : -3]] == ["manipulated"] * len(
        summary["findings"]
    )
    for line, command in zip(lines[-3:], ("report", "review"), strict=False):
        assert f"prompt-iml {command} {tmp_path}/out --run-id {summary['run_id']}" in line
    assert f"--retry-failed {summary['run_id']}" in lines[-1]
    table = pq.read_table(tmp_path / "out/results").sort_by("uri").to_pylist()
    assert main(["scan", str(pictures), "--json"]) == 3
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [own(row) for row in printed] == [own(row) for row in table]
    names = sorted(path for path in pictures.iterdir())
    for found, row in zip(Detector().detect_many(names), table, strict=True):
        assert (found.code if isinstance(found, ImageError) else None) == row["error_code"]
        if isinstance(found, Finding):
            assert {"label": found.label, "score": np.float32(found.score)}.items() <= row.items()
            stored = decode_mask(row["mask_rle"], row["mask_height"], row["mask_width"])
            assert (found.mask == stored).all()
            forged_ones = ("large.jpg", "turned.jpg", "forged.png")
            assert (found.label == "manipulated") == row["uri"].endswith(forged_ones)
