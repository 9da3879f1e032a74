"""Process that reads each shard whose path comes on stdin, and reports it on stdout as JSON.

python -m tests.fuzz.reader MEMORY     bytes that it may take beside what its imports take
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from prompt_iml.engine.errors import EmptySource
from prompt_iml.pipeline.scan.isolated import limit_memory
from prompt_iml.pipeline.sources import list_units, read_unit

MAX_OBJECT_BYTES = 1 << 20


def read(path: str) -> Counter[str]:
    """Return the samples of a shard by code; `ok` for those with data."""
    codes = Counter[str]()
    with suppress(EmptySource):  # a whole shard without an image
        for unit in list_units([path], images_per_unit=4096):
            for sample in read_unit(unit, max_object_bytes=MAX_OBJECT_BYTES, threads=1):
                assert (sample.data is None) == (sample.error is not None)
                codes[sample.error.code if sample.error else "ok"] += 1
    return codes


def main() -> None:
    """Read the shards, one after another."""
    limit_memory(int(sys.argv[1]))
    for line in sys.stdin:
        started = time.process_time()
        folder = str(Path(line.rstrip("\n")).parent)
        codes = read(folder)
        print(json.dumps([round(time.process_time() - started, 3), codes]), flush=True)


if __name__ == "__main__":
    main()
