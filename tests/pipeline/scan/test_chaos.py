"""Short version of `make chaos`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(900)
def test_scans_under_a_killer_give_the_same_table() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.chaos", "--kills", "4", "--shards", "8"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["lost"], result["doubled"], result["changed"]) == (0, 0, 0)
    assert sum(result["kills"].values()) >= 4
    assert result["images"] == 64
