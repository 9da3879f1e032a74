"""Perturbations of images, by their names for `--perturbation`.

    none                  the file as it is
    jpeg-100 .. jpeg-1    re-encoded at this quality (4:2:0) and decoded again, with the new table
    resize-0.25 .. 4      both sides by this factor, bicubic; the mask too, nearest neighbour
    blur-3, 5, .. 31      Gaussian; side of the kernel, sigma = 0.3 (side / 2 - 1.5) + 0.8 pixels
    noise-1 .. 100        Gaussian; sigma in grey levels, seeded
    pink-1 .. 100         noise whose power falls with 1/frequency; sigma in grey levels, seeded
    dither-2 .. 6         this many levels per channel, Floyd-Steinberg error diffusion
    jpeg2000-2 .. 200     JPEG 2000, lossy, with this compression ratio
    brightness-0.1 .. 4   all grey levels by this factor
    contrast-0.1 .. 4     distances from the image's mean grey by this factor
    no-table              pixels untouched, the quantisation table withheld
    grid                  5 columns and 3 rows cropped, the table kept: not aligned to 8x8 blocks
    all                   all perturbations in `ALL`
    usual                 the eight in `USUAL`, from the literature
    paper                 the six kinds in `PAPER`

Perturbations other than JPEG remove the quantisation table, as a lossless file would. `usual` are
those of ManTra-Net and its successors: resizing, blur, noise and compression. `paper` are those of
the robustness test in arXiv 2401.00653: brightness, contrast, darkening, dithering, pink noise and
JPEG 2000. That paper takes its nine from arXiv 2310.00234 without strengths, which are chosen here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import scipy  # whose parts load when they are first used
from numpy.typing import NDArray

from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.parser import did_you_mean

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

USUAL = (
    *("resize-0.78", "resize-0.25", "blur-3", "blur-15"),
    *("noise-3", "noise-15", "jpeg-100", "jpeg-50"),
)
PAPER = ("brightness-1.3", "contrast-1.3", "brightness-0.7", "dither-6", "pink-7", "jpeg2000-20")
ALL = (
    "none",
    *("jpeg-100", "jpeg-90", "jpeg-80", "jpeg-70", "jpeg-60", "jpeg-50"),
    *("resize-0.25", "resize-0.5", "resize-0.78", "resize-1.5", "resize-2"),
    *("blur-3", "blur-7", "blur-15", "noise-3", "noise-7", "noise-15"),
    *("brightness-0.7", "brightness-1.3", "contrast-0.7", "contrast-1.3"),
    *("pink-7", "dither-6", "jpeg2000-20"),
    *("no-table", "grid"),
)
_GROUPS = {"all": ALL, "usual": USUAL, "paper": PAPER}


@dataclass(frozen=True, slots=True)
class Strength:
    """Perturbation with a strength: its function on pixels, and the range of the strength."""

    apply: Callable[[Pixels, float, int], Pixels]
    least: float
    most: float


def expand(names: Sequence[str]) -> list[str]:
    """Expand `all`, `usual` and `paper`; unique, in order; raises `UsageError` for others."""
    expanded = [single for name in names for single in _GROUPS.get(name, (name,))]
    for name in expanded:
        _parse(name)
    return list(dict.fromkeys(expanded))


def perturb(name: str, image: Image, mask: Mask | None, seed: int = 0) -> tuple[Image, Mask | None]:
    """Return the perturbed image, and its (H, W) mask if it has one.

    Args:
        name: one name of this module's docstring, not a group.
        image: decoded image.
        mask: mask of the same size.
        seed: seed of the noise.

    Raises:
        UsageError: there is no such perturbation.
    """
    kind, strength = _parse(name)
    match kind:
        case "none":
            return image, mask
        case "no-table":
            return Image(image.pixels), mask
        case "grid":
            height, width = image.pixels.shape[:2]
            rest = slice(min(3, height - 1), None), slice(min(5, width - 1), None)
            return Image(image.pixels[rest], image.luma_table), None if mask is None else mask[rest]
        case "jpeg":
            return _recode(image.pixels, int(strength)), mask
        case "resize":
            return _resized(image.pixels, strength), _resized_mask(mask, strength)
    return Image(_STRENGTHS[kind].apply(image.pixels, strength, seed)), mask


def _parse(name: str) -> tuple[str, float]:
    if name in ("none", "no-table", "grid"):
        return name, 0.0
    kind, _, number = name.rpartition("-")
    try:
        strength = float(number)
        limits = _STRENGTHS[kind]
    except (ValueError, KeyError):
        known = [*_GROUPS, *ALL]
        hint = did_you_mean(name, known)
        raise UsageError(f"no perturbation {name!r}{hint}: one of {', '.join(known)}") from None
    if not limits.least <= strength <= limits.most:
        raise UsageError(f"{name}: {kind} takes {limits.least:g} to {limits.most:g}")
    return kind, strength


def _recode(pixels: Pixels, quality: int) -> Image:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    return decode(file.getvalue(), DecodeLimits()).image


def _size(pixels: NDArray[np.generic], factor: float) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resized(pixels: Pixels, factor: float) -> Image:
    size = _size(pixels, factor)
    image = PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC)
    return Image(np.asarray(image))


def _resized_mask(mask: Mask | None, factor: float) -> Mask | None:
    if mask is None:
        return None
    size = _size(mask, factor)
    return np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))


def _blur(pixels: Pixels, side: float, _: int) -> Pixels:
    sigma = 0.3 * (side / 2 - 1.5) + 0.8
    radius = int(side) // 2
    values = pixels.astype(np.float32)
    return _rounded(scipy.ndimage.gaussian_filter(values, (sigma, sigma, 0), radius=radius))


def _noise(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
    return _rounded(pixels + sigma * noise)


def _pink(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    height, width, channels = pixels.shape
    white = np.random.default_rng(seed).standard_normal((channels, height, width), np.float32)
    down, across = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    frequency = np.hypot(down[:, None], across[None])
    frequency[0, 0] = np.inf  # keeps the mean
    noise = np.fft.irfft2(np.fft.rfft2(white) / np.sqrt(frequency), s=(height, width))
    noise /= max(float(noise.std()), 1e-9)
    return _rounded((pixels + sigma * noise.transpose(1, 2, 0)).astype(np.float32))


def _dither(pixels: Pixels, levels: float, _: int) -> Pixels:
    steps = np.rint(np.linspace(0, 255, int(levels))).astype(np.uint8)
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette(np.stack(np.meshgrid(steps, steps, steps), -1).tobytes())
    image = PIL.Image.fromarray(pixels)
    quantised = image.quantize(palette=palette, dither=PIL.Image.Dither.FLOYDSTEINBERG)
    return np.asarray(quantised.convert("RGB"))


def _jpeg2000(pixels: Pixels, ratio: float, _: int) -> Pixels:
    file = io.BytesIO()
    options = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
    PIL.Image.fromarray(pixels).save(file, "jpeg2000", **options)
    with PIL.Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _brightness(pixels: Pixels, factor: float, _: int) -> Pixels:
    return _rounded(pixels * np.float32(factor))


def _contrast(pixels: Pixels, factor: float, _: int) -> Pixels:
    grey = np.float32(pixels.mean())
    return _rounded(grey + (pixels - grey) * np.float32(factor))


def _rounded(values: NDArray[np.float32]) -> Pixels:
    nearest: Pixels = np.rint(values.clip(0, 255)).astype(np.uint8)
    return nearest


def _geometric(pixels: Pixels, _: float, __: int) -> Pixels:
    raise AssertionError("jpeg and resize change more than pixels: see perturb")


_STRENGTHS = {
    "jpeg": Strength(_geometric, 1, 100),
    "resize": Strength(_geometric, 0.05, 4),
    "blur": Strength(_blur, 3, 31),
    "noise": Strength(_noise, 1, 100),
    "pink": Strength(_pink, 1, 100),
    "dither": Strength(_dither, 2, 6),
    "jpeg2000": Strength(_jpeg2000, 2, 200),
    "brightness": Strength(_brightness, 0.1, 4),
    "contrast": Strength(_contrast, 0.1, 4),
}
