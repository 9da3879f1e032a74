"""Three rooms with one-way doors: cluster -> pipeline -> engine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHUT = {
    "engine": {"pipeline", "cluster", "ray", "fsspec", "s3fs", "boto3", "pydantic_settings"},
    "pipeline": {"cluster", "torch", "onnx", "kubernetes"},
    "cluster": set[str](),
}
TORCH_USERS = {"network", "deform_attn.py", "export.py", "torch_engine.py", "torch_cuda_engine.py"}


def imported(path: Path) -> set[str]:
    """Top-level names of all the modules that a file imports, anywhere in it."""
    tree = ast.walk(ast.parse(path.read_text()))
    names: set[str] = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", SHUT)
def test_doors_are_shut(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not imported(path) & SHUT[room], path


def test_torch_stays_with_the_network() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        if not TORCH_USERS & set(path.relative_to(ROOT / "engine").parts):
            assert "torch" not in imported(path), path


def test_nothing_is_unpickled() -> None:
    for path in (each for room in SHUT for each in (ROOT / room).rglob("*.py")):
        assert not imported(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        assert not re.search(r"torch\.load|allow_pickle|read_pickle", path.read_text()), path


def test_the_walk_sees_imports() -> None:
    assert {"ray", "pyarrow"} <= imported(ROOT / "pipeline" / "waves.py")
