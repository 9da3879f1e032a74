"""Shares of a scan are disjoint and together cover it."""

from __future__ import annotations

import pytest

from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.plan import waves
from prompt_iml.pipeline.scan.scan import plan_of, run_config, sliced
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.units import Unit
from tests.helpers.stores import Folder

UNITS = [Unit("tar", f"s3://b/{n}.tar", n) for n in range(1000)]


def test_shares_are_disjoint_and_all_of_it() -> None:
    shares = [list(sliced(UNITS, f"{place}/7")) for place in range(1, 8)]
    assert sorted(unit.uri for share in shares for unit in share) == sorted(u.uri for u in UNITS)
    assert all(100 < len(share) < 190 for share in shares)


def test_one_share_is_everything() -> None:
    assert list(sliced(UNITS, None)) == list(sliced(UNITS, "1/1")) == UNITS


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="3/2"):
        ScanSettings(inputs=["in"], output="out", slice="3/2")


def test_the_plan_of_a_share_holds_its_share(folder: Folder) -> None:
    for number in range(40):
        folder.put(f"in/{number}.jpg", bytes([number]))
    planned = []
    for place in (1, 2):
        settings = ScanSettings(
            inputs=[f"{folder.uri}/in"], output=folder.uri, slice=f"{place}/2", images_per_unit=4
        )
        plan = plan_of(Run(folder.uri, f"run-{place}"), settings)
        planned += [unit.unit for wave in waves(plan, 100) for unit in wave]
    assert len(planned) == len(set(planned)) == 10


def test_a_share_is_a_run_of_its_own(folder: Folder) -> None:
    model = load_model("prompt-iml-micro")
    settings = ScanSettings(inputs=[folder.uri], output=folder.uri)
    assert "slice" not in run_config(settings, model)
    assert run_config(settings.model_copy(update={"slice": "2/3"}), model)["slice"] == "2/3"
