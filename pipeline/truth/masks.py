"""Masks of labels: image files, PNG bytes or run lengths, as (H, W) bool arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.errors import FetchError, NotFound
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.run.masks import decode_mask, encode_mask
from prompt_iml.pipeline.storage import storage

Mask = NDArray[np.bool_]

BRIGHT = 127  # pixels above it are manipulated


@dataclass(frozen=True, slots=True)
class Rle:
    """Mask as COCO compressed run lengths; `counts` is None for the empty mask."""

    counts: bytes | None
    height: int
    width: int

    @classmethod
    def of(cls, mask: Mask) -> Rle:
        """Encode a (H, W) mask."""
        return cls(encode_mask(mask), *mask.shape)


MaskSource = str | bytes | Rle
"""URI of an image file, bytes of a PNG, or run lengths."""


class DimMask(ValueError):
    """A mask whose brightest pixels neither mark a manipulation nor are black."""


def bright(picture: Image.Image) -> Mask:
    """Return (H, W) bool: the pixels of a mask's image file that mark a manipulation.

    These are the pixels above 127 or, where no pixel is above 1, those of 1.

    Raises:
        DimMask: the brightest pixel is in between, as in a mask of a dark colour.
    """
    grey = np.asarray(picture.convert("L"))
    brightest = grey.max(initial=0)
    if 1 < brightest <= BRIGHT:
        raise DimMask(f"has no pixel above {BRIGHT}, and is not black ({brightest}): mark in white")
    mask: Mask = grey > (BRIGHT if brightest > 1 else 0)
    return mask


def load_mask(source: MaskSource) -> Mask:
    """Return a mask in the frame in which it was stored.

    Raises:
        ValueError: it cannot be read; the message says why, after the words "has a mask that".
    """
    if isinstance(source, Rle):
        return decode_mask(source.counts, source.height, source.width)
    try:
        data = storage.read_bytes(source) if isinstance(source, str) else source
        formats = None if isinstance(source, str) else ["PNG"]
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            return bright(picture)
    except DimMask:
        raise
    except NotFound as error:
        raise ValueError(f"is not there: {storage.display_name(str(source))}") from error
    except FetchError as error:
        raise ValueError(f"cannot be read: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = f"no image: {_shown(source)}" if isinstance(source, str) else "not a PNG"
        raise ValueError(f"is {kind} ({one_line(error)[:100]})") from error


def in_stored_frame(mask: Mask, size: tuple[int, int], orientation: int | None) -> Mask:
    """Return a mask at the (height, width) of the stored pixels.

    A mask that was drawn on the picture as viewers show it, by an EXIF orientation of 5 to 8, has
    height and width exchanged, and is turned back.

    Raises:
        ValueError: it has another size.
    """
    if mask.shape == size:
        return mask
    if mask.shape == size[::-1] and orientation in _TURNED:
        return _TURNED[orientation](mask)
    raise ValueError(f"has a mask of {mask.shape[::-1]} pixels for a stored image of {size[::-1]}")


# Of the picture as shown, by EXIF orientation; each undoes what a viewer does.
_TURNED: dict[int | None, Callable[[Mask], Mask]] = {
    5: lambda shown: shown.T,
    6: lambda shown: np.rot90(shown),
    7: lambda shown: shown[::-1, ::-1].T,
    8: lambda shown: np.rot90(shown, -1),
}


def _shown(source: str) -> str:
    return storage.display_name(source.removeprefix("file://"))
