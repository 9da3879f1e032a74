"""nvImageCodec on its CPU backend, where a GPU's would be: the package, threads, rows."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.images.nvimagecodec import NAME, NvImageCodec, open_decoder
from prompt_iml.pipeline.machine.doctor import doctor
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.scan.rows import Row
from prompt_iml.pipeline.scan.scan import run_config, scan_spec
from prompt_iml.pipeline.scan.scanner import Scanner, ScanSpec
from prompt_iml.pipeline.settings import DoctorSettings, ScanSettings
from prompt_iml.pipeline.sources import list_units
from tests.bench.null_model import write_null_model
from tests.pipeline.images.test_plain_jpeg import LIMITS, pixels, plain, strange

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos"
OF_THE_MOMENT = {"decode_ms", "infer_ms"}

needs_package = pytest.mark.skipif(
    not (find_spec("nvidia") and find_spec("nvidia.nvimgcodec")),
    reason="nvImageCodec has no package for this platform",
)
without_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")


@pytest.fixture(scope="module")
def codec() -> NvImageCodec:
    return NvImageCodec(gpu=False)


@pytest.fixture
def spec(tmp_path: Path) -> ScanSpec:
    """Of a scan of good images and bad ones, in `tmp_path`, by nvImageCodec."""
    (tmp_path / "images").mkdir()
    images = plain() | strange() | {"broken": plain()["4:2:0"][:-300], "empty": b""}
    for name, payload in images.items():
        (tmp_path / "images" / f"{name}.jpg").write_bytes(payload)
    model = write_null_model(tmp_path / "model")
    settings = ScanSettings(inputs=["-"], output=str(tmp_path), model=str(model), decoder=NAME)
    return scan_spec(settings, Run(f"file://{tmp_path}", "r"), load_model(settings.model))


def rows_by(decoder: NvImageCodec | None, spec: ScanSpec) -> list[Row]:
    """What a scan of the images writes, but for times."""
    (unit,) = list_units([f"{spec.run.output}/images"], images_per_unit=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prompt_iml.pipeline.scan.scanner.open_decoder", {NAME: decoder}.__getitem__)
        scanner = Scanner(spec)
    rows = list(scanner.rows(scanner.samples(unit)))
    lasting = [{k: v for k, v in row.items() if k not in OF_THE_MOMENT} for row in rows]
    return sorted(lasting, key=lambda row: str(row["uri"]))


@needs_package
@pytest.mark.parametrize("name", plain())
def test_its_pixels_are_libjpeg_s(codec: NvImageCodec, name: str) -> None:
    found = codec(plain()[name])
    assert found is not None
    assert not found.flags.writeable
    assert np.array_equal(found, pixels(plain()[name]))


@needs_package
def test_what_it_does_not_decode_is_none_and_silent(
    codec: NvImageCodec, capfd: pytest.CaptureFixture[str]
) -> None:
    for payload in (b"", b"abc", plain()["4:2:0"][:-300]):
        assert codec(payload) is None
    assert capfd.readouterr() == ("", "")


@needs_package
def test_threads_share_it(codec: NvImageCodec) -> None:
    payloads = [*plain().values()] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: decode(data, LIMITS, jpeg=codec).image.pixels, payloads))
    for data, image in zip(payloads, found, strict=True):
        assert np.array_equal(image, pixels(data))


@needs_package
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/photos")
def test_photographs_of_cameras_are_plain_and_come_out_the_same(codec: NvImageCodec) -> None:
    taken = []
    for file in sorted(PHOTOS.rglob("*.jpg"))[::40]:
        payload = file.read_bytes()
        exact = decode(payload, DecodeLimits()).image.pixels
        found = decode(payload, DecodeLimits(), jpeg=lambda data: taken.append(1) or codec(data))
        assert np.array_equal(found.image.pixels, exact), file
    assert len(taken) > 5


@needs_package
def test_a_scan_writes_the_same_rows(codec: NvImageCodec, spec: ScanSpec) -> None:
    rows = rows_by(codec, spec)
    assert rows == rows_by(None, spec)
    assert {row["status"] for row in rows} == {"ok", "failed"}


@needs_package
@without_gpu
def test_without_a_gpu_it_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingDependency, match=r"finds no GPU.*--actor-gpus"):
        open_decoder(NAME)
    assert capfd.readouterr().err == ""


def test_without_its_package_a_scan_and_doctor_name_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prompt_iml.pipeline.images.nvimagecodec.find_spec", lambda name: None)
    assert main(["scan", "in", "--output", "out", "--decoder", NAME]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'prompt-iml[gpu]'")
    (check,) = [c for c in doctor(DoctorSettings())["checks"] if c["name"] == f"decoder {NAME}"]
    assert (check["state"], check["fix"]) == ("optional", "pip install 'prompt-iml[gpu]'")


def test_a_run_is_bound_to_it_only_where_it_is_chosen() -> None:
    model = load_model("prompt-iml-micro")
    settings = ScanSettings(inputs=["in"], output="out")
    assert "decoder" not in run_config(settings, model)
    assert run_config(settings.model_copy(update={"decoder": NAME}), model)["decoder"] == NAME


def test_a_plain_scan_imports_nothing_of_it() -> None:
    code = """
import sys, prompt_iml.pipeline.images.decode, prompt_iml.pipeline.images.nvimagecodec
sys.exit(prompt_iml.pipeline.images.nvimagecodec.open_decoder("pillow") or "nvidia" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
