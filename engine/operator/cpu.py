"""Kernels for the CPU, from C++ that pip compiles where there is a compiler: deformable attention,
and the search for matches.

Callers check `available()`, and compute the same another way without the kernels. Inputs and
outputs are NumPy arrays, so that a runtime needs no PyTorch. Letters in names are those of
`engine.operator.torch_op`; C is M*D.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]

DESCRIPTOR = 25  # cells of a descriptor
LIBRARY = Path(__file__).with_name("_cpu.so")


def available() -> bool:
    """Return whether the kernel was compiled when the package was installed, for this platform."""
    return _library() is not None


def library_path() -> str | None:
    """Return the file of the compiled kernel; None if it is not `available`."""
    return str(LIBRARY) if available() else None


def forward(
    value_NSMD: Floats,
    sizes_L2: NDArray[np.int64],
    locations_NQMLP2: Floats,
    weights_NQMLP: Floats,
    out_NQC: Floats,
    threads: int = 1,
) -> None:
    """Compute the operator into `out_NQC`.

    Args:
        value_NSMD, locations_NQMLP2, weights_NQMLP, out_NQC: C-contiguous and all of one dtype,
            float32 or float64.
        sizes_L2: (H, W) of each level, int64.
        threads: most threads; small inputs use fewer.

    Raises:
        ValueError: shapes or dtypes that do not fit each other.
    """
    numbers = _numbers(value_NSMD, sizes_L2, locations_NQMLP2, weights_NQMLP)
    n, _, m, d, q, _, _ = numbers.tolist()
    if out_NQC.size != n * q * m * d:
        raise ValueError(f"out has {out_NQC.shape}, not {(n, q, m * d)}")
    arrays = (value_NSMD, locations_NQMLP2, weights_NQMLP, out_NQC)
    _call("forward", numbers, sizes_L2, threads, arrays)


def backward(
    value_NSMD: Floats,
    sizes_L2: NDArray[np.int64],
    locations_NQMLP2: Floats,
    weights_NQMLP: Floats,
    grad_NQC: Floats,
    threads: int = 1,
) -> tuple[Floats, Floats, Floats]:
    """Return gradients of value, locations and weights, given the output's; see `forward`."""
    numbers = _numbers(value_NSMD, sizes_L2, locations_NQMLP2, weights_NQMLP)
    leaves = (value_NSMD, locations_NQMLP2, weights_NQMLP)
    grads = (
        np.empty_like(value_NSMD), np.empty_like(locations_NQMLP2), np.empty_like(weights_NQMLP)
    )  # fmt: skip
    _call("backward", numbers, sizes_L2, threads, (*leaves, grad_NQC, *grads))
    return grads


def best_matches(
    descriptors_hwP: NDArray[np.float32], near: int, longest: int = 64
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return correlation and cell number (h/2, w/2) of the best match of every second cell.

    Args:
        descriptors_hwP: (h, w, 25) float32, C-contiguous.
        near: number of cells along each axis within which matches are excluded; where all cells
            are, the correlation is -2.
        longest: bytes of the longest vectors that are used where the processor has them: 16, 32
            or 64.
    """
    height, width, cells = descriptors_hwP.shape
    if cells != DESCRIPTOR or not descriptors_hwP.flags.c_contiguous:
        raise ValueError(f"the kernel takes contiguous descriptors of {DESCRIPTOR} cells")
    value = np.empty((height // 2, width // 2), np.float32)
    place = np.zeros(value.shape, np.int64)
    library = _library()
    if library is None:
        raise RuntimeError("the CPU kernel was not compiled: is there a C++ compiler?")
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (descriptors_hwP, value, place)]
    sizes = [ctypes.c_int64(size) for size in (height, width, near, longest)]
    library.promptiml_best_matches(pointers[0], *sizes, *pointers[1:])
    return value, place


def _numbers(
    value: Floats, sizes: NDArray[np.int64], locations: Floats, weights: Floats
) -> NDArray[np.int64]:
    """Check shapes, which the kernel itself does not, and return N, S, M, D, Q, L, P."""
    n, s, m, d = value.shape
    q, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    fits = (
        locations.shape == (n, q, m, levels, points, 2)
        and weights.shape == (n, q, m, levels, points)
        and sizes.shape == (levels, 2)
        and int(sizes.min(initial=1)) > 0
        and int(sizes.prod(1).sum()) == s
    )
    if not fits:
        raise ValueError(
            f"value {value.shape}, sizes {sizes.tolist()}, locations {locations.shape} and "
            f"weights {weights.shape} do not fit each other"
        )
    return np.array((n, s, m, d, q, levels, points), np.int64)


def _call(
    name: str,
    numbers: NDArray[np.int64],
    sizes: NDArray[np.int64],
    threads: int,
    arrays: tuple[Floats, ...],
) -> None:
    dtype = arrays[0].dtype
    if dtype not in (np.float32, np.float64) or any(
        array.dtype != dtype or not array.flags.c_contiguous for array in arrays
    ):
        raise ValueError("the kernel takes contiguous arrays, all float32 or all float64")
    library = _library()
    if library is None:
        raise RuntimeError("the CPU kernel was not compiled: is there a C++ compiler?")
    whole = np.ascontiguousarray(sizes, np.int64)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (numbers, whole)]
    pointers += [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    function = getattr(library, f"promptiml_{name}_{dtype}")
    function(*pointers[:2], ctypes.c_int64(threads), *pointers[2:])


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # not compiled; or for another platform, as in a job's --working-dir
        return None
    library.promptiml_best_matches.restype = None
    for name in ("forward", "backward"):
        for dtype in ("float32", "float64"):
            getattr(library, f"promptiml_{name}_{dtype}").restype = None
    return library
