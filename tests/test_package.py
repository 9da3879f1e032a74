"""The wheel serves every Python 3 and has one import name; the source archive is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta as b; import sys; getattr(b, sys.argv[1])(sys.argv[2])"
IMPORTS = "import prompt_iml.engine, prompt_iml.pipeline.cli; print(prompt_iml.engine.__file__)"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel, of the files that the image gets, and a source archive."""
    built = tmp_path_factory.mktemp("built")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    whole = [path.name for path in ROOT.iterdir()]
    for kind, names in (("build_wheel", copied_names()), ("build_sdist", whole)):
        source = tmp_path_factory.mktemp("source")
        for name in set(names) - left_out(str(ROOT), names):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=left_out)
            else:
                shutil.copy(ROOT / name, source)
        command = [sys.executable, "-c", BUILD, kind, str(built)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    return built


def copied_names() -> list[str]:
    """Return the names in this folder that the Containerfile copies into the image."""
    lines = (ROOT / "cluster" / "Containerfile").read_text().splitlines()
    copies = [line.split() for line in lines if line.startswith("COPY ") and "--from" not in line]
    return [name for _, *names, _ in copies for name in names]


def test_the_wheel_serves_every_python(packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"prompt_iml"}
    for name in ("py.typed", "engine/models/prompt-iml-micro/model.onnx",
                 "engine/operator/ms_deform_attn.ptx", "pipeline/report/page.html",
                 "pipeline/report/page.js", "pipeline/review/page.html", "pipeline/review/page.css",
                 "pipeline/review/page.js"):  # fmt: skip
        assert f"prompt_iml/{name}" in names


def test_it_is_imported_beside_files_of_the_same_names(packages: Path, tmp_path: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    site, here = tmp_path / "site", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(site)
    here.mkdir()
    for name in ("engine", "pipeline", "cluster"):
        (here / f"{name}.py").write_text("raise RuntimeError('imported')")
    env = os.environ | {"PYTHONPATH": str(site)}
    shown = subprocess.check_output([sys.executable, "-c", IMPORTS], cwd=here, env=env, text=True)
    assert shown.startswith(str(site))


def test_the_source_archive_is_whole(packages: Path) -> None:
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for name in ("constraints.txt", "setup.py", "CHANGELOG.md", "docs/table.md", "Makefile",
                 "prompt_iml/engine/operator/ms_deform_attn_cpu.cpp", "tests/conftest.py",
                 "prompt_iml/cluster/kubernetes/base/scan.yaml"):  # fmt: skip
        assert name in names
