"""The registry of prompt sets, as scans read it; `pipeline.registry.promotion` writes it.

    REGISTRY/<base>/versions/<version>/prompts.safetensors, policy.json
    REGISTRY/<base>/versions/<version>/record.json    written last: the version exists with it
    REGISTRY/<base>/versions/<version>/verdict.json   what the gate said, once it was asked
    REGISTRY/<base>/log/00000001.json, ...            who holds the lease, what is current

<base> is the sha256 of the weights that the prompts belong to, <version> the digest of what a
version is made of. Every file is created once and never replaced. The log is the one thing that
moves: entry n+1 holds the whole state after entry n and something that happened, and whoever
creates it has swapped the state n for n+1, by comparison, without a lock: of any number that read
n, one can create n+1, on a disk (a link) as on S3 (a conditional PUT). So a promotion and the
lease under which it is made are decided in one place and in one order.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
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
SILENCE = 900.0  # seconds until a registry that failed is asked again
SHORTEST = 8  # digits of a digest that may stand for it


@dataclass(frozen=True, slots=True)
class Move:
    """One move of `current`.

    Attributes:
        kind: `promote`, or `rollback` to what was current before the promotion undone.
        version: what became current; None: the prompts that the model came with.
        by: who.
        at: when, ISO 8601, UTC.
    """

    kind: Literal["promote", "rollback"]
    version: str | None
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lease.

    Attributes:
        owner: as it names itself.
        token: number of the entry that gave it the lease; a later holder has a higher one.
        expires: seconds since the epoch; afterwards it may be taken over.
    """

    owner: str
    token: int
    expires: float


@dataclass(frozen=True, slots=True)
class State:
    """What one entry of the log says.

    Attributes:
        number: of the entry; 0 before the first.
        moves: of `current`, oldest first.
        lease: of the cycle under way, or None.
    """

    number: int = 0
    moves: tuple[Move, ...] = ()
    lease: Holder | None = None

    @property
    def current(self) -> str | None:
        """The version to scan with; None: the prompts that the model came with."""
        return self.moves[-1].version if self.moves else None

    @property
    def promoted(self) -> list[str | None]:
        """What was promoted and not rolled back, oldest first: `current` last, if any."""
        return self._replayed()[0]

    @property
    def withdrawn(self) -> set[str | None]:
        """What was rolled back, and not promoted again since."""
        return self._replayed()[1]

    def _replayed(self) -> tuple[list[str | None], set[str | None]]:
        promoted: list[str | None] = []
        withdrawn: set[str | None] = set()
        for move in self.moves:
            if move.kind == "promote":
                promoted.append(move.version)
                withdrawn.discard(move.version)
            else:
                withdrawn.add(promoted.pop())
        return promoted, withdrawn

    def to_json(self) -> Json:
        """As the log holds it."""
        return {**asdict(self), "current": self.current}

    @classmethod
    def from_json(cls, entry: Json) -> State:
        """What `to_json` gave."""
        lease = Holder(**entry["lease"]) if entry["lease"] else None
        return cls(entry["number"], tuple(Move(**move) for move in entry["moves"]), lease)


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One immutable version, read and checked.

    Attributes:
        digest: its name, 64 hexadecimal digits.
        prompts: the prompt set.
        policy: calibration and thresholds that go with it.
        record: what record.json says: base, parent, metrics, who made it and when.
    """

    digest: str
    prompts: PromptSet
    policy: Policy
    record: Json


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

    def file(self, digest: str, name: str) -> str:
        """URI of a version's file."""
        return f"{self.folder}/versions/{digest}/{name}"

    def entry(self, number: int) -> str:
        """URI of an entry of the log."""
        return f"{self.folder}/log/{number:08d}.json"

    def state(self, known: State | None = None) -> State:
        """The latest state.

        Args:
            known: a state read earlier, from which on one look at what follows is enough.

        Raises:
            FetchError: the registry cannot be read.
            DamagedModel: an entry of the log is not what this product writes.
        """
        state = known or self._state_at(max(self._entries(), default=0))
        while True:
            try:
                state = self._state_at(state.number + 1)
            except NotFound:
                return state

    def version(self, digest: str) -> Version:
        """Read a version by its full digest.

        Raises:
            UnknownPrompts: there is none.
            DamagedModel: its files are not those it was made of.
            FetchError: the registry cannot be read.
        """
        record = self.record(digest)
        files = {name: storage.read_bytes(self.file(digest, name)) for name in (PROMPTS, POLICY)}
        prompts = PromptSet.from_bytes(files[PROMPTS], self.file(digest, PROMPTS))
        told = record.get("sha256")
        named = version_digest(self.base, prompts, files[POLICY])
        if named != digest or told != {name: sha256(data) for name, data in files.items()}:
            raise DamagedModel(
                f"{self.file(digest, '')} is damaged: its files are not those it is named for"
            )
        return Version(digest, prompts, Policy.from_json(files[POLICY].decode()), record)

    def record(self, digest: str) -> Json:
        """A version's record.json; raises `UnknownPrompts` when there is no such version."""
        try:
            return self._json(self.file(digest, RECORD))
        except NotFound as error:
            raise UnknownPrompts(f"no prompt set {digest[:16]} in {self._told}") from error

    def verdict(self, digest: str) -> Json | None:
        """What the gate said of a version, or None when it was not asked."""
        try:
            return self._json(self.file(digest, VERDICT))
        except NotFound:
            return None

    def versions(self) -> list[str]:
        """Digests of all versions."""
        folder = f"{self.folder}/versions"
        names = [ref.uri.removeprefix(f"{folder}/") for ref in _files(folder)]
        return sorted(name.split("/")[0] for name in names if name.endswith(f"/{RECORD}"))

    def find(self, name: str) -> str:
        """The digest of the version that a name stands for.

        Args:
            name: a digest, at least the first 8 digits of one, or the id of a prompt set as rows
                name it.

        Raises:
            UnknownPrompts: it stands for none, or for several.
        """
        if len(name) == 64:
            return str(self.record(name)["version"])
        versions = self.versions()
        found = [digest for digest in versions if digest.startswith(name) and len(name) >= SHORTEST]
        found = found or [d for d in versions if self.record(d)["prompt_set"] == name]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(digest[:16] for digest in found)
            raise UnknownPrompts(f"{name} stands for several prompt sets: name one of {several}")
        raise UnknownPrompts(
            f"no prompt set {name} in {self._told}: prompt-iml models list shows what there is"
        )

    @property
    def _told(self) -> str:
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
    """The base models for which a registry holds something; raises `FetchError`."""
    with_names = (ref.uri.removeprefix(f"{uri}/").split("/")[0] for ref in _files(uri))
    return sorted({name for name in with_names if len(name) == 64})


def version_digest(base: str, prompts: PromptSet, policy: bytes) -> str:
    """The name of the version that is made of this for this base model.

    What the prompt set says of its parent and its metrics does not count: prompts that were rolled
    back, or refused, are the same ones when they were judged on other sets.
    """
    return sha256(encode({"base": base, PROMPTS: prompts.sha256, POLICY: sha256(policy)}))


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def _files(folder: str) -> Iterator[ObjectRef]:
    """What lies below a folder; nothing when it is not there."""
    try:
        yield from list_objects(folder, skip=lambda name: name.startswith("."))
    except NotFound:
        return


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where scan actors take their prompts from; small, because it travels to every actor.

    Attributes:
        registry: canonical URI.
        version: to scan with; None: the prompts that the model came with.
        refresh: look for another one between units.
    """

    registry: str
    version: str | None
    refresh: bool = False


def with_version(model: Model, registry: Registry, version: str | None) -> Model:
    """The model with a version's prompts and policy; as it came when `version` is None.

    Raises:
        UsageError: as `Registry.version`, or the prompts do not fit, or cannot be fetched.
    """
    if version is None:
        return model
    try:
        return equipped(model, registry.version(version))
    except FetchError as error:
        raise UsageError(f"cannot read --registry: {error}") from error


def equipped(model: Model, version: Version) -> Model:
    """The model with a version's prompts and policy; raises `UsageError` when they do not fit."""
    check_fits(version.prompts, model.config)
    return replace(model, prompts=version.prompts, policy=version.policy)


def look_up_version(registry: Registry, name: str) -> str | None:
    """The version that `--prompts` names, `current` as it is now.

    Raises:
        UsageError: the registry cannot be read, or has no such version.
    """
    try:
        return registry.state().current if name == "current" else registry.find(name)
    except FetchError as error:
        raise UsageError(f"cannot read --registry: {error}") from error


class CurrentPrompts:
    """Follows a registry from unit to unit.

    Args:
        model: as it came.
        source: where to look, and what to start with.
    """

    def __init__(self, model: Model, source: PromptSource) -> None:
        self._base = model
        self._registry = Registry(source.registry, model.sha256)
        self._state: State | None = None
        self._refresh = source.refresh
        self._version = source.version
        self._silent_until = 0.0
        self.model = with_version(model, self._registry, source.version)

    @property
    def source(self) -> PromptSource:
        """These prompts, and no others later."""
        return PromptSource(self._registry.uri, self._version)

    def look(self) -> bool:
        """Whether `model` has other prompts than at the last look; one request, when nothing moved.

        A registry that does not answer, or answers nonsense, changes nothing: rows name the set
        that they were made by. It is not asked again for `SILENCE`, as each time may take minutes.
        """
        if not self._refresh or time.monotonic() < self._silent_until:
            return False
        try:
            state = self._registry.state(self._state)
            if state.current != self._version:
                self.model = self._equipped(state.current)
        except (FetchError, UsageError):
            self._silent_until = time.monotonic() + SILENCE
            return False
        self._state, before, self._version = state, self._version, state.current
        return state.current != before

    def _equipped(self, version: str | None) -> Model:
        return equipped(self._base, self._registry.version(version)) if version else self._base
