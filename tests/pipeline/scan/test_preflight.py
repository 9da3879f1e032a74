"""A cluster without room, or whose nodes cannot scan, is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import ray

from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.scan import preflight
from prompt_iml.pipeline.scan.preflight import check_node
from prompt_iml.pipeline.scan.scan import row_spec
from prompt_iml.pipeline.scan.scanner import ScanSpec
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.storage import storage
from tests.helpers.stores import Bucket, Folder


@pytest.fixture
def spec(folder: Folder, cluster: None) -> ScanSpec:
    settings = ScanSettings(inputs=[folder.uri], output=folder.uri)
    run = Run(folder.uri, "r")
    storage.create_once(run.plan_uri, b"{}")
    return ScanSpec(run, row_spec(settings, load_model(settings.model)))


@pytest.fixture
def busy(cluster: None) -> Iterator[None]:
    """Hold every CPU of the cluster."""

    class Idle:
        def here(self) -> bool:
            return True

    holder = ray.remote(num_cpus=2)(Idle).remote()
    ray.get(holder.here.remote())
    yield
    ray.kill(holder)


def test_a_node_that_can_scan_is_accepted(spec: ScanSpec) -> None:
    check_node(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/models/mine"}, "cannot scan: no model '/models/mine'"),
        ({"model_digest": "0" * 64}, "install the same version of prompt-iml on every node"),
        ({"engine": "abacus"}, "abacus"),
    ],
)
def test_a_node_that_cannot_scan_is_refused_with_the_reason(
    spec: ScanSpec, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        check_node(replace(spec, rows=replace(spec.rows, **change)))  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_a_node_without_the_output_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "RowMaker", lambda rows: None)
    settings = ScanSettings(inputs=["-"], output="-")
    spec = ScanSpec(Run(f"file://{tmp_path}", "r"), row_spec(settings, load_model(settings.model)))
    assert f"{tmp_path}/_runs/r/plan.json is not there" in preflight._node_error(spec)
    storage.create_once(spec.run.plan_uri, b"{}")
    assert not preflight._node_error(spec)


class Elsewhere(str):
    """Value that no node can unpickle, like one of a module that only the driver has."""

    def __reduce__(self) -> tuple[object, ...]:
        return import_module, ("only_here",)


def test_a_node_that_cannot_read_the_task_names_the_error(spec: ScanSpec) -> None:
    """The message is one line, although Ray's is a whole traceback."""
    with pytest.raises(UsageError) as refusal:
        check_node(replace(spec, rows=replace(spec.rows, model=Elsewhere())))
    expected = "cannot scan: ModuleNotFoundError: No module named 'only_here'"
    assert str(refusal.value).endswith(expected)


def test_a_node_without_credentials_is_refused(spec: ScanSpec, strangers: Bucket) -> None:
    with pytest.raises(UsageError, match=r"cannot scan: .*InvalidAccessKeyId"):
        check_node(replace(spec, run=Run(strangers.uri, "r")))


def test_a_cluster_that_others_hold_is_not_waited_for(spec: ScanSpec, busy: None) -> None:
    with pytest.raises(UsageError, match="no engine in 1 s: either no CPU"):
        check_node(spec, seconds=1)
