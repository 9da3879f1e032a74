"""Writing to a registry of prompt sets: publishing, the moves of `current`, and the lease.

`pipeline.registry.registry` describes the layout, which needs no lock.
"""

from __future__ import annotations

import getpass
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prompt_iml.engine.errors import FetchError, LeaseHeld, LeaseLost, NotPromoted, UsageError
from prompt_iml.engine.model.folder import POLICY, PROMPTS
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.pipeline.registry.documents import LATEST, Holder, Move, State, parse_entry
from prompt_iml.pipeline.registry.registry import (
    RECORD,
    VERDICT,
    Registry,
    long_id,
    sha256,
    short_name,
)
from prompt_iml.pipeline.run.folder import Json, encode
from prompt_iml.pipeline.storage import storage

Change = Callable[[State], State]


def publish(
    registry: Registry,
    prompts: PromptSet,
    policy: Policy,
    *,
    parent: str | None,
    made_by: str,
    model: str,
) -> str:
    """Store a prompt set, unless it is stored already; return its id in the registry.

    The id does not depend on parent and metrics: a set that was rolled back or refused keeps its id
    when it is evaluated on other sets. The files stored first are kept.

    Args:
        policy: calibration and thresholds that the set was evaluated with.
        parent: id of the set that training started from; None: the model's own prompts.
        made_by: name of the cycle and person that made it, for display.
        model: id of the base model, for display.

    Raises:
        UsageError: the set is stored with another policy, which would go live unevaluated.
    """
    files = {PROMPTS: prompts.to_bytes(), POLICY: policy.to_json().encode()}
    prompt_set = _id_in(registry, prompts, files[POLICY])
    for name, data in files.items():
        if not storage.create_once(registry.file(prompt_set, name), data):
            files[name] = storage.read_bytes(registry.file(prompt_set, name))
    if files[POLICY] != policy.to_json().encode():
        raise UsageError(
            f"prompt set {prompt_set} is stored with another calibration than {policy.id}: "
            "re-train with another --seed"
        )
    record = {
        "version": prompt_set,
        "prompt_set": prompts.id,
        "parent": parent,
        "base": registry.base,
        "model": model,
        "policy": policy.id,
        "metrics": dict(PromptSet.from_bytes(files[PROMPTS]).metrics),
        "made_by": made_by,
        "made_at": timestamp(),
        "sha256": {name: sha256(data) for name, data in files.items()},
    }
    storage.create_once(registry.file(prompt_set, RECORD), encode(record))
    return prompt_set


def _id_in(registry: Registry, prompts: PromptSet, policy: bytes) -> str:
    """Return the id of a set: the long one if the earlier layout stored it already."""
    long = long_id(registry.base, prompts, policy)
    return long if storage.exists(registry.file(long, RECORD)) else prompts.id


def record_verdict(registry: Registry, prompt_set: str, verdict: Json) -> Json:
    """Store the gate's verdict on a set; return the verdict that was stored first."""
    if storage.create_once(registry.file(prompt_set, VERDICT), encode(verdict)):
        return verdict
    return registry.verdict(prompt_set) or verdict


def promote(
    registry: Registry,
    prompt_set: str,
    *,
    expected: str | None,
    by: str,
    lease: Lease | None = None,
) -> State:
    """Make a prompt set `current`, if `current` is still what was expected.

    Args:
        prompt_set: id of a set that passed the gate.
        expected: id of the set that the caller read as current and compared with.
        by: name of the person or cycle that promotes.
        lease: lease of the cycle that promotes; None for a person.

    Raises:
        NotPromoted: the gate refused the set or has not evaluated it, `current` has moved or is
            this set already, or a cycle would promote a set that was rolled back.
        LeaseLost: another cycle took the lease over.
        DamagedModel, UnknownPrompts: as `Registry.read`.
    """
    registry.read(prompt_set)
    short, verdict = short_name(prompt_set), registry.verdict(prompt_set)
    if verdict is None or not verdict["passed"]:
        why = "; ".join(verdict["reasons"]) if verdict else "it was never evaluated"
        raise NotPromoted(f"{short} has not passed the gate: {why}")

    def change(state: State) -> State:
        if lease:
            lease.check(state)
        _expect(state, expected)
        if prompt_set == state.current:
            raise NotPromoted(f"{short} is current already")
        if lease and prompt_set in state.withdrawn:
            raise NotPromoted(
                f"{short} passed the gate, but was rolled back: prompt-iml models promote "
                "can bring it back, a cycle cannot"
            )
        return replace(state, moves=(*state.moves, Move("promote", prompt_set, by, timestamp())))

    return swap(registry, change)


def roll_back(registry: Registry, *, expected: str | None, by: str) -> State:
    """Undo the last promotion that was not rolled back.

    Raises:
        NotPromoted: there is none, or `current` is not the expected set.
    """

    def change(state: State) -> State:
        _expect(state, expected)
        promoted = state.promoted
        if not promoted:
            raise NotPromoted("nothing to roll back: the model's own prompts are current")
        before = promoted[-2] if len(promoted) > 1 else None
        return replace(state, moves=(*state.moves, Move("rollback", before, by, timestamp())))

    return swap(registry, change)


def swap(registry: Registry, change: Change) -> State:
    """Apply a change to the latest state, by compare-and-swap; return the new state.

    When another writer is first, the change is applied again to the newer state. It must raise if
    that state does not allow it.
    """
    state = registry.state()
    while True:
        after = replace(change(state), number=state.number + 1)
        entry = encode({**after.to_json(), "key": secrets.token_hex(8)})
        uri = registry.entry(after.number)
        parse_entry(entry, after.number, uri)  # what no reader would take is not written
        # An entry equal to ours was written by a first attempt whose response was lost.
        if storage.create_once(uri, entry) or storage.read_bytes(uri) == entry:
            return after
        state = registry.state(state)


def _expect(state: State, expected: str | None) -> None:
    if state.current != expected:
        since = f" since {state.moves[-1].at}, by {state.moves[-1].by}," if state.moves else ""
        raise NotPromoted(
            f"current is {short_name(state.current)}{since} and not "
            f"{short_name(expected)}: check prompt-iml models list and decide again"
        )


@dataclass(slots=True)
class Lease:
    """Right to run a cycle, for a limited time; taken with `take_lease`.

    The log decides whether it is held; clocks only limit when another holder may take it over.

    Attributes:
        registry: registry in which only one cycle may run at a time.
        owner: name of the holder, for display.
        token: fencing token: a lease with a lower token than the current one cannot promote.
        seconds: time from the last renewal until it may be taken over.
    """

    registry: Registry
    owner: str
    token: int
    seconds: float

    def check(self, state: State) -> None:
        """Raise `LeaseLost` unless this lease holds in a state."""
        if state.lease is None or state.lease.token != self.token:
            since = f"now {state.lease.owner} holds it" if state.lease else "it was taken over"
            raise LeaseLost(f"the lease of {self.owner} ran out, and {since}: start again")

    def renew(self) -> None:
        """Extend the lease to `seconds` from now; raise `LeaseLost` if another holder has it."""

        def change(state: State) -> State:
            self.check(state)
            return replace(state, lease=Holder(self.owner, self.token, _from_now(self.seconds)))

        swap(self.registry, change)

    def release(self) -> None:
        """End the lease, if it is still held; on an error it is left to expire."""

        def change(state: State) -> State:
            self.check(state)
            return replace(state, lease=None)

        try:
            swap(self.registry, change)
        except (LeaseLost, FetchError, UsageError):
            return


def _from_now(seconds: float) -> float:
    return min(time.time() + seconds, LATEST)


def take_lease(registry: Registry, owner: str, seconds: float) -> Lease:
    """Take the lease, or take it over from a holder that let it expire.

    Raises:
        LeaseHeld: another holder's lease has not expired.
    """

    def change(state: State) -> State:
        held = state.lease
        if held and held.expires > time.time():
            until = datetime.fromtimestamp(held.expires, UTC).isoformat(timespec="seconds")
            raise LeaseHeld(
                f"{held.owner} re-trains already, with a lease until {until}: wait until it ends"
            )
        return replace(state, lease=Holder(owner, state.number + 1, _from_now(seconds)))

    return Lease(registry, owner, swap(registry, change).number, seconds)


@contextmanager
def leased(registry: Registry, owner: str, seconds: float) -> Iterator[Lease]:
    """Hold the lease, renewed by a thread, and release it at the end.

    The block is not interrupted when another holder takes the lease over; `Lease.check` and
    `promote` raise then.
    """
    lease, ended = take_lease(registry, owner, seconds), threading.Event()
    renewal = threading.Thread(target=_renew_until, args=(ended, lease), daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        ended.set()
        renewal.join()
        lease.release()


def _renew_until(ended: threading.Event, lease: Lease) -> None:
    """Renew three times per term, until the work has ended or the lease is lost."""
    while not ended.wait(min(lease.seconds / 3, threading.TIMEOUT_MAX)):
        try:
            lease.renew()
        except LeaseLost:
            return
        except (FetchError, UsageError):  # the next attempt follows in a third of the term
            continue


def whoami() -> str:
    """Return user@machine, the name of a person in the log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "nobody"
    return f"{user}@{socket.gethostname()}"


def timestamp() -> str:
    """Return the time now, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
