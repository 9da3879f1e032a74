"""Changes of the inputs since a run was planned: each INPUT is listed again and compared."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.sources.inputs import Entry
from prompt_iml.pipeline.storage import storage

_WRITTEN = re.compile(r"/(results/part-[^/]+\.parquet|report\.html)$")
COMPARE_SECONDS = 60.0  # some millions of files; the start of a scan must not wait for more

Json = dict[str, Any]


class Listed:
    """Digest of what was listed of one INPUT: names and versions of its files, in order.

    What our own commands write is left out: an output may lie in the folder that is scanned.

    Attributes:
        entries: number of files listed.
        is_whole: whether the listing came to its end; a limit ends it before.
    """

    def __init__(self) -> None:
        self.entries, self.is_whole = 0, False
        self._digest = hashlib.sha256()

    def watch(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the entries of the listing and take them into the digest."""
        for entry in entries:
            ref = entry.ref
            if not _WRITTEN.search(ref.uri):
                name = f"{entry.kind}\0{ref.uri}\0{ref.etag}\0{ref.content_id or ''}\n"
                self._digest.update(name.encode("utf-8", "surrogateescape"))
                self.entries += 1
            yield entry
        self.is_whole = True

    def to_json(self) -> Json:
        """Return what `changed_input` compares later."""
        sha256 = self._digest.hexdigest()
        return {"entries": self.entries, "is_whole": self.is_whole, "sha256": sha256}


def changed_input(
    names: Sequence[str],
    planned: Sequence[Json],
    entries_of: Callable[[str], Iterator[Entry]],
    seconds: float = COMPARE_SECONDS,
) -> str | None:
    """Return the first INPUT that holds other files than when it was listed; None without any.

    What cannot be listed any more, or not within the time, is logged and counts as unchanged.

    Args:
        names: the inputs.
        planned: `Listed.to_json` of each; empty for runs of earlier versions.
        entries_of: lists an input.
        seconds: time for all of them.
    """
    deadline = time.monotonic() + seconds
    for name, then in zip(names, planned, strict=False):
        shown = storage.display_name(name)
        try:
            if _is_changed(entries_of(name), then, deadline):
                return shown
        except UsageError as error:
            log(f"note: {shown} was not compared with the plan: {error}")
        except TimeoutError:
            log(f"note: {shown} was not compared with the plan: listing takes over {seconds:g} s")
            return None
    return None


def _is_changed(entries: Iterator[Entry], then: Json, deadline: float) -> bool:
    now, count = Listed(), int(then["entries"])
    watched = now.watch(entries)
    while now.entries < count and next(watched, None):
        if time.monotonic() > deadline:
            raise TimeoutError
    if now.to_json()["sha256"] != then["sha256"]:
        return True
    if then["is_whole"]:
        while now.entries == count and next(watched, None):
            pass
    return now.entries > count
