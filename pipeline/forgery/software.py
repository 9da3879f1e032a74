"""JPEG settings of the software that edits pictures, and of the networks that pass them on.

Networks and messengers publish few of their settings and change them, so the ranges are wide. Where
a source stands beside a platform, it states the numbers that are named; all others are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL.JpegPresets import presets

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

# Qualities, of the standard tables, that programs save with if nobody chooses: 75 is libjpeg's and
# Pillow's, 82 WordPress's (`WP_Image_Editor`), 95 OpenCV's (`IMWRITE_JPEG_QUALITY`).
DEFAULT_QUALITIES = (75, 80, 82, 85, 90, 92, 95)


@dataclass(frozen=True, slots=True)
class Preset:
    """Setting of Photoshop, with tables of its own.

    Attributes:
        name: name in `PIL.JpegPresets`; those that begin with `web` are of "Save for Web".
        tables: luma and chroma table, 64 each, natural order.
        subsampling: of the chroma, which Photoshop chooses with the quality.
    """

    name: str
    tables: tuple[tuple[int, ...], ...]
    subsampling: Subsampling


@dataclass(frozen=True, slots=True)
class Platform:
    """Messenger or network that scales pictures down and saves them again, 4:2:0.

    Attributes:
        longest: largest longer side, pixels; longer ones are scaled down to it.
        quality: lowest and highest quality of the standard tables.
        progressive: whether its files are progressive.
    """

    name: str
    longest: int
    quality: tuple[int, int]
    progressive: bool


PLATFORMS = (
    Platform("Facebook", 2048, (71, 92), True),
    Platform("Facebook, feed", 960, (71, 85), True),
    Platform("Instagram", 1080, (70, 85), False),
    Platform("Twitter", 4096, (85, 85), True),
    Platform("Twitter, feed", 1200, (85, 85), True),
    Platform("WhatsApp", 1600, (70, 82), False),
    # Side, and qualities 87 of what is sent and 83 of what is cached: pull request 2098 of Telegram
    # for Android.
    Platform("Telegram", 1280, (83, 87), False),
    # Issue 9848 of Signal for Android: `BitmapUtil` goes from 90 down to 45 until the file fits.
    Platform("Signal", 1920, (60, 90), False),
    # Quality: `WP_Image_Editor`; side: `big_image_size_threshold`, developer.wordpress.org.
    Platform("WordPress", 2560, (82, 82), False),
    Platform("WordPress, article", 1024, (82, 82), False),
)


def _preset(name: str) -> Preset:
    setting: dict[str, Any] = presets[name]
    sampling: tuple[Subsampling, ...] = ("4:4:4", "4:2:2", "4:2:0")
    tables = tuple(tuple(map(int, table)) for table in setting["quantization"])
    return Preset(name, tables, sampling[setting["subsampling"]])


# Share of each setting: people keep what a picture is worth more often than they make it tiny.
PRESET_SHARES = {
    "web_low": 0.03, "web_medium": 0.1, "web_high": 0.2, "web_very_high": 0.12,
    "web_maximum": 0.08, "low": 0.03, "medium": 0.1, "high": 0.16, "maximum": 0.18,
}  # fmt: skip
PRESETS = tuple(_preset(name) for name in PRESET_SHARES)
