"""Registry of prompt sets: reading, races for `current`, leases; on a disk and on S3."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompt_iml.engine.errors import (
    DamagedModel,
    LeaseHeld,
    LeaseLost,
    NotPromoted,
    UnknownPrompts,
    UsageError,
)
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.registry.documents import State
from prompt_iml.pipeline.registry.promotion import (
    Lease,
    leased,
    promote,
    publish,
    record_verdict,
    roll_back,
    short_name,
    swap,
    take_lease,
)
from prompt_iml.pipeline.registry.registry import (
    CurrentPromptSet,
    PromptSetRef,
    Registry,
    bases,
    look_up,
    with_prompt_set,
)
from prompt_iml.pipeline.storage import storage
from tests.helpers.stores import Folder, Store

BASE = load_model("prompt-iml-micro")
STORED = Path(__file__).parents[2] / "stored" / "registry-v1"
PASSED = {"passed": True, "reasons": []}


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(f"{store.uri}/registry", BASE.sha256)


def prompt_set(number: int) -> PromptSet:
    tensors = tuple(t + np.float32(number) for t in BASE.prompts.tensors)
    return PromptSet(tensors, BASE.prompts.id, {"dev.f1": number / 10})


def add(registry: Registry, number: int, verdict: dict[str, object] = PASSED) -> str:
    added = publish(
        registry, prompt_set(number), BASE.policy, parent=None, made_by="test", model=BASE.id
    )
    record_verdict(registry, added, verdict)
    return added


def outcome(step: Callable[[], object]) -> str:
    """Run a step; return `done`, or the name of its error."""
    try:
        step()
    except (NotPromoted, LeaseHeld, LeaseLost) as error:
        return type(error).__name__
    return "done"


def test_a_prompt_set_is_read_back(registry: Registry) -> None:
    added = add(registry, 1)
    stored = registry.read(added)
    assert stored.prompts.id == prompt_set(1).id == added == stored.record["prompt_set"]
    assert stored.policy == BASE.policy
    assert stored.record["metrics"] == {"dev.f1": 0.1}
    assert with_prompt_set(BASE, registry, added).prompts.id == prompt_set(1).id
    assert registry.ids() == [added]


def test_the_same_set_has_the_same_id(registry: Registry) -> None:
    assert add(registry, 1) == add(registry, 1)
    assert add(registry, 2) != add(registry, 1)
    assert len(registry.ids()) == 2


def test_find(registry: Registry) -> None:
    one, two = add(registry, 1), add(registry, 2)
    for name in (one, one[:8]):
        assert registry.find(name) == one
    for name in ("0" * 64, "0" * 16, two[:4], "nobody"):
        with pytest.raises(UnknownPrompts, match="no prompt set"):
            registry.find(name)


def test_the_same_set_with_another_policy_is_refused(registry: Registry) -> None:
    """It would be promoted with a calibration that the gate has not evaluated."""
    added = add(registry, 1)
    other = Policy("other")
    with pytest.raises(UsageError, match=r"stored with another calibration .* another --seed"):
        publish(registry, prompt_set(1), other, parent=None, made_by="test", model=BASE.id)
    assert registry.read(added).policy == BASE.policy


def test_a_damaged_set_is_refused(folder: Folder) -> None:
    registry = Registry(folder.uri, BASE.sha256)
    added = add(registry, 1)
    storage.write(registry.file(added, "policy.json"), b"{}")
    with pytest.raises(DamagedModel, match="damaged"):
        registry.read(added)
    with pytest.raises(DamagedModel, match="damaged"):
        promote(registry, added, expected=None, by="test")


def test_a_set_without_its_record_does_not_exist(registry: Registry) -> None:
    added = add(registry, 1)
    if storage.is_s3(registry.uri):
        bucket, key = storage.split_s3(registry.file(added, "record.json"))
        storage.s3_client().delete_object(Bucket=bucket, Key=key)
    else:
        storage.local_path(registry.file(added, "record.json")).unlink()
    assert registry.ids() == []
    with pytest.raises(UnknownPrompts):
        registry.read(added)
    assert add(registry, 1) == added
    assert registry.ids() == [added]


def test_promote_and_roll_back_like_a_stack(registry: Registry) -> None:
    a, b, c = (add(registry, number) for number in (1, 2, 3))
    current: str | None = None
    for added in (a, b):
        current = promote(registry, added, expected=current, by="ann").current
    assert roll_back(registry, expected=b, by="bob").current == a
    assert promote(registry, c, expected=a, by="ann").current == c
    assert roll_back(registry, expected=c, by="bob").current == a
    assert roll_back(registry, expected=a, by="bob").current is None
    with pytest.raises(NotPromoted, match="nothing to roll back"):
        roll_back(registry, expected=None, by="bob")
    moves = registry.state().moves
    assert [(m.kind, m.prompt_set) for m in moves] == [
        ("promote", a),
        ("promote", b),
        ("rollback", a),
        ("promote", c),
        ("rollback", a),
        ("rollback", None),
    ]
    assert {m.by for m in moves} == {"ann", "bob"}


def test_what_is_current_is_not_promoted_again(registry: Registry) -> None:
    """A rollback would lead back to the same set."""
    added = add(registry, 1)
    promote(registry, added, expected=None, by="ann")
    with pytest.raises(NotPromoted, match="current already"):
        promote(registry, added, expected=added, by="ann")


def test_a_refused_set_is_never_current(registry: Registry) -> None:
    refused = add(registry, 1, {"passed": False, "reasons": ["f1 fell"]})
    with pytest.raises(NotPromoted, match="f1 fell"):
        promote(registry, refused, expected=None, by="test")
    unasked = publish(
        registry, prompt_set(2), BASE.policy, parent=None, made_by="test", model=BASE.id
    )
    with pytest.raises(NotPromoted, match="never evaluated"):
        promote(registry, unasked, expected=None, by="test")
    assert registry.state().current is None
    assert record_verdict(registry, refused, PASSED)["passed"] is False  # the first one stands


def _promote(registry: Registry, added: str, barrier: threading.Barrier) -> str:
    barrier.wait(60)
    return outcome(partial(promote, registry, added, expected=None, by=added))


@pytest.fixture(scope="module")
def processes(s3_endpoint: str) -> Iterator[ProcessPoolExecutor]:
    """Start two processes that know the S3 server and have imported all modules."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        list(pool.map(short_name, [None] * 4))
        yield pool


def test_of_many_promoters_in_threads_one_wins(registry: Registry) -> None:
    ids = [add(registry, number) for number in range(4)]
    barrier = threading.Barrier(len(ids))
    with ThreadPoolExecutor(len(ids)) as pool:
        outcomes = list(pool.map(lambda added: _promote(registry, added, barrier), ids))
    assert sorted(outcomes) == ["NotPromoted"] * 3 + ["done"]
    assert registry.state().current == ids[outcomes.index("done")]
    assert len(registry.state().moves) == 1


def test_of_two_promoters_in_processes_one_wins(
    registry: Registry, processes: ProcessPoolExecutor
) -> None:
    ids = [add(registry, number) for number in range(2)]
    promotions = [
        processes.submit(promote, registry, added, expected=None, by="test") for added in ids
    ]
    outcomes = [outcome(promotion.result) for promotion in promotions]
    assert sorted(outcomes) == ["NotPromoted", "done"]
    assert registry.state().current == ids[outcomes.index("done")]


def test_swaps_of_many_threads_are_all_kept(registry: Registry) -> None:
    def rename(state: State) -> State:
        return replace(state)

    with ThreadPoolExecutor(4) as pool:
        numbers = [state.number for state in pool.map(lambda _: swap(registry, rename), range(12))]
    assert sorted(numbers) == list(range(1, 13))
    assert registry.state().number == 12


def test_an_answer_lost_on_the_way_is_found(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was stored although its response was lost counts once."""
    create = storage.create_once

    def forgetful(uri: str, data: bytes) -> bool:
        create(uri, data)
        return False

    added = add(registry, 1)
    monkeypatch.setattr(storage, "create_once", forgetful)
    assert promote(registry, added, expected=None, by="test").number == 1
    assert len(registry.state().moves) == 1


def test_two_leases_never_overlap(registry: Registry) -> None:
    with ThreadPoolExecutor(4) as pool:
        take = partial(take_lease, registry, seconds=60)
        outcomes = list(pool.map(lambda owner: outcome(lambda: take(owner)), "abcd"))
    assert sorted(outcomes) == ["LeaseHeld"] * 3 + ["done"]
    holder = registry.state().lease
    assert holder
    with pytest.raises(LeaseHeld, match=f"{holder.owner} re-trains already"):
        take_lease(registry, "late", 60)


def test_a_released_lease_is_free(registry: Registry) -> None:
    with leased(registry, "one", 60) as one:
        assert registry.state().lease
    with leased(registry, "two", 60) as two:
        assert two.token > one.token
    assert registry.state().lease is None


def test_an_expired_lease_is_taken_over_and_fenced_off(registry: Registry) -> None:
    added = add(registry, 1)
    slow = take_lease(registry, "slow", 0.01)
    time.sleep(0.02)
    outcomes = [outcome(partial(take_lease, registry, owner, 60)) for owner in ("next", "third")]
    assert outcomes == ["done", "LeaseHeld"]
    with pytest.raises(LeaseLost, match="slow ran out, and now next holds it"):
        promote(registry, added, expected=None, by="slow", lease=slow)
    with pytest.raises(LeaseLost):
        slow.renew()
    slow.release()
    holder = registry.state().lease
    assert holder
    assert holder.owner == "next"
    following = Lease(registry, "next", holder.token, 60)
    assert promote(registry, added, expected=None, by="next", lease=following).current == added


def test_a_takeover_between_reading_and_promotion_is_noticed(registry: Registry) -> None:
    """The takeover comes after the promoter has read the log and before it writes to it."""
    slow = take_lease(registry, "slow", 0.01)
    time.sleep(0.02)
    looked = registry.state()
    slow.check(looked)
    take_lease(registry, "next", 60)
    entry = registry.entry(looked.number + 1)
    assert not storage.create_once(entry, b"{}")

    def change(state: State) -> State:
        slow.check(state)
        return state

    with pytest.raises(LeaseLost):
        swap(registry, change)


def test_a_lease_is_renewed_while_it_is_held(registry: Registry) -> None:
    with leased(registry, "one", 0.3) as lease:
        taken = registry.state()
        while (state := registry.state(taken)) == taken:
            time.sleep(0.05)
        assert taken.lease
        assert state.lease
        assert state.lease.token == taken.lease.token == lease.token
        assert state.lease.expires > taken.lease.expires
    assert outcome(partial(take_lease, registry, "two", 60)) == "done"


def test_a_lost_lease_promotes_nothing_and_stays_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewal is refused too, and release leaves the next holder's lease."""
    added = add(registry, 1)
    with leased(registry, "one", 600) as lease:
        with monkeypatch.context() as later:
            later.setattr("prompt_iml.pipeline.registry.promotion.time.time", lambda: 4e9)
            take_lease(registry, "two", 60)
        with pytest.raises(LeaseLost):
            lease.renew()
        with pytest.raises(LeaseLost, match="now two holds it"):
            promote(registry, added, expected=None, by="one", lease=lease)
    state = registry.state()
    assert state.current is None
    assert state.lease
    assert state.lease.owner == "two"


def test_following_current(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = CurrentPromptSet(BASE, PromptSetRef(registry.uri, None, refresh=True))
    assert not follower.refresh()
    assert follower.model is BASE
    added = add(registry, 1)
    promote(registry, added, expected=None, by="test")
    pinned = CurrentPromptSet(BASE, PromptSetRef(registry.uri, None))
    assert not pinned.refresh()
    assert follower.refresh()
    assert follower.model.prompts.id == prompt_set(1).id
    reads: list[str] = []
    read = storage.read_bytes

    def counted(uri: str) -> bytes:
        reads.append(uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", counted)
    assert not follower.refresh()
    assert len(reads) == 1
    roll_back(registry, expected=added, by="test")
    assert follower.refresh()
    assert follower.model is BASE


def test_prompts_of_another_shape_are_refused(folder: Folder) -> None:
    registry = Registry(folder.uri, BASE.sha256)
    odd = PromptSet((np.zeros((1, 1, 1), np.float32),))
    added = publish(registry, odd, BASE.policy, parent=None, made_by="test", model=BASE.id)
    with pytest.raises(Exception, match="takes"):
        with_prompt_set(BASE, registry, added)


def run_models(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = main(["models", *arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_the_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"{store.uri}/registry"
    registry = Registry(uri, BASE.sha256)
    good, bad = add(registry, 1), add(registry, 2, {"passed": False, "reasons": ["f1 fell"]})
    at = ("--registry", uri)
    code, summary, _ = run_models(capsys, "promote", good[:12], *at)
    assert (code, summary["current"]) == (0, good)
    code, _, err = run_models(capsys, "promote", bad[:12], *at)
    assert code == 2
    assert "f1 fell" in err
    assert len(err.splitlines()) == 1
    code, summary, err = run_models(capsys, "list", *at)
    assert code == 0
    (base,) = summary["bases"]
    assert {v["version"]: v["verdict"] for v in base["versions"]} == {
        good: "passed",
        bad: "refused",
    }
    assert base["current"] == good
    assert "current" in err
    assert "f1 fell" in err
    code, summary, _ = run_models(capsys, "rollback", *at)
    assert (code, summary["current"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote"], "needs the id"),
        (["promote", "12345678"], "12345678"),
        (["rollback"], "nothing"),
        (["rollback", "12345678"], "leave out"),
        (["list", "--model", "nobody"], "nobody"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], message: str, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_models(capsys, *arguments, "--registry", folder.uri)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_models_of_an_empty_registry(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    code, summary, _ = run_models(capsys, "list", "--registry", f"{folder.uri}/none")
    assert (code, summary) == (0, {"bases": []})


@pytest.fixture
def earlier(store: Store) -> Registry:
    """Return a registry of the earlier layout: one set current, one rolled back, one refused, and
    the lease of a cycle that died."""
    for path in STORED.rglob("*.*"):
        store.put(str(path.relative_to(STORED)), path.read_bytes())
    (base,) = bases(store.uri)
    return Registry(store.uri, base)


def filled(number: int) -> PromptSet:
    """Return the prompt set with this number in the stored registry, of one branch alone."""
    layers = BASE.prompts.tensors[: len(BASE.config.swin.depths)]
    return PromptSet(tuple(np.full(t.shape, number, np.float32) for t in layers))


def test_a_registry_of_the_earlier_layout_is_read(
    earlier: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = (registry_id(earlier, number) for number in (1, 2, 3))
    assert sorted((one, two, three)) == earlier.ids()
    assert earlier.state().current == one
    assert earlier.state().withdrawn == {two}
    for number, long in ((1, one), (2, two), (3, three)):
        assert earlier.read(long).prompts.id == filled(number).id
        assert long == earlier.find(long[:8]) == look_up(earlier, filled(number).id)
    config = replace(BASE.config, high_frequency_prompts=0)
    model = replace(BASE, sha256=earlier.base, config=config)
    ref = PromptSetRef(earlier.uri, look_up(earlier, "current"))
    assert CurrentPromptSet(model, ref).model.prompts.id == filled(1).id
    code, summary, err = run_models(capsys, "list", "--registry", earlier.uri)
    assert code == 0
    found = [(v["version"], v["prompt_set"], v["verdict"]) for v in summary["bases"][0]["versions"]]
    verdicts = [(one, 1, "passed"), (two, 2, "passed"), (three, 3, "refused")]
    assert sorted(found) == sorted((v, filled(n).id, word) for v, n, word in verdicts)
    assert f"current: {filled(1).id}" in err
    assert f"* {filled(1).id}" in err


def registry_id(registry: Registry, number: int) -> str:
    """Return the long id of a set in the stored registry."""
    (found,) = (i for i in registry.ids() if registry.record(i)["metrics"]["dev.f1"] == number / 10)
    assert len(found) == 64
    return found


def test_a_registry_of_the_earlier_layout_is_continued(
    earlier: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets stay rolled back or refused, and new sets have the id that rows name."""
    one, two, three = (registry_id(earlier, number) for number in (1, 2, 3))
    policy = earlier.read(one).policy

    def again(number: int) -> str:
        made = filled(number)
        return publish(earlier, made, policy, parent=one, made_by="test", model="stored@test")

    assert [again(number) for number in (1, 2, 3)] == [one, two, three]
    assert record_verdict(earlier, three, PASSED)["passed"] is False
    monkeypatch.setattr("prompt_iml.pipeline.registry.promotion.time.time", lambda: 4e9)
    with leased(earlier, "test", 60) as lease:
        with pytest.raises(NotPromoted, match="was rolled back"):
            promote(earlier, two, expected=one, by="test", lease=lease)
        four = again(4)
        assert four == filled(4).id
        record_verdict(earlier, four, PASSED)
        assert promote(earlier, four, expected=one, by="test", lease=lease).current == four
    kinds = [move.kind for move in earlier.state().moves]
    assert kinds == ["promote", "promote", "rollback", "promote"]
    assert roll_back(earlier, expected=four, by="test").current == one
