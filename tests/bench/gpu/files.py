"""Files that `make gpu` reads, relative to the checkout: what a bare machine must be given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOUND = ROOT / "docs/found.png"
KERNEL_TESTS = "tests/engine/operator/test_cuda_kernel.py"
REHEARSED_TESTS = "tests/engine/operator/test_cuda_emulated.py"
PLACES = (
    "prompt_iml", "engine", "docs/found.png", "tests/bench/__init__.py", "tests/bench/gpu",
    KERNEL_TESTS, "tests/helpers/__init__.py", "tests/helpers/null_device.py",
    "cluster/__init__.py", "cluster/training/__init__.py", "cluster/training/losses.py",
    "cluster/training/schedule.py",
)  # fmt: skip
# Modules outside the standard library; scikit-image brings photographs, and can be missing.
PACKAGES = ("torch", "numpy", "scipy", "PIL", "safetensors", "pytest", "cuda.bindings")


def listed() -> Iterator[Path]:
    """Yield the files and links below `PLACES`, without caches."""
    for place in PLACES:
        path = ROOT / place
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for each in inside:
            if (each.is_file() or each.is_symlink()) and "__pycache__" not in each.parts:
                yield each


def digest() -> str:
    """Return what identifies the code and the model: a digest over all files, 12 digits."""
    sha = hashlib.sha256()
    for path in listed():
        if path.is_file() and path.suffix != ".so":
            sha.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]
