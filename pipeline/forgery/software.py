"""JPEG settings of the software that edits pictures, and of the networks that pass them on.

Each number has its public source beside it. Where a source gives sides and no quality, the quality
is a wide range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL.JpegPresets import presets

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

# Default qualities, of the standard tables: libjpeg, Pillow and libvips 75 (their documentation),
# WordPress 82 (`WP_Image_Editor`), GIMP 90 (its manual), a browser's canvas .92 (MDN, `toBlob`),
# OpenCV 95 (`IMWRITE_JPEG_QUALITY`); 80 and 85 are what many web servers' plug-ins recommend.
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
    # Sides of Facebook, Instagram and Twitter: J. Harmon, "Dimensions and Quality For Social Media
    # Photo Sharing", Photo Taco. Facebook's quality depends on the picture: W. Sun et al.,
    # "Processing-Aware Privacy-Preserving Photo Sharing over Online Social Networks", 2016.
    Platform("Facebook", 2048, (71, 92), True),
    Platform("Facebook, feed", 960, (71, 85), True),
    # Z. Douglas, "Digital Image Recompression Analysis of Instagram", University of Colorado, 2018.
    Platform("Instagram", 1080, (70, 85), False),
    # C. Erdmann, "Better image quality in your Twitter tweets", compress-or-die.com, 2022.
    Platform("Twitter", 4096, (85, 85), True),
    Platform("Twitter, feed", 1200, (85, 85), True),
    # H. Risemberg, "File Structure Analysis of Media Files Sent and Received Over WhatsApp",
    # University of Colorado, 2020.
    Platform("WhatsApp", 1600, (70, 82), False),
    # Quality 87 of a picture that is sent, 83 of one in the cache: pull request 2098 of Telegram
    # for Android.
    Platform("Telegram", 1280, (83, 87), False),
    # `BitmapUtil` of Signal for Android (issue 9848): from 90 down to 45 until the file fits.
    Platform("Signal", 1920, (60, 90), False),
    # `WP_Image_Editor` and `big_image_size_threshold`, developer.wordpress.org.
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
