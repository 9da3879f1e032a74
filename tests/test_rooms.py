"""The three parts import one way, cluster -> pipeline -> engine, and names in the text exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a part may not import: parts of ours by their place, others by their top-level name.
SHUT = {
    "engine": {"pipeline", "cluster", "ray", "fsspec", "s3fs", "boto3", "pydantic_settings"},
    "pipeline": {"cluster", "torch", "onnx", "kubernetes"},
    "cluster": set[str](),
}
TORCH_USERS = {"network", "torch_op.py", "export.py", "torch_cpu.py", "torch_cuda.py"}
MOST_MODULES = 12
SOURCES = sorted(path for part in SHUT for path in (ROOT / part).rglob("*.py"))
TEXTS = [*SOURCES, *(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"]
NAMING = [
    *TEXTS,
    *(path for kind in ("cu", "cpp", "h") for path in (ROOT / "engine/operator").glob(f"*.{kind}")),
    ROOT / "cluster/Containerfile",
    *(ROOT / "cluster/kubernetes").rglob("*.yaml"),
]


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports; of ours, the part's name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix("prompt_iml.").split(".")[0] for name in names}


@pytest.mark.parametrize("part", SHUT)
def test_doors_are_shut(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        assert not imported(path) & SHUT[part], path


def test_torch_stays_with_the_network() -> None:
    for path in (ROOT / "engine").rglob("*.py"):
        if not TORCH_USERS & set(path.relative_to(ROOT / "engine").parts):
            assert "torch" not in imported(path), path


def arrows() -> dict[str, set[str]]:
    """Return the modules of ours that each of our modules imports, anywhere in it."""
    modules = {
        "prompt_iml." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in SOURCES
    }
    found = {name: set[str]() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {node.module, *inner} & modules.keys()
    return found


def test_modules_import_each_other_in_no_circle() -> None:
    graph = arrows()
    assert "prompt_iml.engine.runtimes.protocol" in graph["prompt_iml.engine.runtimes.open"]
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_nothing_is_unpickled() -> None:
    for path in SOURCES:
        assert not imported(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
        assert not re.search(r"torch\.load|allow_pickle|read_pickle", path.read_text()), path


def test_scikit_image_is_not_needed_to_scan() -> None:
    """It is an extra, and the demo opens its files by path."""
    for path in (each for room in SHUT for each in (ROOT / room).rglob("*.py")):
        assert "skimage" not in imported(path), path


def test_the_walk_sees_imports() -> None:
    assert {"ray", "pyarrow", "engine"} <= imported(ROOT / "pipeline/scan/actors.py")


def test_our_own_names_are_not_top_level() -> None:
    for path in TEXTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & SHUT.keys(), (path, names)


def test_folders_are_small_and_say_what_they_are_for() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert len(list(folder.glob("[!_]*.py"))) <= MOST_MODULES, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def prose(path: Path) -> Iterator[str]:
    """Comments and docstrings of a file."""
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


FILE = re.compile(r"(?<![\w/.-])(?:engine|pipeline|cluster|tests|docs)/[\w/.-]*\w")
MODULE = re.compile(r"`(?:prompt_iml\.)?((?:engine|pipeline|cluster|tests)(?:\.\w+)+)[`(]")


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_prose_names_exists(path: Path) -> None:
    text = "\n".join(prose(path)) if path.suffix == ".py" else path.read_text()
    for name in FILE.findall(text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
    for name in MODULE.findall(text):
        assert _exists(name), f"{path.name} names {name}"


def _exists(name: str) -> bool:
    """Return whether a dotted name is a module of ours, or stands in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        source = path.with_suffix(".py") if count > 1 else path
        if source.is_file():
            return all(re.search(rf"\b{part}\b", source.read_text()) for part in parts[count:])
        if path.is_dir():
            inside = [each.read_text() for each in path.glob("__init__.py")]
            return all(any(re.search(rf"\b{p}\b", text) for text in inside) for p in parts[count:])
    return False
