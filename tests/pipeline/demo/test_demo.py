"""`make scan`: the packaged weights find forgeries, and the demo leaves its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from prompt_iml.pipeline.demo.demo import demo
from prompt_iml.pipeline.settings import DemoSettings
from tests.helpers.pages import blocks, page

ROOT = Path(__file__).parents[3]
MEGABYTE = 1_000_000


@pytest.mark.usefixtures("cluster")
def test_the_demo_finds_its_forgeries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The floors are well below the results of version 10: F1 .54, AUC .81, splices .73."""
    monkeypatch.chdir(tmp_path)
    summary = demo(DemoSettings(max_actors=1))
    assert (summary["listed"], summary["ok"]) == (24, 24)
    found = summary["comparison"]
    assert (found["forged"], found["authentic"]) == (12, 12)
    assert found["f1"] > 0.42
    assert found["auc"] > 0.6
    (splices,) = (kind for kind in found["kinds"] if kind["kind"] == "splice")
    assert splices["f1"] > 0.6
    with Image.open("demo/found.png") as picture:
        assert picture.width > 1000
    for name in ("report.html", "truth.csv", "masks", "results"):
        assert Path("demo", name).exists()
    (code,) = [block for block in blocks("python", page("table")) if "demo/results" in block]
    exec(code, {})  # of the page about the table
    assert list(tmp_path.glob("*.png"))


def test_the_package_stays_small() -> None:
    files = [f for room in ("engine", "pipeline", "cluster") for f in (ROOT / room).rglob("*")]
    assert sum(f.stat().st_size for f in files if "__pycache__" not in f.parts) < 40 * MEGABYTE
