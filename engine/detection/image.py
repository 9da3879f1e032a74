"""The input of the engine: decoded pixels, and the JPEG quantisation of the file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image in its stored frame (no EXIF rotation applied).

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        luma_table: (64,) float32, the JPEG luma quantisation table in natural (row-major)
            order, or None when the file has none.
        jpeg_quality: 1..100, estimated from the table unless the decoder has done so already;
            None without a table.
    """

    pixels: NDArray[np.uint8]
    luma_table: NDArray[np.float32] | None = None
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        if self.jpeg_quality is None and self.luma_table is not None:
            object.__setattr__(self, "jpeg_quality", estimate_quality(self.luma_table))


def _standard_luma_sums() -> NDArray[np.int64]:
    """Return the sums (100,) of ITU-T T.81 table K.1 as libjpeg scales it for quality 1 to 100."""
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
