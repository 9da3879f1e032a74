"""The kernel's tests, in pytest; in a rehearsal, those of the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.bench.gpu.device import REHEARSED, Row
from tests.bench.gpu.files import KERNEL_TESTS, REHEARSED_TESTS, ROOT


def measure() -> list[Row]:
    """Return how many tests passed. Raises RuntimeError: one failed, or none ran."""
    tests = ROOT / (REHEARSED_TESTS if REHEARSED else KERNEL_TESTS)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Without the project's settings and fixtures, which need packages that may be missing.
        bare = ["--noconftest", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib"]
        quiet = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *bare, *quiet, str(tests)]
        ended = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {ended.returncode} and no report")
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    if ended.returncode or not passed:
        raise RuntimeError(f"{passed} tests passed, {count}")
    return [Row("tests passed", passed, "tests", f"{count['skipped']} skipped")]
