"""Output of version 0.1.0, two shards of six images, one of them truncated, stays usable.

Recorded as `prompt-iml scan /data/photos --output /data/scanned --run-id photos`; since then the
output was moved and the images were deleted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.report.report import write_report
from prompt_iml.pipeline.run.compact import compact
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.verify import verify
from prompt_iml.pipeline.scan.scan import scan
from prompt_iml.pipeline.settings import CompactSettings, ScanSettings, VerifySettings

STORED = Path(__file__).parents[2] / "stored" / "output-v1"
COUNTS = {"rows": 6, "ok": 5, "failed": 1, "skipped": 0, "problems": 0}


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A copy whose run is bound to the model of today, as that of its time is packaged no more."""
    moved = shutil.copytree(STORED, tmp_path / "moved")
    model = load_model("prompt-iml-micro")
    today: dict[str, object] = {
        "model": model.id,
        "model_sha256": model.sha256,
        "prompt_set": model.prompts.id,
    }
    today |= {"policy": model.policy.to_dict()}
    for name in ("config.json", "manifest.json"):
        file = moved / "_runs" / "photos" / name
        content = json.loads(file.read_text())
        content.get("config", content).update(today)
        file.write_text(json.dumps(content))
    return str(moved)


def verified(output: str) -> dict[str, int]:
    summary = verify(VerifySettings(output=output))
    return {name: summary[name] for name in COUNTS}


def test_it_is_verified(output: str) -> None:
    assert verified(output) == COUNTS


def test_it_is_reported(output: str) -> None:
    page = Path(write_report(output).removeprefix("file://")).read_text()
    assert page.count('<li class="card') == 5
    assert "broken.jpg" in page


def test_it_is_resumed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming does not list the inputs, which are gone."""
    summary = scan(ScanSettings(inputs=["/data/photos"], output=output, run_id="photos"))
    assert (summary["listed"], summary["ok"], summary["scanned_now"]) == (6, 5, 0)
    assert "already complete: run photos" in capsys.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_it_is_completed_from_its_parts(output: str) -> None:
    """The manifest is written again after a driver died before writing it."""
    run = Run(f"file://{output}", "photos")
    (manifest,) = Path(output, "_runs/photos").glob("manifest.json")
    whole = run.manifest()
    manifest.unlink()
    scan(ScanSettings(inputs=["/data/photos"], output=output, run_id="photos"))
    assert whole is not None
    model = load_model("prompt-iml-micro")
    # Parts of that time do not say what they lack, and its configuration nothing of the graph.
    assert run.manifest() == whole | {
        "incomplete": {},
        "labels": {"authentic": 3, "uncertain": 2},
        "findings": [],
        "false_positive_rate": model.policy.false_positive_rate,  # that of today's policy
        "config": whole["config"] | {"graph_sha256": model.graph_sha256},
    }


def test_it_is_compacted(output: str) -> None:
    before = ds.dataset(f"{output}/results").to_table().sort_by("image_id")
    assert compact(CompactSettings(output=output, grace=0))["parts"] == 1
    after = ds.dataset(f"{output}/results").to_table().sort_by("image_id")
    assert after.select(before.column_names).equals(before)
    assert after["mask_confidence"].null_count == len(after)  # the version had no such column
    assert verified(output) == COUNTS
