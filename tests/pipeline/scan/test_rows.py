"""Rows of images that cannot be read: they come as they are read, and hold nothing of them."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.scan.scanner import RowMaker
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.units import Sample
from tests.bench.null_model import write_null_model

pytestmark = pytest.mark.fast
MIB = 1 << 20


@pytest.fixture
def maker(tmp_path: Path) -> RowMaker:
    model = load_model(str(write_null_model(tmp_path / "null")))
    settings = ScanSettings(inputs=["."], output="out", engine="onnxruntime")
    return RowMaker(row_spec(settings, model))


def broken(count: int) -> Iterator[Sample]:
    """Yield PNG files of a mebibyte whose first chunk is none."""
    for number in range(count):
        yield Sample("shard", f"{number}.png", data=b"\x89PNG\r\n\x1a\n" + bytes(MIB))


def test_a_failure_is_a_row_before_the_next_images_are_read(maker: RowMaker) -> None:
    samples = broken(50)
    assert next(maker.rows(samples))["status"] == "failed"
    assert len(list(samples)) > 40


def test_failures_hold_no_data(maker: RowMaker) -> None:
    gc.collect()
    gc.disable()  # a cycle would hold them, too
    tracemalloc.start()
    try:
        rows = list(maker.outcomes(broken(50), maker.open))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(rows) == 50
    assert held < 2 * MIB
    assert most < 16 * MIB
