"""Random hostile shards are read within bounds; `make fuzz` reads many more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.shards import shard


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited on Linux only")
def test_any_shard_is_read_within_bounds_of_time_and_memory(tmp_path: Path) -> None:
    outcome = fuzz(range(40), tmp_path)
    assert outcome.faults == {}
    assert min(outcome.codes[code] for code in ("ok", "damaged_shard", "too_large")) > 5


def test_a_number_makes_its_shard_again() -> None:
    assert shard(3) == shard(3)
