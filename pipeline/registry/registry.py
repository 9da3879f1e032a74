"""Reading of a registry of prompt sets.

    REGISTRY/<base>/versions/<id>/prompts.safetensors, policy.json
    REGISTRY/<base>/versions/<id>/record.json     written last: the set exists with it
    REGISTRY/<base>/versions/<id>/verdict.json    the gate's verdict, once it has evaluated the set
    REGISTRY/<base>/log/00000001.json, ...        all moves of `current`, and the lease

<base> is the sha256 of the base model's weights file, <id> the id of the prompt set, as rows name
it. JSON calls the id `version`. Sets that an earlier layout stored under a longer name, the sha256
of base, prompts and policy, keep that name as their id.

Every file is created once and never replaced. Entry n+1 of the log holds the whole state after
entry n and one change. Creating it is a compare-and-swap without a lock: of all writers that read
n, only one can create n+1, on a disk (by a link) and on S3 (by a conditional PUT). So promotions
and leases have one order. `promotion` writes, this module reads.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from prompt_iml.engine.errors import DamagedModel, FetchError, NotFound, UnknownPrompts, UsageError
from prompt_iml.engine.model.folder import POLICY, PROMPTS, Model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.model.prompts import PromptSet, check_fits
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.registry.documents import (
    State,
    parse_entry,
    parse_record,
    parse_verdict,
)
from prompt_iml.pipeline.run.folder import Json, encode
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.units import ObjectRef

RECORD, VERDICT = "record.json", "verdict.json"
RETRY_SECONDS = 900.0  # wait after a registry could not be read
MIN_DIGITS = 8  # of an abbreviated id
_ENTRY = re.compile("[0-9]{8,9}")
_BASE = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class StoredPromptSet:
    """Immutable prompt set of a registry, read and checked.

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
        """Return the model with this set and policy; raise `UsageError` if they do not fit."""
        check_fits(self.prompts, model.config)
        return replace(model, prompts=self.prompts, policy=self.policy)


@dataclass(frozen=True, slots=True)
class Registry:
    """Registry of the prompt sets for one base model.

    Attributes:
        uri: canonical URI of the registry.
        base: sha256 of the base model's weights file.
    """

    uri: str
    base: str

    @property
    def folder(self) -> str:
        return f"{self.uri}/{self.base}"

    def file(self, prompt_set: str, name: str) -> str:
        """Return the URI of a prompt set's file."""
        return f"{self.folder}/versions/{prompt_set}/{name}"

    def entry(self, number: int) -> str:
        """Return the URI of an entry of the log."""
        return f"{self.folder}/log/{number:08d}.json"

    def state(self, known: State | None = None) -> State:
        """Read the latest state.

        Args:
            known: state read earlier, after which newer entries are read.

        Raises:
            FetchError: the registry cannot be read.
            DamagedModel: an entry of the log is damaged.
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
            UnknownPrompts: there is no such set.
            DamagedModel: its files differ from the digests in its id and its record.
            FetchError: the registry cannot be read.
        """
        record = self.record(prompt_set)
        files = {
            name: storage.read_bytes(self.file(prompt_set, name)) for name in (PROMPTS, POLICY)
        }
        folder = storage.display_name(self.file(prompt_set, ""))
        try:
            prompts = PromptSet.from_bytes(files[PROMPTS], PROMPTS)
            policy = Policy.from_json(files[POLICY].decode())
        except (UsageError, ValueError, OverflowError, RecursionError) as error:
            raise DamagedModel(one_line(f"{folder} is damaged: {error}")) from error
        digests = {name: sha256(data) for name, data in files.items()}
        ids = prompts.id, long_id(self.base, prompts, files[POLICY])
        if prompt_set not in ids or record["sha256"] != digests:
            raise DamagedModel(f"{folder} is damaged: its files are not those it is named for")
        return StoredPromptSet(prompt_set, prompts, policy, record)

    def record(self, prompt_set: str) -> Json:
        """Read a set's record.json; raise `UnknownPrompts` if there is no such set."""
        uri = self.file(prompt_set, RECORD)
        try:
            return parse_record(storage.read_bytes(uri), prompt_set, storage.display_name(uri))
        except NotFound as error:
            raise UnknownPrompts(f"no prompt set {prompt_set[:16]} in {self._name}") from error

    def verdict(self, prompt_set: str) -> Json | None:
        """Read the gate's verdict on a set; None if the gate has not evaluated it."""
        uri = self.file(prompt_set, VERDICT)
        try:
            return parse_verdict(storage.read_bytes(uri), storage.display_name(uri))
        except NotFound:
            return None

    def ids(self) -> list[str]:
        """Return the ids of all prompt sets, sorted."""
        folder = f"{self.folder}/versions"
        names = [ref.uri.removeprefix(f"{folder}/") for ref in _files(folder)]
        return sorted(name.split("/")[0] for name in names if name.endswith(f"/{RECORD}"))

    def find(self, name: str) -> str:
        """Return the id of the prompt set that a name stands for.

        Args:
            name: an id, at least its first 8 digits, or the column `prompt_set` of rows.

        Raises:
            UnknownPrompts: the name stands for no set, or for several.
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
            f"no prompt set {name} in {self._name}: prompt-iml models list shows all"
        )

    @property
    def _name(self) -> str:
        return f"{storage.display_name(self.uri)} for the model {self.base[:12]}"

    def _entries(self) -> Iterator[int]:
        """Yield the numbers of the log's entries; files of other names are none."""
        for ref in _files(f"{self.folder}/log"):
            name = ref.uri.removeprefix(f"{self.folder}/log/").removesuffix(".json")
            if _ENTRY.fullmatch(name) and ref.uri == self.entry(int(name)):
                yield int(name)

    def _state_at(self, number: int) -> State:
        if number == 0:
            return State()
        uri = self.entry(number)
        return parse_entry(storage.read_bytes(uri), number, storage.display_name(uri))


def bases(uri: str) -> list[str]:
    """Return the digests of the base models in a registry; raises `FetchError`."""
    with_names = (ref.uri.removeprefix(f"{uri}/").split("/")[0] for ref in _files(uri))
    return sorted({name for name in with_names if _BASE.fullmatch(name)})


def long_id(base: str, prompts: PromptSet, policy: bytes) -> str:
    """Return the id that the earlier layout gave to this set with this policy."""
    return sha256(encode({"base": base, PROMPTS: prompts.sha256, POLICY: sha256(policy)}))


def short_name(prompt_set: str | None) -> str:
    """Return the name of a prompt set in messages, from its id; None: the model's own prompts."""
    return prompt_set[:16] if prompt_set else "the model's own"


def sha256(data: bytes) -> str:
    """Return the digest of data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _files(folder: str) -> Iterator[ObjectRef]:
    """List the files below a folder; none when it is missing."""
    try:
        yield from list_objects(folder, skip=lambda name: name.startswith("."))
    except NotFound:
        return


@contextmanager
def readable() -> Iterator[None]:
    """Convert `FetchError` to a `UsageError` that names the flag."""
    try:
        yield
    except FetchError as error:
        raise UsageError(f"cannot read --registry: {error}") from error


@dataclass(frozen=True, slots=True)
class PromptSetRef:
    """Reference to the prompt set to scan with; small, because it travels to every actor.

    Attributes:
        registry: canonical URI.
        id: id in the registry; None: the model's own prompts.
        refresh: whether to look `current` up again before each unit.
    """

    registry: str
    id: str | None
    refresh: bool = False


def with_prompt_set(model: Model, registry: Registry, prompt_set: str | None) -> Model:
    """Return the model with a stored prompt set and its policy; unchanged when the id is None.

    Raises:
        UsageError: the set is unknown, damaged, does not fit the model or cannot be fetched.
    """
    if prompt_set is None:
        return model
    with readable():
        return registry.read(prompt_set).applied_to(model)


def look_up(registry: Registry, name: str) -> str | None:
    """Return the id of the prompt set that `--prompts` names; `current` is looked up now.

    Raises:
        UsageError: the registry cannot be read, or has no such set.
    """
    with readable():
        return registry.state().current if name == "current" else registry.find(name)


class CurrentPromptSet:
    """Model that follows the current prompt set of a registry.

    Args:
        model: model with its own prompts.
        ref: registry, and the set to begin with.

    Attributes:
        model: the model with the prompt set of the last refresh.
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
        """Reference to the prompt set of the last refresh, without following `current`."""
        return PromptSetRef(self._registry.uri, self._id)

    def refresh(self) -> bool:
        """Look `current` up and update `model`; return whether its prompt set has changed.

        This takes one request if nothing has changed. If the registry is damaged or cannot be read,
        the model stays, and the registry is not read again for `RETRY_SECONDS`, because each
        attempt may take minutes.
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
