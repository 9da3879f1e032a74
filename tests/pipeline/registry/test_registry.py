"""The registry of prompt sets: versions, races for `current`, leases; on a disk and on S3."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from prompt_iml.engine.errors import DamagedModel, LeaseHeld, LeaseLost, NotPromoted, UnknownPrompts
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.registry.promotion import (
    Lease,
    add_verdict,
    add_version,
    leased,
    name_of,
    promote,
    roll_back,
    swap,
    take_lease,
)
from prompt_iml.pipeline.registry.registry import (
    CurrentPrompts,
    PromptSource,
    Registry,
    State,
    with_version,
)
from prompt_iml.pipeline.storage import storage
from tests.conftest import Folder, Store

BASE = load_model("prompt-iml-micro")
PASSED = {"passed": True, "reasons": []}


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(f"{store.uri}/registry", BASE.sha256)


def prompt_set(number: int) -> PromptSet:
    tensors = tuple(t + np.float32(number) for t in BASE.prompts.tensors)
    return PromptSet(tensors, BASE.prompts.id, {"dev.f1": number / 10})


def add(registry: Registry, number: int, verdict: dict[str, object] = PASSED) -> str:
    digest = add_version(
        registry, prompt_set(number), BASE.policy, parent=None, made_by="test", model=BASE.id
    )
    add_verdict(registry, digest, verdict)
    return digest


def outcome(step: Callable[[], object]) -> str:
    """`done`, or the name of what was raised."""
    try:
        step()
    except (NotPromoted, LeaseHeld, LeaseLost) as error:
        return type(error).__name__
    return "done"


def test_a_version_is_read_back(registry: Registry) -> None:
    digest = add(registry, 1)
    version = registry.version(digest)
    assert version.prompts.id == prompt_set(1).id == version.record["prompt_set"]
    assert version.policy == BASE.policy
    assert version.record["metrics"] == {"dev.f1": 0.1}
    assert with_version(BASE, registry, digest).prompts.id == prompt_set(1).id
    assert registry.versions() == [digest]


def test_the_same_set_is_the_same_version(registry: Registry) -> None:
    assert add(registry, 1) == add(registry, 1)
    assert add(registry, 2) != add(registry, 1)
    assert len(registry.versions()) == 2


def test_find(registry: Registry) -> None:
    one, two = add(registry, 1), add(registry, 2)
    for name in (one, one[:8], prompt_set(1).id):
        assert registry.find(name) == one
    for name in ("0" * 64, two[:4], "nobody"):
        with pytest.raises(UnknownPrompts, match="no prompt set"):
            registry.find(name)
    other = Policy("other")
    add_version(registry, prompt_set(1), other, parent=None, made_by="test", model=BASE.id)
    with pytest.raises(UnknownPrompts, match="several"):
        registry.find(prompt_set(1).id)


def test_damage_is_told(folder: Folder) -> None:
    registry = Registry(folder.uri, BASE.sha256)
    digest = add(registry, 1)
    storage.write(registry.file(digest, "policy.json"), b"{}")
    with pytest.raises(DamagedModel, match="damaged"):
        registry.version(digest)
    with pytest.raises(DamagedModel, match="damaged"):
        promote(registry, digest, expected=None, by="test")


def test_a_version_without_its_record_is_none(registry: Registry) -> None:
    digest = add(registry, 1)
    if storage.is_s3(registry.uri):
        bucket, key = storage.split_s3(registry.file(digest, "record.json"))
        storage.s3_client().delete_object(Bucket=bucket, Key=key)
    else:
        storage.local_path(registry.file(digest, "record.json")).unlink()
    assert registry.versions() == []
    with pytest.raises(UnknownPrompts):
        registry.version(digest)
    assert add(registry, 1) == digest
    assert registry.versions() == [digest]


def test_promote_and_roll_back_like_a_stack(registry: Registry) -> None:
    a, b, c = (add(registry, number) for number in (1, 2, 3))
    current: str | None = None
    for version in (a, b):
        current = promote(registry, version, expected=current, by="ann").current
    assert roll_back(registry, expected=b, by="bob").current == a
    assert promote(registry, c, expected=a, by="ann").current == c
    assert roll_back(registry, expected=c, by="bob").current == a
    assert roll_back(registry, expected=a, by="bob").current is None
    with pytest.raises(NotPromoted, match="nothing to roll back"):
        roll_back(registry, expected=None, by="bob")
    moves = registry.state().moves
    assert [(m.kind, m.version) for m in moves] == [
        ("promote", a),
        ("promote", b),
        ("rollback", a),
        ("promote", c),
        ("rollback", a),
        ("rollback", None),
    ]
    assert {m.by for m in moves} == {"ann", "bob"}


def test_what_is_current_is_not_promoted_again(registry: Registry) -> None:
    """Or a rollback would lead back to it."""
    digest = add(registry, 1)
    promote(registry, digest, expected=None, by="ann")
    with pytest.raises(NotPromoted, match="current already"):
        promote(registry, digest, expected=digest, by="ann")


def test_a_refused_set_is_never_current(registry: Registry) -> None:
    refused = add(registry, 1, {"passed": False, "reasons": ["f1 fell"]})
    with pytest.raises(NotPromoted, match="f1 fell"):
        promote(registry, refused, expected=None, by="test")
    unasked = add_version(
        registry, prompt_set(2), BASE.policy, parent=None, made_by="test", model=BASE.id
    )
    with pytest.raises(NotPromoted, match="never evaluated"):
        promote(registry, unasked, expected=None, by="test")
    assert registry.state().current is None
    assert add_verdict(registry, refused, PASSED)["passed"] is False  # the first one stands


def _promote(registry: Registry, digest: str, barrier: threading.Barrier) -> str:
    barrier.wait(60)
    return outcome(partial(promote, registry, digest, expected=None, by=digest))


@pytest.fixture(scope="module")
def processes(s3_endpoint: str) -> Iterator[ProcessPoolExecutor]:
    """Two processes that know the S3 server and have imported what they will need."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        list(pool.map(name_of, [None] * 4))
        yield pool


def test_of_many_promoters_in_threads_one_wins(registry: Registry) -> None:
    digests = [add(registry, number) for number in range(4)]
    barrier = threading.Barrier(len(digests))
    with ThreadPoolExecutor(len(digests)) as pool:
        told = list(pool.map(lambda digest: _promote(registry, digest, barrier), digests))
    assert sorted(told) == ["NotPromoted"] * 3 + ["done"]
    assert registry.state().current == digests[told.index("done")]
    assert len(registry.state().moves) == 1


def test_of_two_promoters_in_processes_one_wins(
    registry: Registry, processes: ProcessPoolExecutor
) -> None:
    digests = [add(registry, number) for number in range(2)]
    promotions = [
        processes.submit(promote, registry, digest, expected=None, by="test") for digest in digests
    ]
    told = [outcome(promotion.result) for promotion in promotions]
    assert sorted(told) == ["NotPromoted", "done"]
    assert registry.state().current == digests[told.index("done")]


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
    """The store has our entry and a retry of it is refused: the swap is ours, once."""
    create = storage.create_once

    def forgetful(uri: str, data: bytes) -> bool:
        create(uri, data)
        return False

    digest = add(registry, 1)
    monkeypatch.setattr(storage, "create_once", forgetful)
    assert promote(registry, digest, expected=None, by="test").number == 1
    assert len(registry.state().moves) == 1


def test_two_leases_never_overlap(registry: Registry) -> None:
    with ThreadPoolExecutor(4) as pool:
        take = partial(take_lease, registry, seconds=60)
        told = list(pool.map(lambda owner: outcome(lambda: take(owner)), "abcd"))
    assert sorted(told) == ["LeaseHeld"] * 3 + ["done"]
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
    digest = add(registry, 1)
    slow = take_lease(registry, "slow", 0.01)
    time.sleep(0.02)
    told = [outcome(partial(take_lease, registry, owner, 60)) for owner in ("next", "third")]
    assert told == ["done", "LeaseHeld"]
    with pytest.raises(LeaseLost, match="slow ran out, and now next holds it"):
        promote(registry, digest, expected=None, by="slow", lease=slow)
    with pytest.raises(LeaseLost):
        slow.renew()
    slow.release()
    holder = registry.state().lease
    assert holder
    assert holder.owner == "next"
    following = Lease(registry, "next", holder.token, 60)
    assert promote(registry, digest, expected=None, by="next", lease=following).current == digest


def test_a_takeover_between_look_and_promotion_is_noticed(registry: Registry) -> None:
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
    with leased(registry, "one", 0.6):
        time.sleep(1)
        assert outcome(partial(take_lease, registry, "two", 60)) == "LeaseHeld"
    assert outcome(partial(take_lease, registry, "two", 60)) == "done"


def test_a_lost_lease_promotes_nothing_and_stays_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its renewals are refused too, and its release leaves the next holder's lease."""
    digest = add(registry, 1)
    with leased(registry, "one", 0.3) as lease:
        with monkeypatch.context() as later:
            later.setattr("prompt_iml.pipeline.registry.promotion.time.time", lambda: 4e9)
            take_lease(registry, "two", 60)
        time.sleep(0.3)
        with pytest.raises(LeaseLost, match="now two holds it"):
            promote(registry, digest, expected=None, by="one", lease=lease)
    state = registry.state()
    assert state.current is None
    assert state.lease
    assert state.lease.owner == "two"


def test_following_current(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = CurrentPrompts(BASE, PromptSource(registry.uri, None, refresh=True))
    assert not follower.look()
    assert follower.model is BASE
    digest = add(registry, 1)
    promote(registry, digest, expected=None, by="test")
    pinned = CurrentPrompts(BASE, PromptSource(registry.uri, None))
    assert not pinned.look()
    assert follower.look()
    assert follower.model.prompts.id == prompt_set(1).id
    reads: list[str] = []
    read = storage.read_bytes

    def counted(uri: str) -> bytes:
        reads.append(uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", counted)
    assert not follower.look()
    assert len(reads) == 1
    roll_back(registry, expected=digest, by="test")
    assert follower.look()
    assert follower.model is BASE


def test_prompts_of_another_shape_are_refused(folder: Folder) -> None:
    registry = Registry(folder.uri, BASE.sha256)
    odd = PromptSet((np.zeros((1, 1, 1), np.float32),))
    digest = add_version(registry, odd, BASE.policy, parent=None, made_by="test", model=BASE.id)
    with pytest.raises(Exception, match="takes"):
        with_version(BASE, registry, digest)


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
    code, said, _ = run_models(capsys, "promote", good[:12], *at)
    assert (code, said["current"]) == (0, good)
    code, _, err = run_models(capsys, "promote", bad[:12], *at)
    assert code == 2
    assert "f1 fell" in err
    assert len(err.splitlines()) == 1
    code, said, err = run_models(capsys, "list", *at)
    assert code == 0
    (base,) = said["bases"]
    assert {v["version"]: v["verdict"] for v in base["versions"]} == {
        good: "passed",
        bad: "refused",
    }
    assert base["current"] == good
    assert "current" in err
    assert "f1 fell" in err
    code, said, _ = run_models(capsys, "rollback", *at)
    assert (code, said["current"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote"], "which"),
        (["promote", "12345678"], "12345678"),
        (["rollback"], "nothing"),
        (["rollback", "12345678"], "leave out"),
        (["list", "--model", "nobody"], "nobody"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], said: str, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_models(capsys, *arguments, "--registry", folder.uri)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_models_of_an_empty_registry(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run_models(capsys, "list", "--registry", f"{folder.uri}/none")
    assert (code, said) == (0, {"bases": []})
