"""Reading a registry of prompt sets.

    REGISTRY/<base>/versions/<id>/prompts.safetensors, policy.json
    REGISTRY/<base>/versions/<id>/record.json     written last: the set exists with it
    REGISTRY/<base>/versions/<id>/verdict.json    the gate's verdict, once it has evaluated the set
    REGISTRY/<base>/log/00000001.json, ...        every move of `current`, and the lease

<base> is the sha256 of the base model's weights file, <id> the id of the prompt set, as rows name
it. JSON calls the id `version`. Sets that an earlier layout stored under a longer name, the sha256
of base, prompts and policy, keep that name as their id.

Every file is created once and never replaced. Entry n+1 of the log holds the whole state after
entry n and one change. Creating it is a compare-and-swap without a lock: of all writers that read
n, one can create n+1, on a disk (by a link) as on S3 (by a conditional PUT). So promotions and the
lease are decided in one place and in one order. `promotion` writes, this module reads.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

from prompt_iml.engine.errors import DamagedModel, FetchError, NotFound, UnknownPrompts, UsageError
from prompt_iml.engine.model.folder import POLICY, PROMPTS, Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet, check_fits
from prompt_iml.pipeline.run.folder import Json, encode
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.units import ObjectRef

RECORD, VERDICT = "record.json", "verdict.json"
RETRY_SECONDS = 900.0  # until a registry that could not be read is read again
MIN_DIGITS = 8  # of an id that may be abbreviated


@dataclass(frozen=True, slots=True)
class Move:
    """One move of `current`.

    Attributes:
        kind: `promote`, or `rollback` to what was current before the promotion it undoes.
        prompt_set: id of what became current; None: the prompts that the model came with.
        by: name of the person or cycle that moved it.
        at: time, ISO 8601, UTC.
    """

    kind: Literal["promote", "rollback"]
    prompt_set: str | None
    by: str
    at: str

    def to_json(self) -> Json:
        """Return the move as the log holds it."""
        return {"kind": self.kind, "version": self.prompt_set, "by": self.by, "at": self.at}

    @classmethod
    def from_json(cls, move: Json) -> Move:
        """Read what `to_json` gave."""
        return cls(move["kind"], move["version"], move["by"], move["at"])


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of the lease.

    Attributes:
        owner: its name, for people.
        token: number of the entry that gave it the lease; a later holder has a higher one.
        expires: seconds since the epoch; afterwards the lease may be taken over.
    """

    owner: str
    token: int
    expires: float


@dataclass(frozen=True, slots=True)
class State:
    """The state after one entry of the log.

    Attributes:
        number: number of the entry; 0 before the first.
        moves: moves of `current`, oldest first.
        lease: holder of the lease while a cycle runs, or None.
    """

    number: int = 0
    moves: tuple[Move, ...] = ()
    lease: Holder | None = None

    @property
    def current(self) -> str | None:
        """Id of the prompt set to scan with; None: the prompts that the model came with."""
        return self.moves[-1].prompt_set if self.moves else None

    @property
    def promoted(self) -> list[str | None]:
        """Ids that were promoted and not rolled back, oldest first; the last is `current`."""
        return self._replayed()[0]

    @property
    def withdrawn(self) -> set[str | None]:
        """Ids that were rolled back, and not promoted again since."""
        return self._replayed()[1]

    def _replayed(self) -> tuple[list[str | None], set[str | None]]:
        promoted: list[str | None] = []
        withdrawn: set[str | None] = set()
        for move in self.moves:
            if move.kind == "promote":
                promoted.append(move.prompt_set)
                withdrawn.discard(move.prompt_set)
            else:
                withdrawn.add(promoted.pop())
        return promoted, withdrawn

    def to_json(self) -> Json:
        """Return the entry as the log holds it."""
        return {
            "number": self.number,
            "moves": [move.to_json() for move in self.moves],
            "lease": asdict(self.lease) if self.lease else None,
            "current": self.current,
        }

    @classmethod
    def from_json(cls, entry: Json) -> State:
        """Read what `to_json` gave."""
        lease = Holder(**entry["lease"]) if entry["lease"] else None
        return cls(entry["number"], tuple(map(Move.from_json, entry["moves"])), lease)


@dataclass(frozen=True, slots=True, eq=False)
class StoredPromptSet:
    """One immutable prompt set of a registry, read and checked.

    Attributes:
        id: its id in the registry.
        prompts: the prompt set.
        policy: calibration and thresholds that it was evaluated with.
        record: content of record.json: base, parent, metrics, by whom and when it was made.
    """

    id: str
    prompts: PromptSet
    policy: Policy
    record: Json

    def applied_to(self, model: Model) -> Model:
        """Return the model with this set and policy; raises `UsageError` when they do not fit."""
        check_fits(self.prompts, model.config)
        return replace(model, prompts=self.prompts, policy=self.policy)


@dataclass(frozen=True, slots=True)
class Registry:
    """The prompt sets for one base model.

    Attributes:
        uri: canonical, of the registry.
        base: sha256 of the base model's weights file.
    """

    uri: str
    base: str

    @property
    def folder(self) -> str:
        return f"{self.uri}/{self.base}"

    def file(self, prompt_set: str, name: str) -> str:
        """URI of a prompt set's file."""
        return f"{self.folder}/versions/{prompt_set}/{name}"

    def entry(self, number: int) -> str:
        """URI of an entry of the log."""
        return f"{self.folder}/log/{number:08d}.json"

    def state(self, known: State | None = None) -> State:
        """Read the latest state.

        Args:
            known: a state read earlier; then one request for what follows is enough.

        Raises:
            FetchError: the registry cannot be read.
            DamagedModel: an entry of the log is not what `promotion` writes.
        """
        state = known or self._state_at(max(self._entries(), default=0))
        while True:
            try:
                state = self._state_at(state.number + 1)
            except NotFound:
                return state

    def read(self, prompt_set: str) -> StoredPromptSet:
        """Read a prompt set by its full id.

        Raises:
            UnknownPrompts: there is none.
            DamagedModel: its files are not those that its id and its record name.
            FetchError: the registry cannot be read.
        """
        record = self.record(prompt_set)
        files = {
            name: storage.read_bytes(self.file(prompt_set, name)) for name in (PROMPTS, POLICY)
        }
        prompts = PromptSet.from_bytes(files[PROMPTS], self.file(prompt_set, PROMPTS))
        digests = {name: sha256(data) for name, data in files.items()}
        ids = prompts.id, long_id(self.base, prompts, files[POLICY])
        if prompt_set not in ids or record.get("sha256") != digests:
            raise DamagedModel(
                f"{self.file(prompt_set, '')} is damaged: its files are not those it is named for"
            )
        policy = Policy.from_json(files[POLICY].decode())
        return StoredPromptSet(prompt_set, prompts, policy, record)

    def record(self, prompt_set: str) -> Json:
        """Read a set's record.json; raises `UnknownPrompts` when there is no such set."""
        try:
            return self._json(self.file(prompt_set, RECORD))
        except NotFound as error:
            raise UnknownPrompts(f"no prompt set {prompt_set[:16]} in {self._name}") from error

    def verdict(self, prompt_set: str) -> Json | None:
        """Read the gate's verdict on a set; None when the gate has not evaluated it."""
        try:
            return self._json(self.file(prompt_set, VERDICT))
        except NotFound:
            return None

    def ids(self) -> list[str]:
        """Ids of all prompt sets, sorted."""
        folder = f"{self.folder}/versions"
        names = [ref.uri.removeprefix(f"{folder}/") for ref in _files(folder)]
        return sorted(name.split("/")[0] for name in names if name.endswith(f"/{RECORD}"))

    def find(self, name: str) -> str:
        """Return the id of the prompt set that a name stands for.

        Args:
            name: an id, at least the first 8 digits of one, or what rows call the set.

        Raises:
            UnknownPrompts: it stands for none, or for several.
        """
        ids = self.ids()
        if name in ids:
            return name
        found = [each for each in ids if each.startswith(name) and len(name) >= MIN_DIGITS]
        found = found or [each for each in ids if self.record(each)["prompt_set"] == name]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(each[:16] for each in found)
            raise UnknownPrompts(f"{name} stands for several prompt sets: name one of {several}")
        raise UnknownPrompts(
            f"no prompt set {name} in {self._name}: prompt-iml models list shows what there is"
        )

    @property
    def _name(self) -> str:
        return f"{storage.display_name(self.uri)} for the model {self.base[:12]}"

    def _entries(self) -> Iterator[int]:
        for ref in _files(f"{self.folder}/log"):
            number = ref.uri.rpartition("/")[2].removesuffix(".json")
            if number.isdecimal():
                yield int(number)

    def _state_at(self, number: int) -> State:
        if number == 0:
            return State()
        entry = self._json(self.entry(number))
        try:
            return State.from_json(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedModel(f"{self.entry(number)} is no entry of a registry's log") from error

    def _json(self, uri: str) -> Json:
        try:
            document: Json = json.loads(storage.read_bytes(uri))
        except ValueError as error:
            raise DamagedModel(f"{storage.display_name(uri)} is not JSON ({error})") from error
        return document


def bases(uri: str) -> list[str]:
    """Return the base models for which a registry holds something; raises `FetchError`."""
    with_names = (ref.uri.removeprefix(f"{uri}/").split("/")[0] for ref in _files(uri))
    return sorted({name for name in with_names if len(name) == 64})


def long_id(base: str, prompts: PromptSet, policy: bytes) -> str:
    """Return the id that the earlier layout gave to this set with this policy."""
    return sha256(encode({"base": base, PROMPTS: prompts.sha256, POLICY: sha256(policy)}))


def short_name(prompt_set: str | None) -> str:
    """Return how messages name a prompt set, by its id; None: the model's own prompts."""
    return prompt_set[:16] if prompt_set else "the model's own"


def sha256(data: bytes) -> str:
    """Return the hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def _files(folder: str) -> Iterator[ObjectRef]:
    """List the files below a folder; none when it is missing."""
    try:
        yield from list_objects(folder, skip=lambda name: name.startswith("."))
    except NotFound:
        return


@contextmanager
def readable() -> Iterator[None]:
    """Raise a `UsageError` that names the flag where the registry cannot be read."""
    try:
        yield
    except FetchError as error:
        raise UsageError(f"cannot read --registry: {error}") from error


@dataclass(frozen=True, slots=True)
class PromptSetRef:
    """Names the prompt set to scan with; small, because it travels to every actor.

    Attributes:
        registry: canonical URI.
        id: id in the registry; None: the prompts that the model came with.
        refresh: follow `current` from unit to unit.
    """

    registry: str
    id: str | None
    refresh: bool = False


def with_prompt_set(model: Model, registry: Registry, prompt_set: str | None) -> Model:
    """Return the model with a stored prompt set and its policy; unchanged when the id is None.

    Raises:
        UsageError: as `Registry.read`, or the prompts do not fit, or cannot be fetched.
    """
    if prompt_set is None:
        return model
    with readable():
        return registry.read(prompt_set).applied_to(model)


def look_up(registry: Registry, name: str) -> str | None:
    """Return the id of the prompt set that `--prompts` names; `current` as it is now.

    Raises:
        UsageError: the registry cannot be read, or has no such set.
    """
    with readable():
        return registry.state().current if name == "current" else registry.find(name)


class CurrentPromptSet:
    """Follows a registry from unit to unit.

    Args:
        model: the model as it came.
        ref: the registry, and the set to begin with.

    Attributes:
        model: the model with the set of the last look.
    """

    def __init__(self, model: Model, ref: PromptSetRef) -> None:
        self._base = model
        self._registry = Registry(ref.registry, model.sha256)
        self._state: State | None = None
        self._refresh = ref.refresh
        self._id = ref.id
        self._retry_at = 0.0
        self.model = with_prompt_set(model, self._registry, ref.id)

    @property
    def ref(self) -> PromptSetRef:
        """The set of the last look, pinned."""
        return PromptSetRef(self._registry.uri, self._id)

    def look(self) -> bool:
        """Whether `model` has another set than at the last look; one request if nothing moved.

        A registry that cannot be read, or is damaged, changes nothing: rows name the set that they
        were made with. It is not read again for `RETRY_SECONDS`, as each attempt may take minutes.
        """
        if not self._refresh or time.monotonic() < self._retry_at:
            return False
        try:
            state = self._registry.state(self._state)
            if state.current != self._id:
                self.model = with_prompt_set(self._base, self._registry, state.current)
        except (FetchError, UsageError):
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return False
        self._state, before, self._id = state, self._id, state.current
        return state.current != before
