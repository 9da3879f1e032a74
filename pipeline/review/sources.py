"""Bytes of the pictures in a queue, from where they were scanned: files, objects and shards.

A shard is read from its start, and the next pictures of the queue that lie in it are kept, so that
they are there at once. Reading runs in threads that do not keep the process alive.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from threading import Lock, Thread

from prompt_iml.engine.errors import FetchError, ImageError, NotFound, PromptImlError
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.report.originals import id_of, read_objects, read_shard
from prompt_iml.pipeline.report.reasons import Row
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.units import Sample

KEPT_BYTES = 256 << 20  # of pictures that were read; the oldest are read again
READ_BYTES = 256 << 20  # of pictures of a shard that are read at a time
POLL_SECONDS = 0.5

CHANGED = "the file is gone or has changed since the scan"


class Sources:
    """Reader of the pictures of a queue, from several threads.

    Args:
        rows: rows of the pictures.
        config: of the run: how its sources are read.
        is_ending: returns whether to give up waiting, since the process ends.
    """

    def __init__(self, rows: Sequence[Row], config: Json, is_ending: Callable[[], bool]) -> None:
        self._config, self._is_ending = config, is_ending
        self._shards = defaultdict[str, list[Row]](list)
        for row in rows:
            if row["member"] is not None:
                self._shards[row["uri"]].append(row)
        self._found: dict[str, Future[bytes]] = {}  # by image_id, the oldest first
        self._lock = Lock()

    def read(self, row: Row) -> bytes:
        """Return the bytes of a row's picture.

        Raises:
            ImageError: it cannot be read, is not there, or has changed since the scan.
        """
        with self._lock:
            found = self._found.get(row["image_id"]) or self._begin(row)
        while not self._is_ending():
            try:
                return found.result(POLL_SECONDS)
            except TimeoutError:
                continue
            except ImageError:
                self._found.pop(row["image_id"], None)  # the next attempt reads again
                raise
        raise FetchError("the review has ended")

    def _begin(self, row: Row) -> Future[bytes]:
        """Begin to read a picture, and those of its shard that follow in the queue."""
        self._forget()
        rows, wanted, size = self._shards[row["uri"]], [row], row["size_bytes"]
        for each in rows[rows.index(row) + 1 :] if row["member"] is not None else []:
            size += each["size_bytes"]
            if each["image_id"] not in self._found and size <= READ_BYTES:
                wanted.append(each)
        for each in wanted:
            self._found[each["image_id"]] = Future()
        Thread(target=self._read, args=(wanted,), daemon=True).start()
        return self._found[row["image_id"]]

    def _forget(self) -> None:
        """Forget the pictures that were read first, beyond `KEPT_BYTES`."""
        done = [name for name, each in self._found.items() if each.done() and not each.exception()]
        sizes = [len(self._found[name].result()) for name in done]
        over = sum(sizes) - KEPT_BYTES
        for name, size in zip(done, sizes, strict=True):
            if over > 0:
                del self._found[name]
                over -= size

    def _read(self, rows: Sequence[Row]) -> None:
        """Read rows of one shard, or one other row, and hand over their bytes or an error."""
        left = {row["image_id"]: (row["sha256"], self._found[row["image_id"]]) for row in rows}
        failure: ImageError = NotFound(CHANGED)
        try:
            for sample in self._samples(rows):
                name = id_of(sample)
                digest, future = left.get(name, ("", None))
                if future is None:
                    failure = sample.error or failure  # such as that of a shard that breaks off
                elif sample.error:
                    left.pop(name)[1].set_exception(sample.error)
                elif digest == hashlib.sha256(sample.data or b"").hexdigest():
                    left.pop(name)[1].set_result(sample.data or b"")
                if not left:
                    return
        except PromptImlError as error:
            failure = FetchError(str(error))
        except Exception as error:  # broad, because somebody waits for each picture
            failure = FetchError(f"{type(error).__name__}: {one_line(error)}")
        for _, future in left.values():
            future.set_exception(failure)

    def _samples(self, rows: Sequence[Row]) -> Iterator[Sample]:
        if rows[0]["member"] is None:
            return read_objects(list(rows), self._config)
        return read_shard(rows[0]["uri"], self._config)
