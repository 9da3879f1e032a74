"""Lines on stderr: for people, or, where `--log json` asks for it, one JSON object each.

Such an object has `time` (UTC), `level`, `message`, and what is known besides: `run`, `unit`, ...
Scan actors tell of every unit that they begin and end; of plain lines they tell only of trouble.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

LOGGER = logging.getLogger("prompt_iml")


class JsonLines(logging.Formatter):
    """One object a line, with `fields` in each."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line | self._fields | getattr(record, "fields", {}), default=str)


class Stderr(logging.Handler):
    """To what is stderr at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        print(self.format(record), file=sys.stderr, flush=True)


def configure(kind: Format = "text", level: int = logging.INFO, **fields: Any) -> None:
    """How this process's lines look from now on; `fields` are put into each object."""
    handler = Stderr()
    handler.setFormatter(JsonLines(fields) if kind == "json" else None)
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(level)


def tell(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line."""
    if not LOGGER.handlers:
        configure()
    LOGGER.log(level, message, extra={"fields": fields})


def is_json() -> bool:
    """Whether lines are objects."""
    return any(isinstance(handler.formatter, JsonLines) for handler in LOGGER.handlers)
