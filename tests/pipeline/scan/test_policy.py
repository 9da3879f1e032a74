"""`scan --policy`: a policy of one's own labels the rows and binds the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.chosen_model import chosen_model
from prompt_iml.pipeline.scan.scan import differing, row_spec, run_config
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec
from prompt_iml.pipeline.settings import ScanSettings
from tests.bench.null_model import write_null_model


def test_a_policy_of_ones_own_makes_the_rows_and_binds_the_run(tmp_path: Path) -> None:
    null = str(write_null_model(tmp_path / "model"))
    mine = Policy("mine", manipulated_at=0.4, authentic_below=0.3)
    (tmp_path / "policy.json").write_text(mine.to_json())
    flags = {"policy": str(tmp_path / "policy.json"), "model": null}
    settings = ScanSettings(inputs=["in"], output="out", **flags)
    model = replace(load_model(null), policy=mine)
    spec = RowSpec.from_json(row_spec(settings, model).to_json())
    assert RowMaker(spec).provenance["policy"] == "mine"
    plain = settings.model_copy(update={"policy": None})
    maker = RowMaker(row_spec(plain, load_model(null)))
    assert maker.provenance["policy"] == load_model(null).policy.id
    assert run_config(settings, model)["policy"] == mine.to_dict()


def test_a_closer_look_makes_the_rows_and_binds_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    null = str(write_null_model(tmp_path / "model"))
    settings = ScanSettings(inputs=["in"], output="out", model=null, closer_look=16)
    model = chosen_model(load_model(null), closer_look=settings.closer_look)
    assert "was calibrated with --closer-look 0, not 16" in capsys.readouterr().err
    spec = RowSpec.from_json(row_spec(settings, model).to_json())
    assert RowMaker(spec).provenance["model_digest"] == model.digest != load_model(null).digest
    config = run_config(settings, model)
    assert (config["closer_look"], config["policy"]["closer_look"]) == (16, 16)
    plain = settings.model_copy(update={"closer_look": None})
    without = run_config(plain, load_model(null))
    assert differing(config, without) == ["closer_look", "policy"]
    assert differing(config, config) == []
    assert "closer_look" not in run_config(plain, load_model(null))
