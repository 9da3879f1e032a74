"""Regions and whole pictures as generative models leave them.

An inpainting model makes new content in the latents of an autoencoder. Either the region alone is
pasted back, with a feathered seam and the exact original around it (`generated`), or the whole
picture is published as the autoencoder's decoder left it (`regenerate`). Pixels that passed through
an autoencoder with the whole picture, and were not edited, are not manipulated: whoever regenerates
a picture as it is, as some apps and platforms do to upscale or denoise, says nothing new with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from prompt_iml.pipeline.forgery.blending import blend
from prompt_iml.pipeline.forgery.edits import Edit
from prompt_iml.pipeline.forgery.history import Floats, Pixels, choose, rounded, smooth

MARGIN = 16  # pixels around a region that its autoencoder sees
GROWTH = (1, 9)  # pixels by which a region is larger than its new content
SEAM = (0.4, 3.0)  # sigma of the feathering, pixels
NOISY_SHARE = 0.5  # share of the latents to which noise is added
NOISE = 0.3  # most of it, in standard deviations of the latents


class Autoencoder(Protocol):
    """Autoencoder of pictures; `cluster.pretraining.autoencoder` has one."""

    def pass_through(self, pixels: Pixels, noise: float, rng: np.random.Generator) -> Pixels:
        """Encode, add noise of this standard deviation to the latents, and decode."""


class Denoiser:
    """Filter that smooths a picture and adds noise, as inpainting without latents does."""

    def pass_through(self, pixels: Pixels, noise: float, rng: np.random.Generator) -> Pixels:
        """Return a picture of the same shape; `noise` is unused, for there are no latents."""
        if rng.random() < 0.5:
            values = smooth(pixels.astype(np.float64), rng.uniform(0.6, 1.6))
        else:
            median = ImageFilter.MedianFilter(choose((3, 5), rng))
            values = np.asarray(Image.fromarray(pixels).filter(median), np.float64)
        grain = rng.normal(0, rng.uniform(0.5, 5), pixels.shape)
        if rng.random() < 0.5:
            grain = smooth(grain, rng.uniform(0.3, 0.8))
        return rounded(values + grain)


def generated(
    original: Pixels, content: Edit, sources: Sequence[Autoencoder], rng: np.random.Generator
) -> Edit:
    """Pass the region of an edit through an autoencoder, and paste it into the original.

    Args:
        original: (H, W, 3).
        content: the original with new content, and that content's opacity; with the original's own
            content the region is only passed through.
        sources: autoencoders and denoisers to choose from.
        rng: source of randomness.

    Returns:
        The picture and the opacity of a region that is some pixels larger than the content.
    """
    edited, alpha = content
    grown = ndimage.maximum_filter(alpha > 0, 2 * int(rng.integers(*GROWTH)) + 1)
    region = ndimage.gaussian_filter(grown.astype(np.float64), rng.uniform(*SEAM))
    if not region.any():
        return original, region
    box = _box(region)
    patch = edited.astype(np.float64)
    patch[box] = regenerate(edited[box], sources, rng)
    return blend(original, patch, region), region


def regenerate(pixels: Pixels, sources: Sequence[Autoencoder], rng: np.random.Generator) -> Pixels:
    """Pass a picture (H, W, 3) through one of the autoencoders, perhaps with noisy latents."""
    noise = rng.uniform(0, NOISE) if rng.random() < NOISY_SHARE else 0.0
    return choose(sources, rng).pass_through(pixels, noise, rng)


def _box(region: Floats) -> tuple[slice, slice]:
    """Return the rows and columns of a region and `MARGIN` pixels around it."""
    rows, columns = ndimage.find_objects((region > 0).astype(np.uint8))[0]
    return _wider(rows), _wider(columns)


def _wider(along: slice) -> slice:
    return slice(max(along.start - MARGIN, 0), along.stop + MARGIN)
