"""Counts of all rows, and the choice of those that a report shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from prompt_iml.pipeline.report.page import strips
from prompt_iml.pipeline.report.survey import (
    BINS,
    LABELS,
    Survey,
    failures_to_show,
    rows_to_show,
    take_survey,
)
from prompt_iml.pipeline.run.schema import SCHEMA
from prompt_iml.pipeline.run.table import open_results
from tests.helpers.outputs import START, commit, failed

COUNT = 3000


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    scores = (rng.integers(0, 50, COUNT) / 50).astype(np.float32)
    columns: dict[str, Any] = {field.name: pa.nulls(COUNT, field.type) for field in SCHEMA}
    columns |= {
        "image_id": [rng.bytes(16).hex() for _ in range(COUNT)],
        "uri": ["file:///x"] * COUNT,
        "status": ["ok"] * COUNT,
        "score": scores,
        "label": np.where(scores > 0.5, "manipulated", "uncertain"),
        "scanned_at": pa.array([START] * COUNT, pa.timestamp("us", "UTC")),
    }
    return pa.table(columns, SCHEMA)


@pytest.fixture
def results(tmp_path: Path) -> ds.Dataset:
    for part in range(3):
        pq.write_table(table().slice(part * 1000, 1000), tmp_path / f"{part}.parquet", 128)
    return ds.dataset(tmp_path)


def survey_of(
    results: ds.Dataset, limit: int, sample: int, run_id: str = "r1"
) -> tuple[Survey, list[str], list[str]]:
    survey = take_survey(results, {}, run_id=run_id, limit=limit, sample=sample)
    best, others = rows_to_show(results, survey, limit)
    return survey, [row["image_id"] for row in best], [row["image_id"] for row in others]


@pytest.mark.parametrize("limit", [1, 37, 5000])
@pytest.mark.parametrize("rows_at_once", [1, 500, 10_000])
def test_the_best_rows_are_those_of_a_full_sort(
    limit: int, rows_at_once: int, results: ds.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_iml.pipeline.report.survey.ROWS_AT_ONCE", rows_at_once)
    survey, best, _ = survey_of(results, limit, 0)
    wanted = table().sort_by([("score", "descending"), ("image_id", "ascending")]).slice(0, limit)
    assert best == wanted["image_id"].to_pylist()
    assert survey.labels.total() == survey.histogram.sum() == COUNT


def test_of_each_label_a_random_sample_is_shown_the_same_each_time(results: ds.Dataset) -> None:
    survey, best, others = survey_of(results, 100, 200)
    assert {name: rows.num_rows for name, rows in survey.samples.items()} == {
        "manipulated": 200, "uncertain": 200, "authentic": 0,
    }  # fmt: skip
    assert survey.sampled <= {*best, *others}
    assert not {*best} & {*others}
    assert set(others) <= survey.sampled
    assert survey_of(results, 100, 200)[1:] == (best, others)
    assert survey_of(results, 100, 200, "r2")[2] != others
    # Of 200 fair draws of scores from 0 to 0.5, the mean strays 0.03 from theirs in none of 1000.
    scores = survey.samples["uncertain"]["score"].to_numpy()
    assert abs(scores.mean() - 0.25) < 0.04


def test_a_sample_of_all_is_all(results: ds.Dataset) -> None:
    survey, best, others = survey_of(results, 1, COUNT)
    assert len(best) + len(others) == len(survey.sampled) == COUNT


def test_one_image_among_millions_is_visible() -> None:
    histogram = np.zeros((len(LABELS), BINS), np.int64)
    histogram[0, -1], histogram[2, 3] = 1, 10**7
    forged, uncertain, authentic = strips(histogram)
    assert [bar["height"] for bar in forged["bars"]] == [5]
    assert [bar["height"] for bar in authentic["bars"]] == [40]
    assert uncertain["bars"] == []


@pytest.mark.parametrize("rows_at_once", [1, 500])
def test_every_error_code_is_among_the_failures(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_iml.pipeline.report.survey.ROWS_AT_ONCE", rows_at_once)
    rows = [failed(f"file:///{number}") for number in range(300)]
    rows += [
        failed("file:///rare", "denied"),
        *(failed(f"file:///e{n}", "empty") for n in range(9)),
    ]
    results = open_results(commit(f"file://{tmp_path}/out", rows))
    survey = take_survey(results, {}, run_id="r1", limit=20, sample=0)
    shown = Counter(row["error_code"] for row in failures_to_show(results, survey, 20))
    assert shown == {"corrupt": 10, "denied": 1, "empty": 9}
    assert failures_to_show(results, survey, 0) == []


def test_only_rows_of_the_run_are_opened(tmp_path: Path) -> None:
    output = f"file://{tmp_path}/out"
    commit(output, [failed("file:///x")], run_id="r1")
    run = commit(output, [failed("file:///y")], run_id="r2")
    assert open_results(run).to_table(columns=["uri"])["uri"].to_pylist() == ["file:///y"]
