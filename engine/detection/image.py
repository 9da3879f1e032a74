"""Input of the engine: decoded pixels."""

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
    """

    pixels: NDArray[np.uint8]
    luma_table: NDArray[np.float32] | None = None
