"""JPEG quality, estimated from the quantisation table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _standard_luma_sums() -> NDArray[np.int64]:
    """Return (100,), the sums of ITU-T T.81 table K.1 as libjpeg scales it for quality 1 to 100."""
    # fmt: off
    base = np.array([
        16, 11, 10, 16,  24,  40,  51,  61,
        12, 12, 14, 19,  26,  58,  60,  55,
        14, 13, 16, 24,  40,  57,  69,  56,
        14, 17, 22, 29,  51,  87,  80,  62,
        18, 22, 37, 56,  68, 109, 103,  77,
        24, 35, 55, 64,  81, 104, 113,  92,
        49, 64, 78, 87, 103, 121, 120, 101,
        72, 92, 95, 98, 112, 100, 103,  99,
    ])
    # fmt: on
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    sums: NDArray[np.int64] = np.clip((base * percent + 50) // 100, 1, 255).sum(axis=1)
    return sums


_LUMA_SUMS = _standard_luma_sums()


def estimate_quality(luma_table: NDArray[np.float32]) -> int:
    """Return the quality, 1..100, of the standard table whose sum is nearest to a (64,) table's."""
    return int(np.abs(_LUMA_SUMS - luma_table.sum()).argmin()) + 1
