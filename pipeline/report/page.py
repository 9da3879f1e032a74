"""Values for the report's page, which `page.html` and `page.css` lay out through Jinja2."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from prompt_iml.pipeline.logs import printable

Row = dict[str, Any]

INPUTS_SHOWN = 5
LABELS = ("manipulated", "uncertain", "authentic")


@dataclass(frozen=True, slots=True)
class Picture:
    """Image of the gallery.

    Attributes:
        row: its columns of the results.
        jpeg: thumbnail; None if the source is missing or has changed since the scan.
        layer: PNG of the mask to lie over it; None when the mask is empty.
    """

    row: Row
    jpeg: bytes | None
    layer: bytes | None

    @property
    def name(self) -> str:
        """Name of the image in its folder or shard."""
        member, uri = self.row["member"], self.row["uri"]
        return str(uri.rpartition("/")[2] if member is None else member)

    @property
    def place(self) -> str:
        """URI of its folder or shard."""
        member, uri = self.row["member"], self.row["uri"]
        return str(uri.rpartition("/")[0] if member is None else uri)

    @property
    def regions(self) -> list[Row]:
        """Regions to draw; none on what is labelled authentic, which earlier policies masked."""
        return [] if self.row["label"] == "authentic" else self.row["regions"] or []

    def details(self) -> Row:
        """Return the facts that the page shows on demand, by name."""
        row = self.row
        facts = {
            "source": source(row),
            "content id": row["content_id"],
            "image id": row["image_id"],
            "sha256": row["sha256"],
            "type": f"{row['media_type']}, {row['size_bytes']:,} bytes",
            "EXIF orientation": row["exif_orientation"],
            "threshold": row["threshold"] and f"{row['threshold']:.3f}",
        }
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Content:
    """Content of a page.

    Attributes:
        run_id: ID of the run.
        inputs: URIs as they were given to the scan.
        made_by: columns that name the model, policy, engine, prompts, preprocessing.
        notes: warnings shown first, one sentence each.
        statuses, codes, labels: images by status, by error code, by label.
        histogram: (3, bins) images by label, as in LABELS, and score from 0 to 1.
        thresholds: scores at which labels change.
        span: times of the first and the last row; None without rows.
        rate: images a second of the last launch; None when it scanned nothing.
        pictures: the gallery, highest score first.
        unscored: first rows that failed or were skipped.
    """

    run_id: str
    inputs: Sequence[str]
    made_by: Row
    notes: Sequence[str]
    statuses: Counter[str]
    codes: Counter[str]
    labels: Counter[str]
    histogram: NDArray[np.int64]
    thresholds: Sequence[float]
    span: tuple[datetime, datetime] | None
    rate: float | None
    pictures: Sequence[Picture]
    unscored: Sequence[Row]


def text(value: object) -> Markup:
    r"""Return a value as HTML; characters that do not print, newlines too, become `\u1234`."""
    if isinstance(value, Markup):
        return value
    return escape(printable(str(value), kept=""))


def render(content: Content) -> str:
    """Return the HTML page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only a page needs it

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": "{:,}".format, "data_uri": data_uri, "source": source}
    return environment.get_template("page.html").render(
        content=content,
        facts=_facts(content),
        inputs_shown=INPUTS_SHOWN,
        labels=LABELS,
        bars=_bars(content.histogram),
        tabs=_tabs(content.pictures),
    )


def source(row: Row) -> str:
    """Return the URI of a row's image, `shard#member` inside a shard."""
    return str(row["uri"] if row["member"] is None else f"{row['uri']}#{row['member']}")


def data_uri(data: bytes, kind: str) -> Markup:
    """Return a data: URI of a JPEG (`jpeg`) or PNG (`png`) file."""
    return Markup(f"data:image/{kind};base64,{b64encode(data).decode()}")  # base64 needs no escape


def _facts(content: Content) -> dict[str, str]:
    facts = {name.replace("_", " "): value for name, value in content.made_by.items() if value}
    if content.span:
        first, last = content.span
        ended = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
        facts["scanned"] = f"{first:%Y-%m-%d %H:%M:%S} to {ended} UTC"
    if content.rate:
        facts["rate"] = f"{content.rate:,.1f} images/s, start-up included"
    return facts


def _tabs(pictures: Sequence[Picture]) -> dict[str, int]:
    """Return the number of pictures behind each tab of the gallery."""
    counts = Counter(picture.row["label"] for picture in pictures)
    return {"all": len(pictures)} | {name: counts[name] for name in LABELS if counts[name]}


def _bars(histogram: NDArray[np.int64]) -> list[Row]:
    """Return the bars of the images by score in a frame of 100 x 48; none without images.

    Heights are logarithmic, so that a few of a million images are visible. A bar has the colour of
    its most frequent label.
    """
    counts = histogram.sum(axis=0)
    if not counts.any():
        return []
    width, scale = 100 / len(counts), 46 / log10(1 + int(counts.max()))
    return [
        {
            "label": LABELS[int(histogram[:, i].argmax())],
            "low": i / len(counts),
            "high": (i + 1) / len(counts),
            "count": count,
            "x": i * width + 0.3,
            "width": width - 0.6,
            "height": scale * log10(1 + count),
        }
        for i, count in enumerate(counts.tolist())
    ]
