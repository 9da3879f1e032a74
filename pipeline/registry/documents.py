"""JSON documents of a registry: entries of the log, records of prompt sets, verdicts of the gate.

Whoever can write to a registry can write nonsense to it. So every document is parsed strictly, and
what does not parse is a `DamagedModel` of one line that names the file and the field.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from prompt_iml.engine.errors import DamagedModel
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.run.folder import Json

LARGEST = 10**8  # number of an entry
LATEST = 253_402_300_799.0  # seconds since the epoch: the end of the year 9999

Id = Annotated[str, Field(pattern=r"^([0-9a-f]{16}|[0-9a-f]{64})$")]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=4096)]


@dataclass(frozen=True, slots=True)
class Move:
    """Move of `current` to another set.

    Attributes:
        kind: `promote`, or `rollback` to the set before the promotion that it undoes.
        prompt_set: id of the new current set; None: the model's own prompts.
        by: name of the person or cycle that moved it.
        at: time, ISO 8601, UTC.
    """

    kind: Literal["promote", "rollback"]
    prompt_set: Annotated[Id | None, Field(alias="version")]
    by: Text
    at: Text

    def to_json(self) -> Json:
        """Return the move as the log holds it."""
        return {"kind": self.kind, "version": self.prompt_set, "by": self.by, "at": self.at}


@dataclass(frozen=True, slots=True)
class Holder:
    """Holder of the lease.

    Attributes:
        owner: its name, for display.
        token: number of the entry that gave it the lease; a later holder has a higher one.
        expires: seconds since the epoch; afterwards the lease may be taken over.
    """

    owner: Text
    token: Annotated[int, Field(ge=1)]
    expires: Annotated[FiniteFloat, Field(ge=0, le=LATEST)]


@dataclass(frozen=True, slots=True)
class State:
    """State after one entry of the log.

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
        """Id of the prompt set to scan with; None: the model's own prompts."""
        return self.moves[-1].prompt_set if self.moves else None

    @property
    def promoted(self) -> list[str]:
        """Ids that were promoted and not rolled back, oldest first; the last is `current`."""
        return _replay(self.moves)[0]

    @property
    def withdrawn(self) -> set[str]:
        """Ids that were rolled back, and not promoted again since."""
        return _replay(self.moves)[1]

    def to_json(self) -> Json:
        """Return the entry as the log holds it."""
        return {
            "number": self.number,
            "moves": [move.to_json() for move in self.moves],
            "lease": asdict(self.lease) if self.lease else None,
            "current": self.current,
        }


def _replay(moves: tuple[Move, ...]) -> tuple[list[str], set[str]]:
    """Return the ids `promoted` and `withdrawn`; raise `ValueError` if the moves make no sense."""
    promoted: list[str] = []
    withdrawn: set[str] = set()
    for move in moves:
        if move.kind == "promote":
            if move.prompt_set is None:
                raise ValueError("the model's own prompts are promoted")
            promoted.append(move.prompt_set)
            withdrawn.discard(move.prompt_set)
            continue
        if not promoted:
            raise ValueError("a rollback undoes no promotion")
        withdrawn.add(promoted.pop())
        if move.prompt_set != (promoted[-1] if promoted else None):
            raise ValueError("a rollback leads to another set than the one before")
    return promoted, withdrawn


class _Document(BaseModel):
    model_config = ConfigDict(strict=True)


class _Entry(_Document):
    number: Annotated[int, Field(ge=1, le=LARGEST)]
    moves: tuple[Move, ...]
    lease: Holder | None
    current: Id | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _replay(self.moves)
        if self.current != self.state.current:
            raise ValueError("current is not the set of the last move")
        if self.lease and self.lease.token > self.number:
            raise ValueError("the lease was taken by a later entry")
        return self

    @property
    def state(self) -> State:
        return State(self.number, self.moves, self.lease)


class _Record(_Document):
    version: Id
    prompt_set: Id
    parent: Id | None
    base: Id
    model: Text
    policy: Text
    metrics: dict[Text, float | None]
    made_by: Text
    made_at: Text
    sha256: dict[Text, Text]


class _Verdict(_Document):
    model_config = ConfigDict(strict=True, extra="allow")

    passed: bool
    reasons: list[Text]


_Kind = TypeVar("_Kind", bound=_Document)


def parse_entry(data: bytes, number: int, name: str) -> State:
    """Parse an entry of the log.

    Args:
        data: the document.
        number: number that it must have.
        name: what error messages call it.

    Raises:
        DamagedModel: it is no entry, or one with another number.
    """
    state = _parse(_Entry, data, name).state
    if state.number != number:
        raise DamagedModel(f"{name} is damaged: it has the number {state.number}")
    return state


def parse_record(data: bytes, prompt_set: str, name: str) -> Json:
    """Parse the record.json of the prompt set with this id; raises `DamagedModel`."""
    record = _parse(_Record, data, name).model_dump()
    if record["version"] != prompt_set:
        raise DamagedModel(f"{name} is damaged: it is the record of {record['version'][:16]}")
    return record


def parse_verdict(data: bytes, name: str) -> Json:
    """Parse a verdict.json; raises `DamagedModel`."""
    return _parse(_Verdict, data, name).model_dump()


def _parse(kind: type[_Kind], data: bytes, name: str) -> _Kind:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise DamagedModel(one_line(f"{name} is damaged: {where}{first['msg']}")) from error
