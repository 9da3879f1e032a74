"""Detection of the files that our own commands write into an output.

An output may lie in the folder that is scanned. Its overlays are no photographs to scan, and a new
report or export is no change of the inputs.
"""

from __future__ import annotations

import re
from functools import lru_cache

from prompt_iml.engine.errors import FetchError
from prompt_iml.pipeline.storage import storage

_WRITTEN = re.compile(
    r"/(results/part-[^/]+\.parquet$|report\.html$|reviews/review-[^/]+\.parquet$"
    r"|exports/[^/]+\.(csv|jsonl?|parquet)$|exports/(overlays|masks|images)/)"
)
_REMEMBERED = 1024  # folders


class OwnFiles:
    """Files of the outputs at or below a folder.

    A name alone does not decide, because people have folders such as `exports` too: an output has
    a folder `_runs`, which each scan makes first.

    Args:
        folder: URI of the folder; what lies in an output above it is scanned like other files.
    """

    def __init__(self, folder: str) -> None:
        self._start = len(folder)
        self._is_output = lru_cache(_REMEMBERED)(_is_output)

    def has(self, uri: str) -> bool:
        """Return whether one of our commands wrote the file."""
        found = _WRITTEN.finditer(uri, self._start)
        return any(self._is_output(uri[: match.start()]) for match in found)


def _is_output(folder: str) -> bool:
    try:
        return storage.exists(f"{folder}/_runs")
    except FetchError:
        return False
