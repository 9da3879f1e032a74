"""Stores of Google, Azure and Hugging Face, by fsspec where their package is installed.

Their credentials come from where the package looks for them.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import fsspec

from prompt_iml.engine.errors import MissingDependency

PACKAGES = {"gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}
"""Package of each scheme. fsspec has more schemes; some are other names of the local disk."""

WRITABLE = ("gs", "az")
"""Schemes whose package creates a file on the condition that there is none."""

# Errors of the packages, by the modules that have them.
_ERRORS = {
    "aiohttp": "ClientError",
    "azure.core.exceptions": "AzureError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
    "httpx": "HTTPError",
}
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "mtime")


@functools.cache
def filesystem(scheme: str, pid: int) -> Any:
    """Return the file system of a scheme, for a process; raise `MissingDependency`."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise MissingDependency(
            f"{scheme}:// needs the package {package}: pip install {package}"
        ) from error


def version(info: dict[str, Any]) -> str:
    """Return what changes with the bytes of a file, from its description; empty if unknown."""
    known = (str(info[name]) for name in _VERSIONS if info.get(name))
    return next(known, "").strip('"')


def create_once(filesystem: Any, path: str, data: bytes) -> bool:
    """Create a file whole, unless it exists; return whether this call created it."""
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def errors() -> tuple[type[Exception], ...]:
    """Return the types of errors that the imported packages raise."""
    modules = ((sys.modules.get(module), name) for module, name in _ERRORS.items())
    return tuple(getattr(module, name) for module, name in modules if module)
