"""The notebook and README's lines of Python run, without Jupyter."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from prompt_iml import Finding
from tests.helpers.forged import forged
from tests.helpers.pages import ROOT, blocks


def run(cells: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Run cells as a notebook would, and show what each ends with; return their names."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for cell in cells:
        *statements, last = ast.parse(cell).body
        exec(compile(ast.Module(statements, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            print(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return names


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((ROOT / "docs/detector.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    finding = run(cells, tmp_path, monkeypatch)["finding"]
    assert isinstance(finding, Finding)
    assert finding.label == "manipulated"
    assert "missing.jpg: No such file" in capsys.readouterr().out


def test_the_lines_in_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").write_bytes(forged("JPEG"))
    run(blocks("python", (ROOT / "README.md").read_text()), tmp_path, monkeypatch)
    assert (tmp_path / "overlay.png").exists()
    assert capsys.readouterr().out.startswith("manipulated")
