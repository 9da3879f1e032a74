"""Inputs that changed since a run was planned are noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.plan import make_plan, read_plan
from prompt_iml.pipeline.scan.scan import changed_since, plan_of
from prompt_iml.pipeline.settings import ScanSettings
from prompt_iml.pipeline.sources import list_units
from prompt_iml.pipeline.sources.changes import Listed, changed_input
from prompt_iml.pipeline.sources.inputs import Entry
from prompt_iml.pipeline.units import ObjectRef

if TYPE_CHECKING:
    from tests.helpers.stores import Folder, Store


def planned(*inputs: str, output: str, **options: Any) -> tuple[Run, ScanSettings]:
    """Plan a run of the inputs."""
    run, listed = Run(output, "one"), list[Listed]()
    make_plan(run, list_units(inputs, images_per_unit=2, listed=listed, **options), listed)
    return run, ScanSettings(inputs=list(inputs), output=output)


def test_unchanged_inputs_are_unchanged(store: Store) -> None:
    for name in ("in/a.jpg", "in/b.jpg", "c.jpg"):
        store.put(name, b"data")
    inputs = (f"{store.uri}/in", store.put("list.txt", b"c.jpg"), f"{store.uri}/c.jpg")
    run, settings = planned(*inputs, output=f"{store.uri}/out")
    assert changed_since(run, settings) == ""


def test_an_output_in_the_scanned_folder_is_no_change(store: Store) -> None:
    store.put("a.jpg", b"data")
    run, settings = planned(store.uri, output=f"{store.uri}/out")
    for name in (
        *("results/part-1.parquet", "report.html", "_runs/one/summary.json", "exports/coco.json"),
        *("exports/overlays/in/a.jpg", "exports/images/a.jpg", "reviews/review-1.parquet"),
    ):
        store.put(f"out/{name}", b"data")
    assert changed_since(run, settings) == ""
    for name in ("exports/overlays/b.jpg", "out/exports/mine.jpg", "out/results/c.jpg"):
        store.put(name, b"data")  # not written by a command
    names = [f"{store.uri}/{name}" for name in ("a.jpg", "exports/overlays/b.jpg")]
    names += [f"{store.uri}/out/{name}" for name in ("exports/mine.jpg", "results/c.jpg")]
    (unit,) = list_units([store.uri], images_per_unit=9)
    assert [ref.uri for ref in unit.objects] == names
    (overlays,) = list_units([f"{store.uri}/out/exports/overlays"], images_per_unit=9)
    assert [ref.uri for ref in overlays.objects] == [f"{store.uri}/out/exports/overlays/in/a.jpg"]
    assert changed_since(run, settings)


@pytest.mark.parametrize("name", ["in/c.jpg", "in/a.jpg", "in/0.jpg"])
def test_a_file_that_was_added_or_replaced_is_noticed(name: str, store: Store) -> None:
    store.put("in/a.jpg", b"data")
    store.put("in/b.jpg", b"data")
    run, settings = planned(f"{store.uri}/in", output=f"{store.uri}/out")
    store.put(name, b"other")
    assert changed_since(run, settings).startswith(f"{store.uri}/in holds other files")


@pytest.mark.parametrize("text", [b"a.jpg\nb.jpg\nc.jpg", b"a.jpg", b"a.jpg\nc.jpg", b""])
def test_a_list_that_was_edited_is_noticed(text: bytes, store: Store) -> None:
    listed = store.put("list.txt", b"a.jpg\nb.jpg")
    run, settings = planned(listed, output=f"{store.uri}/out")
    store.put("list.txt", text)
    assert "list.txt" in changed_since(run, settings)


def test_a_run_that_resumes_says_so_and_keeps_its_plan(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = store.put("list.txt", b"a.jpg\nb.jpg")
    run, settings = planned(listed, output=f"{store.uri}/out")
    plan = plan_of(run, settings)
    assert "lists others" not in capsys.readouterr().err
    store.put("list.txt", b"a.jpg\nb.jpg\nc.jpg")
    assert plan_of(run, settings) == plan
    assert "this run scans what was listed then" in capsys.readouterr().err


def test_behind_a_limit_nothing_is_compared(folder: Folder) -> None:
    names = b"\n".join(b"%d.jpg" % n for n in range(1000))
    listed = folder.put("list.txt", names)
    run, settings = planned(listed, output=f"{folder.uri}/out", limit=1)
    assert not read_plan(run).inputs[0]["is_whole"]
    folder.put("list.txt", names + b"\nmore.jpg")
    assert changed_since(run, settings) == ""
    folder.put("list.txt", b"other.jpg\n" + names)
    assert "list.txt" in changed_since(run, settings)


def test_inputs_that_are_gone_or_take_long_are_not_compared(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = planned(folder.put("a.jpg", b"data"), output=f"{folder.uri}/out")
    folder.remove("a.jpg")
    assert changed_since(run, settings) == ""
    assert "a.jpg was not compared with the plan: no such input" in capsys.readouterr().err

    entry = Entry("objects", ObjectRef("file:///a.jpg"))
    plan = [{"entries": 1, "is_whole": True, "sha256": ""}]
    assert changed_input(["in"], plan, lambda name: iter([entry])) == "in"
    assert changed_input(["in"], plan, lambda name: iter([entry]), seconds=-1) is None
    assert "in was not compared with the plan: listing takes" in capsys.readouterr().err


def test_a_plan_of_an_earlier_version_has_nothing_to_compare() -> None:
    assert changed_input(["in"], [], lambda name: iter([])) is None
