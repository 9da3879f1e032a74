"""Writing the registry of prompt sets: versions, the moves of `current`, and the lease.

What lies where, and why no lock is needed: `pipeline.registry.registry`.
"""

from __future__ import annotations

import getpass
import json
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
from prompt_iml.pipeline.registry.registry import (
    RECORD,
    VERDICT,
    Holder,
    Move,
    Registry,
    State,
    sha256,
    version_digest,
)
from prompt_iml.pipeline.run.folder import Json, encode
from prompt_iml.pipeline.storage import storage

Change = Callable[[State], State]


def add_version(
    registry: Registry,
    prompts: PromptSet,
    policy: Policy,
    *,
    parent: str | None,
    made_by: str,
    model: str,
) -> str:
    """Store a version, unless there is the same already; returns its digest.

    Args:
        parent: digest of the version that training started from; None: the model's own prompts.
        made_by: for a person: which cycle, by whom.
        model: id of the base model, for a person.
    """
    files = {PROMPTS: prompts.to_bytes(), POLICY: policy.to_json().encode()}
    digest = version_digest(registry.base, prompts, files[POLICY])
    for name, data in files.items():
        if not storage.create_once(registry.file(digest, name), data):
            files[name] = storage.read_bytes(registry.file(digest, name))  # the first one's metrics
    record = {
        "version": digest,
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
    storage.create_once(registry.file(digest, RECORD), encode(record))
    return digest


def add_verdict(registry: Registry, digest: str, verdict: Json) -> Json:
    """Store what the gate says of a version; returns the verdict that stands, the first."""
    uri = registry.file(digest, VERDICT)
    if storage.create_once(uri, encode(verdict)):
        return verdict
    stands: Json = json.loads(storage.read_bytes(uri))
    return stands


def promote(
    registry: Registry,
    digest: str,
    *,
    expected: str | None,
    by: str,
    lease: Lease | None = None,
) -> State:
    """Make a version `current`, if `current` is still what was expected.

    Args:
        digest: of a version that passed the gate.
        expected: what the caller takes for current, and compared with.
        lease: of the cycle that promotes; None: a person does.

    Raises:
        NotPromoted: the gate refused the version or was not asked, `current` has moved or is this
            version already, or a cycle would bring back what was rolled back.
        LeaseLost: another cycle took the lease over.
        DamagedModel, UnknownPrompts: as `Registry.version`.
    """
    registry.version(digest)
    verdict = registry.verdict(digest)
    if verdict is None or not verdict["passed"]:
        why = "; ".join(verdict["reasons"]) if verdict else "it was never evaluated"
        raise NotPromoted(f"the gate does not let {digest[:16]} through: {why}")

    def change(state: State) -> State:
        if lease:
            lease.check(state)
        _expect(state, expected)
        if digest == state.current:
            raise NotPromoted(f"{digest[:16]} is current already")
        if lease and digest in state.withdrawn:
            raise NotPromoted(
                f"{digest[:16]} passed the gate, but was rolled back: prompt-iml models promote "
                "brings it back, no cycle does"
            )
        return replace(state, moves=(*state.moves, Move("promote", digest, by, timestamp())))

    return swap(registry, change)


def roll_back(registry: Registry, *, expected: str | None, by: str) -> State:
    """Undo the last promotion that stands.

    Raises:
        NotPromoted: there is none, or `current` has moved from what was expected.
    """

    def change(state: State) -> State:
        _expect(state, expected)
        stands = state.promoted
        if not stands:
            raise NotPromoted("nothing to roll back: the model's own prompts are current")
        before = stands[-2] if len(stands) > 1 else None
        return replace(state, moves=(*state.moves, Move("rollback", before, by, timestamp())))

    return swap(registry, change)


def swap(registry: Registry, change: Change) -> State:
    """Apply a change to the latest state, by compare-and-swap; returns the new state.

    The change is asked again, of the newer state, as often as another writer was first: it must
    raise when the newer state no longer allows it.
    """
    state = registry.state()
    while True:
        after = replace(change(state), number=state.number + 1)
        key = secrets.token_hex(8)
        entry = encode({**after.to_json(), "key": key})
        uri = registry.entry(after.number)
        # Refused although it is there: our first attempt arrived and only its answer was lost.
        if storage.create_once(uri, entry) or storage.read_bytes(uri) == entry:
            return after
        state = registry.state(state)


def _expect(state: State, expected: str | None) -> None:
    if state.current != expected:
        since = f" since {state.moves[-1].at}, by {state.moves[-1].by}," if state.moves else ""
        raise NotPromoted(
            f"current is {name_of(state.current)}{since} and not "
            f"{name_of(expected)}: look at prompt-iml models list and decide again"
        )


@dataclass(slots=True)
class Lease:
    """The right to run a cycle, for a while; taken with `take_lease`.

    Whether it is held is decided by the log alone: clocks only say when others may take over.

    Attributes:
        registry: which cycles it keeps apart.
        owner: for a person.
        token: fences off: what a later holder did, an earlier one cannot undo.
        seconds: until it may be taken over, from the last renewal on.
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
        """Hold it for `seconds` from now on; raises `LeaseLost`."""

        def change(state: State) -> State:
            self.check(state)
            holder = Holder(self.owner, self.token, time.time() + self.seconds)
            return replace(state, lease=holder)

        swap(self.registry, change)

    def release(self) -> None:
        """Give it back; where that fails, or it is lost already, it ends by itself."""

        def change(state: State) -> State:
            self.check(state)
            return replace(state, lease=None)

        try:
            swap(self.registry, change)
        except (LeaseLost, FetchError, UsageError):
            return


def take_lease(registry: Registry, owner: str, seconds: float) -> Lease:
    """Take the lease, or take it over from a holder that let it expire.

    Raises:
        LeaseHeld: another holder's has not expired.
    """

    def change(state: State) -> State:
        held = state.lease
        if held and held.expires > time.time():
            until = datetime.fromtimestamp(held.expires, UTC).isoformat(timespec="seconds")
            raise LeaseHeld(
                f"{held.owner} re-trains already, with a lease until {until}: wait for its end"
            )
        return replace(state, lease=Holder(owner, state.number + 1, time.time() + seconds))

    return Lease(registry, owner, swap(registry, change).number, seconds)


@contextmanager
def leased(registry: Registry, owner: str, seconds: float) -> Iterator[Lease]:
    """Hold the lease, renewed by a thread, and release it at the end.

    Nothing is interrupted when another holder takes it over: `Lease.check` and `promote` refuse.
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
    while not ended.wait(lease.seconds / 3):
        try:
            lease.renew()
        except LeaseLost:
            return
        except (FetchError, UsageError):  # the store does not answer: again in a third of the term
            continue


def name_of(version: str | None) -> str:
    """A version as a person is told."""
    return version[:16] if version else "the model's own"


def whoami() -> str:
    """user@machine, as the log names who did something."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "nobody"
    return f"{user}@{socket.gethostname()}"


def timestamp() -> str:
    """Now, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
