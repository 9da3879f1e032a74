"""`prompt-iml train` on a real Ray Train: resuming, early stop, outputs and refused settings."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.curves import CURVES, EVENTS, PICTURE, Curves, read_curves
from prompt_iml.cluster.training.loop import start_network
from prompt_iml.cluster.training.train import _check_frozen, train
from prompt_iml.engine.errors import MissingInput, PromptImlError, UsageError
from prompt_iml.pipeline.cli import INTERRUPTED
from prompt_iml.pipeline.storage import storage
from tests.helpers.photos import write_photos
from tests.helpers.processes import assert_ends, begin, wait_for_process, wait_for_reports
from tests.helpers.stores import Bucket


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.mark.timeout(600)
def test_a_killed_driver_resumes(cluster: None, photos: Path, s3: Bucket) -> None:
    """The output is in an object store. A driver is killed before it wrote its curves, the next one
    is interrupted, and the last one ends."""
    output = f"{s3.uri}/run"
    flags: dict[str, Any] = {"photos": str(photos), "output": output, "workers": 1}
    flags |= {"samples": 12, "batch": 2, "eval_every": 4, "eval_examples": 4}
    flags["address"] = ray.get_runtime_context().gcs_address
    command = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, INTERRUPTED)):
        with subprocess.Popen(
            [sys.executable, "-m", "prompt_iml.pipeline.cli", "train", *command]
        ) as driver:
            wait_for_reports(f"{output}/{CURVES}", 1, driver)
            driver.send_signal(number)
            assert driver.wait(60) == code
        before = read_curves(f"{output}/{CURVES}")
        if number == signal.SIGKILL:
            storage.write(f"{output}/{CURVES}", b"")
            lost = before
    done = train(TrainSettings(**flags))
    after = read_curves(f"{output}/{CURVES}")
    assert after[: len(before)] == before
    assert [int(report["samples"]) for report in after] == [4, 8, 12][len(lost) :]
    assert done.samples == 12
    trained = load(storage.read_bytes(done.weights))
    fresh = start_network(TrainSettings(photos=str(photos), output=output))
    moved = {n for n, t in fresh.state_dict().items() if not t.equal(trained[n])}
    assert not any(name.startswith("semantic.") for name in moved)
    assert {"prompts", "fusion", "high_frequency"} <= {name.split(".")[0] for name in moved}
    assert storage.read_bytes(f"{output}/{PICTURE}").startswith(b"\x89PNG")
    assert len(storage.read_bytes(f"{output}/{EVENTS}")) > 100


@pytest.mark.timeout(600)
def test_sigterm_ends_a_training_as_sigint_does(photos: Path, tmp_path: Path) -> None:
    command = [f"--photos={photos}", "--samples=4000", "--address=local", f"--output={tmp_path}"]
    with begin("train", *command) as driver:
        wait_for_process(driver, "ray::RayTrainWorker")
        line = "interrupted: the same command resumes"
        assert_ends(driver, signal.SIGTERM, INTERRUPTED, line)


def test_a_run_without_improvement_stops_early(cluster: None, photos: Path, tmp_path: Path) -> None:
    """It is evaluated after every step, so that a worse evaluation comes soon."""
    flags: dict[str, Any] = {"photos": str(photos), "output": str(tmp_path), "samples": 64}
    flags |= {"batch": 4, "eval_every": 4, "eval_examples": 4, "patience": 2}
    flags["address"] = ray.get_runtime_context().gcs_address
    done = train(TrainSettings(**flags))
    f1 = [float(report["f1"]) for report in read_curves(f"file://{tmp_path}/{CURVES}")]
    assert len(f1) - 1 - f1.index(max(f1)) == 2
    assert done.samples == 4 * len(f1) < 64
    assert load(storage.read_bytes(done.weights))


def test_a_finished_run_is_not_trained_again(photos: Path, tmp_path: Path) -> None:
    (tmp_path / CURVES).write_text("samples,loss\n32,0.5\n")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    trained = train(TrainSettings(photos=str(photos), output=str(tmp_path)))
    assert (trained.samples, trained.metrics) == (32, {"loss": 0.5})


def test_another_configuration_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / CURVES).write_text("samples,loss\n32,0.5\n")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    train(TrainSettings(photos=str(photos), output=str(tmp_path)))
    train(TrainSettings(photos=str(photos), output=str(tmp_path), workers=2))
    with pytest.raises(UsageError, match="other seed"):
        train(TrainSettings(photos=str(photos), output=str(tmp_path), seed=1))


def test_curves_of_many_samples_are_read_back(tmp_path: Path) -> None:
    curves, row = Curves(f"file://{tmp_path}"), dict.fromkeys(("loss", "f1", "pixel_auc"), 0.5)
    row |= {"score_auc": 0.5, "flagged": 0.1}
    for count in (1_000_000, 12_345_678):
        curves.after_report(None, [{"samples": count, **row}], None)
    samples = [report["samples"] for report in read_curves(f"file://{tmp_path}/{CURVES}")]
    assert samples == ["1000000", "12345678"]


def test_a_generator_needs_no_pytorch(photos: Path) -> None:
    """It takes a second and 200 MB in each of many processes."""
    program = """
import sys
from pathlib import Path
from prompt_iml.cluster.training.examples import GeneratedExamples
from prompt_iml.pipeline.forgery.photos import list_photos
GeneratedExamples(list_photos(Path(sys.argv[1]), None), None, 0).example(1)
print("torch" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", program, str(photos)], capture_output=True)
    assert printed.stdout == b"False\n", printed.stderr


def test_changed_frozen_weights_are_an_error(photos: Path) -> None:
    settings = TrainSettings(photos=str(photos), output="-", train="prompts")
    tensors = start_network(settings).state_dict()
    tensors["prompts.0"] = tensors["prompts.0"] + 1
    _check_frozen(settings, tensors)
    name = "pixel_decoder.level_embed"
    tensors[name] = tensors[name] + 1
    with pytest.raises(PromptImlError, match="changed frozen weights"):
        _check_frozen(settings, tensors)


def test_photographs_without_outlines_are_refused(photos: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(photos, tmp_path / "bare")
    for outline in bare.rglob("*.txt"):
        outline.unlink()
    with pytest.raises(MissingInput, match="with outlines of objects to train on"):
        train(TrainSettings(photos=str(bare), output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"photos": "nowhere"}, "nowhere has no photographs"),
        ({"labels": "nowhere.parquet"}, "nowhere.parquet: no such file or folder"),
        ({"prompt_set": "gone.safetensors"}, "--prompt-set cannot be read"),
        ({"workers": 3, "max_workers": 2}, "--max-workers 2 is less"),
        ({"samples": 4}, "--samples"),
        ({"start": "no-such-model"}, "no-such-model"),
        ({"start": "gone.safetensors"}, "weights gone.safetensors cannot be read"),
        ({"semantic_weights": "gone.safetensors"}, "weights gone.safetensors cannot be read"),
    ],
)
def test_bad_settings_are_one_line(
    photos: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    known: dict[str, object] = {"photos": str(photos), "output": str(tmp_path)}
    with pytest.raises((UsageError, MissingInput), match=message):
        train(TrainSettings.model_validate(known | fields))
