"""The limit on an image's bytes, the same in every kind of source."""

from __future__ import annotations

from prompt_iml.engine.errors import TooLarge


def too_large(size_bytes: int, max_object_bytes: int) -> TooLarge | None:
    """The error of an image of that size, if it is over the limit."""
    if size_bytes <= max_object_bytes:
        return None
    return TooLarge(
        f"{size_bytes} bytes, more than the limit of {max_object_bytes}",
        {"size_bytes": size_bytes},
    )
