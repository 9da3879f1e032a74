"""JPEG's luma, its 8x8 blocks and their cosine transform, as constants in NumPy.

The network and the statistics of a whole picture (`engine.detection.context`) both need them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # pixels
LUMA = (0.299, 0.587, 0.114)  # JFIF


def zigzag() -> list[int]:
    """Return the natural (row-major) indices of an 8x8 block's coefficients in zig-zag order."""
    return sorted(
        range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)
    )


def dct_basis() -> NDArray[np.float64]:
    """Return the orthonormal DCT-II of 8x8, (64, 8, 8), coefficients in natural order."""
    frequency, position = np.arange(8.0), np.arange(8.0)
    basis = np.cos(np.pi * frequency[:, None] * (2 * position[None] + 1) / 16) / 2
    basis[0] /= np.sqrt(2)
    both: NDArray[np.float64] = np.einsum("ur,vc->uvrc", basis, basis).reshape(64, 8, 8)
    return both
