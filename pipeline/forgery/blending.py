"""Blends that hide a seam: by opacity, by matched colours, by gradients (Poisson).

H, W: height and width. Patches have the host's shape, (H, W, 3) float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from prompt_iml.pipeline.forgery.history import Floats, Pixels, rounded

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]  # float32 where speed counts

RELAXATIONS = 6  # of the finest level of a membrane; what is left of the error is smooth
# Luma and two differences of colour, ITU-R BT.601.
LUMA_CHROMA = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)


def blend(host: Pixels, patch: Floats, alpha: Floats) -> Pixels:
    """Return the host under the patch, at the patch's opacity `alpha` (H, W), 0..1."""
    if not alpha.any():
        return host
    box = _box(alpha > 0)
    under = host[box].astype(np.float32)
    blended = host.copy()
    blended[box] = rounded(under + (patch[box] - under) * alpha[box][..., None])
    return blended


def poisson(host: Pixels, patch: Floats, region: Mask, mixed: bool = False) -> Pixels:
    """Blend by gradients (Pérez, Gangnet and Blake, 2003).

    Inside the region the gradients are the patch's, and the seam has none; outside, the host is
    unchanged. The patch must have its content one pixel beyond the region too.

    Args:
        host: (H, W, 3).
        patch: (H, W, 3).
        region: (H, W), what is replaced.
        mixed: of host and patch, take at each pixel the stronger gradient.
    """
    box = _box(region)
    inside, under, over = region[box], host[box].astype(np.float32), patch[box].astype(np.float32)
    if mixed:
        over = _strongest(under, over, inside)
    result = host.copy()
    offset = membrane(under - over, ~inside)
    result[box] = rounded(np.where(inside[..., None], over + offset, under))
    return result


def membrane(values: Values, known: Mask, relaxations: int = RELAXATIONS) -> Values:
    """Fill the unknown of `values` (H, W, C) by a harmonic function.

    It goes from coarse to fine: a level begins with the one below, which has the means of what is
    known in 2x2 pixels, and is relaxed. Coarse levels are cheap, and are relaxed twice as often.
    """
    if known.all() or not known.any():
        return values
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    weight = np.pad(known, even).astype(np.float32)
    total = np.pad(values, (*even, (0, 0))) * weight[..., None]
    count = _halved(weight[..., None])
    coarse = membrane(_halved(total) / np.maximum(count, 1), count[..., 0] > 0, 2 * relaxations)
    start = scaled(coarse, weight.shape[::-1])[:height, :width]
    return _relaxed(np.where(known[..., None], values, start), ~known, relaxations)


def harmonised(patch: Floats, host: Pixels, alpha: Floats, rng: np.random.Generator) -> Floats:
    """Move the mean and standard deviation of the patch's luma and chroma towards the host's
    around the place, as far as a sampled strength."""
    inside = alpha >= 0.5
    around = ndimage.binary_dilation(inside, iterations=7) & ~inside
    if not around.any() or not inside.any():
        return patch
    target, source = host[around] @ LUMA_CHROMA.T, patch[inside] @ LUMA_CHROMA.T
    gain = ((target.std(0) + 1) / (source.std(0) + 1)).clip(0.6, 1.5)
    place = alpha > 0
    moved = (patch[place] @ LUMA_CHROMA.T - source.mean(0)) * gain + target.mean(0)
    matched = patch.copy()
    strength = rng.uniform(0.3, 1)
    matched[place] += strength * (moved @ np.linalg.inv(LUMA_CHROMA).T - patch[place])
    return matched


def scaled(pixels: Values, size: tuple[int, int]) -> Values:
    """Resize (H, W, C) to `size` (width, height) bilinearly, without rounding."""
    channels = [Image.fromarray(c.astype(np.float32)) for c in pixels.transpose(2, 0, 1)]
    resized = [np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in channels]
    return np.stack(resized, 2)


def _strongest(under: Values, over: Values, inside: Mask) -> Values:
    """Return an image (H, W, C), 0 at its edge, that has the stronger gradients of two inside."""
    divergence = np.zeros_like(under)
    for axis in (0, 1):
        below, above = np.diff(under, axis=axis), np.diff(over, axis=axis)
        pair = np.take(inside, range(1, inside.shape[axis]), axis)[..., None]
        steps = np.where(pair & (np.abs(above) > np.abs(below)), above, below)
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        divergence += np.diff(np.pad(steps, pad), axis=axis)
    return _poisson_equation(divergence)


def _poisson_equation(divergence: Values) -> Values:
    """Solve for an image (H, W, C) whose Laplacian is `divergence`, 0 beyond the edge."""
    spectrum = fft.dstn(divergence, type=1, axes=(0, 1))
    down, across = (
        2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2 for n in spectrum.shape[:2]
    )
    spectrum /= (down[:, None] + across[None])[..., None]
    solved: Values = fft.idstn(spectrum, type=1, axes=(0, 1))
    return solved


def _relaxed(values: Values, unknown: Mask, times: int) -> Values:
    """Move each unknown towards the mean of its four neighbours, in place."""
    fraction = np.where(unknown, 0.2, 0)[..., None].astype(values.dtype)
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    inner = padded[1:-1, 1:-1]
    for _ in range(times):
        change = padded[:-2, 1:-1] + padded[2:, 1:-1]
        change += padded[1:-1, :-2]
        change += padded[1:-1, 2:]
        change -= 4 * inner
        change *= fraction
        inner += change
    return inner


def _halved(values: Values) -> Values:
    """Sum 2x2 pixels of (H, W, C), even H and W."""
    height, width, channels = values.shape
    summed: Values = values.reshape(height // 2, 2, width // 2, 2, channels).sum((1, 3))
    return summed


def _box(region: Mask) -> tuple[slice, slice]:
    """Return the bounding box of the region and one pixel around it, where there is one."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return (
        slice(max(rows[0] - 1, 0), rows[-1] + 2),
        slice(max(columns[0] - 1, 0), columns[-1] + 2),
    )
