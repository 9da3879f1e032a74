"""A promise names the tests that hold it, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_promise_is_held_by_a_test() -> None:
    guaranteed = (ROOT / "docs" / "promises.md").read_text().split("\n## ")[1]
    rows = [line for line in guaranteed.splitlines() if line.startswith("| ")][1:]
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    # What must be skipped where data is missing holds no promise there.
    tests = "".join(text for text in files if "pytestmark = pytest.mark.skipif" not in text)
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name
