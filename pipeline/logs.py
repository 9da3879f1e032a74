"""Log lines on stderr: text for people, or, with `--log json`, one JSON object each.

Each object has `time` (UTC), `level` and `message`, and `run` and `unit` where they are known.
Scan actors log each unit they begin and end; in text format they log only warnings and errors.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal

from prompt_iml.engine.errors import OutputNotWritable

Format = Literal["text", "json"]

LOGGER = logging.getLogger("prompt_iml")

_OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")


class JsonLines(logging.Formatter):
    """Formatter of one JSON object a line, with `fields` in each."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line | self._fields | getattr(record, "fields", {}), default=str)


class Stderr(logging.Handler):
    """Handler that looks `sys.stderr` up for each line, because tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(printable(self.format(record)), file=sys.stderr, flush=True)


def configure(kind: Format = "text", level: int = logging.INFO, **fields: Any) -> None:
    """Set the format and level of this process's log; `fields` join every JSON object."""
    handler = Stderr()
    handler.setFormatter(JsonLines(fields) if kind == "json" else None)
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(level)


def log(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write one line to stderr; stdout is for the summary alone."""
    if not LOGGER.handlers:
        configure()
    LOGGER.log(level, message, extra={"fields": fields})


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return a text with its control characters, but those in `kept`, as escapes like `\u001b`:
    a file's name must not drive a terminal."""
    return "".join(c if c.isprintable() or c in kept else f"\\u{ord(c):04x}" for c in text)


def one_line(message: object) -> str:
    """Return a message, or an error's, with all white space in it as single spaces, and without the
    addresses of Python's objects."""
    return " ".join(_OBJECT.sub("", str(message)).split())


@contextmanager
def until_closed() -> Iterator[None]:
    """End the block without an error when the reader of stdout, such as `head`, has enough.

    Raises:
        OutputNotWritable: what stdout leads to is full.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        raise OutputNotWritable("cannot write to stdout: no space is left there") from error


def _drop_output() -> None:
    """Lead stdout nowhere, for what is not flushed yet."""
    with suppress(OSError, ValueError):  # where it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_json() -> bool:
    """Return whether lines are JSON objects."""
    return any(isinstance(handler.formatter, JsonLines) for handler in LOGGER.handlers)
