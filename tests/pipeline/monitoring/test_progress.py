from __future__ import annotations

import io
import re
from collections import Counter

import pytest

from prompt_iml.pipeline.monitoring import progress
from prompt_iml.pipeline.monitoring.progress import (
    STALL_SECONDS,
    Done,
    Progress,
    Stall,
    clock,
    progress_line,
)


def test_the_line_has_rate_share_and_time_left() -> None:
    line = progress_line(Done(images=50, size_bytes=500), total_bytes=2000, seconds=10)
    assert line == "50 images  5.0/s  25%  ETA 0:00:30"


def test_resumed_bytes_are_done_but_took_no_time() -> None:
    done = Done(images=50, size_bytes=500, resumed_bytes=1000)
    assert progress_line(done, 2000, 10) == "50 images  5.0/s  75%  ETA 0:00:10"


def test_the_line_has_the_labels_that_are_looked_for() -> None:
    labels = Counter(manipulated=1200, authentic=40)
    assert progress_line(Done(50, 0, 0, labels), 0, 10) == "50 images  5.0/s  1,200 manipulated"


@pytest.mark.parametrize("total", [0, -3])
def test_no_share_without_a_total(total: int) -> None:
    assert progress_line(Done(10, 100), total, 2.0) == "10 images  5.0/s"


def test_listed_sizes_that_were_too_small_do_not_pass_100_percent() -> None:
    assert progress_line(Done(10, 900), 600, 2.0).endswith("100%  ETA 0:00:00")


def test_clock() -> None:
    assert clock(3661.4) == "1:01:01"


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    stream, reads = io.StringIO(), []

    def read() -> Done:
        reads.append(1)
        return Done(len(reads), 10)

    with Progress(read, 100, stream):
        while len(reads) < 3:
            pass
    assert re.fullmatch(r"(\d images  [\d.,]+/s  10%  ETA 0:00:0\d\n)+", stream.getvalue())


def test_a_stall_is_reported_once_and_only_while_nothing_moves() -> None:
    stall, done = Stall(), Done(images=1)
    assert stall.warning(done, 0) is None
    assert stall.warning(done, STALL_SECONDS - 1) is None
    assert "No image was scanned for 300 s" in (stall.warning(done, STALL_SECONDS) or "")
    assert stall.warning(done, STALL_SECONDS + 1) is None
    assert stall.warning(Done(images=2), 2 * STALL_SECONDS) is None
    assert stall.warning(Done(images=2), 3 * STALL_SECONDS)
