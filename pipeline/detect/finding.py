"""A `Finding`: what was found in one picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps
from PIL import Image as PilImage

from prompt_iml.engine.detection.postprocess import Region
from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.policy import Label
from prompt_iml.pipeline.report.pictures import overlay
from prompt_iml.pipeline.run.masks import decode_mask
from prompt_iml.pipeline.scan.rows import Row

BOX = PilImage.Resampling.BOX
SHOWN_SIDE = 640  # pixels of a picture in a notebook


class Finding:
    """Label, score and mask of one picture; in a notebook it shows itself.

    It holds the mask compressed, and no pixels: a list of many findings takes little memory.

    Args:
        row: columns of a picture that was scanned.
        pixels: function that returns its pixels, (H, W, 3) uint8 RGB as stored.

    Attributes:
        row: every column of docs/table.md by name, without those of a run.
    """

    def __init__(self, row: Row, pixels: Callable[[], NDArray[np.uint8]]) -> None:
        self.row, self._pixels = row, pixels

    @property
    def label(self) -> Label:
        """`manipulated`, `authentic`, or `uncertain`."""
        return cast(Label, self.row["label"])

    @property
    def score(self) -> float:
        """Calibrated probability that the picture was manipulated, 0 to 1, with equal priors."""
        return float(self.row["score"])

    @property
    def threshold(self) -> float | None:
        """Threshold that `score` was compared with; None where the picture is beyond the limits."""
        return cast("float | None", self.row["threshold"])

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Manipulated pixels, (H, W) bool in the stored frame; none where no mask is believed."""
        return decode_mask(self.row["mask_rle"], self.row["mask_height"], self.row["mask_width"])

    @property
    def mask_confidence(self) -> float | None:
        """Expected F1 of the mask, 0 to 1; None if the model's policy gives none."""
        return cast("float | None", self.row["mask_confidence"])

    @property
    def regions(self) -> tuple[Region, ...]:
        """Connected regions of the mask, largest first, at most 16."""
        return tuple(Region(**region) for region in self.row["regions"])

    def overlay(self, side: int | None = None) -> PilImage.Image:
        """Return the picture with its mask drawn over it, upright as viewers show it.

        The picture is read and decoded again.

        Args:
            side: most pixels of its longer side; None: as many as the picture has.

        Raises:
            ImageError: it cannot be read any more.
            UsageError: it has changed since it was scanned.
        """
        marked = PilImage.fromarray(self._pixels())
        if side:
            marked.thumbnail((side, side))
        if self.regions:
            mask = PilImage.fromarray(self.mask).convert("L").resize(marked.size, BOX)
            # A mask that covers a quarter of a pixel is visible.
            marked = PilImage.fromarray(overlay(np.asarray(marked), np.asarray(mask) >= 64))
        marked.getexif()[ExifTags.Base.Orientation] = self.row.get("exif_orientation") or 1
        return ImageOps.exif_transpose(marked)

    def __repr__(self) -> str:
        count = len(self.regions)
        return f"<Finding: {self.label}, score {self.score:.3f}, {count} regions>"

    def _repr_png_(self) -> bytes | None:
        """Return the overlay for a notebook; None where the picture cannot be read any more."""
        try:
            shown = self.overlay(SHOWN_SIDE)
        except PromptImlError:
            return None
        file = io.BytesIO()
        shown.save(file, "png")
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Return the overlay and a caption for a notebook."""
        caption = f"<figcaption>{html.escape(repr(self)[1:-1])}</figcaption>"
        png = self._repr_png_()
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else ""
        picture = f'<img src="{source}" alt="">' if png else ""
        return f"<figure>{picture}{caption}</figure>"
