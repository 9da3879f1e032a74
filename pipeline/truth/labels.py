"""Labels: images by name, with what somebody knows of them; and the faults of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from prompt_iml.engine.errors import BadLabels, UsageError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.names import kind_of_name
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.masks import Mask, MaskSource

Verdict = Literal["authentic", "manipulated"]

SHOWN_FAULTS = 10


@dataclass(frozen=True, slots=True)
class Label:
    """Row of a truth: an image that is not read yet.

    Attributes:
        row: number in its table or list, from 0.
        uri: canonical URI of the image or its shard.
        member: name inside the shard, as in the scan's results; None for a plain image.
        label: what the row says; None where only the mask does.
        mask: where its manipulated pixels are; None without a mask.
        kind: kind of manipulation; empty where the row names none.
        photo: photograph that it was made from; empty where the row names none.
        sha256: digest of the bytes that were labelled, hexadecimal; empty where it is not known.
    """

    row: int
    uri: str
    member: str | None
    label: Verdict | None
    mask: MaskSource | None = None
    kind: str = ""
    photo: str = ""
    sha256: str = ""

    @property
    def name(self) -> str:
        """Name of the image for people: `file`, or `shard.tar#member`."""
        file = storage.display_name(self.uri.removeprefix("file://"))
        return file if self.member is None else f"{file}#{self.member}"


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Known state of an image: manipulated or not, and where.

    Attributes:
        manipulated: whether it is.
        mask: (H, W) bool in the stored frame, with at least one True; None for an authentic image,
            and where the manipulated pixels are not known.
    """

    manipulated: bool
    mask: Mask | None


@dataclass(slots=True)
class Faults:
    """Collector of the faults of a truth's rows, which are reported together.

    Attributes:
        name: name of the truth, as the user gave it.
        found: fault by row.
    """

    name: str
    found: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def of(self, row: int, image: str = "") -> Iterator[None]:
        """Collect a `ValueError` or a `UsageError` as the fault of a row, with its image's name."""
        try:
            yield
        except (ValueError, UsageError) as error:
            self.found.setdefault(row, f"{image}: " * bool(image) + one_line(error))

    def check(self) -> None:
        """Raise `BadLabels`, in one line, if a row has a fault."""
        rows = sorted(self.found.items())
        if len(rows) == 1:
            raise BadLabels(f"{self.name} row {rows[0][0]} (from 0): {rows[0][1]}")
        if rows:
            shown = "; ".join(f"row {row}: {fault}" for row, fault in rows[:SHOWN_FAULTS])
            more = len(rows) - SHOWN_FAULTS
            rest = f"; and {more} more" if more > 0 else ""
            raise BadLabels(f"{self.name} has {len(rows)} faulty rows (from 0): {shown}{rest}")


def split_member(name: str) -> tuple[str, str]:
    """Return the shard and the member of `shard.tar#member`; an empty member for a plain name."""
    at = name.find("#")
    while at > 0:
        if kind_of_name(name[:at]) != "objects":
            return name[:at], name[at + 1 :]
        at = name.find("#", at + 1)
    return name, ""
