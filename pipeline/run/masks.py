"""Encoding of masks in the table: COCO run lengths."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def encode_mask(mask: NDArray[np.bool_]) -> bytes | None:
    """Encode a (H, W) bool mask as COCO compressed RLE counts, column-major; None if empty."""
    if not mask.any():
        return None
    height, width = mask.shape
    # Changes are found row by row, as the mask lies in memory: 15 times faster than a transpose.
    row, column = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    at_top = np.flatnonzero(mask[0] != np.r_[False, mask[-1, :-1]])
    changes = np.sort(np.r_[column * height + row + 1, at_top * height])
    runs = np.diff(np.r_[0, changes, mask.size])
    rle = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return cast(bytes, rle["counts"])


def decode_mask(rle: bytes | None, height: int, width: int) -> NDArray[np.bool_]:
    """Decode COCO compressed RLE counts to a (height, width) bool mask; None is the empty mask.

    The counts are runs of 0 and 1 in turn, down the columns. Each is a little-endian number of 5
    bits a character (bit 5: more follows; bit 4 of the last: negative), and from the fourth on
    the difference to the run two before.
    """
    if rle is None:
        return np.zeros((height, width), bool)
    runs = run_lengths(rle)
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T


def run_lengths(rle: bytes) -> NDArray[np.int64]:
    """Return the runs of COCO compressed RLE counts; raise `ValueError` if it holds none."""
    codes = np.frombuffer(rle, np.uint8).astype(np.int64) - 48
    is_last = codes < 32
    if not is_last.any() or not is_last[-1]:
        raise ValueError("not the run lengths of a mask")
    first = np.flatnonzero(np.r_[True, is_last[:-1]])
    place = np.arange(codes.size) - np.repeat(first, np.diff(np.r_[first, codes.size]))
    runs = np.add.reduceat((codes & 31) << 5 * place, first)
    runs -= (codes[is_last] >> 4 & 1) << 5 * (place[is_last] + 1)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
