"""Values for the report's page, which `page.html` and `page.css` lay out through Jinja2.

The page has all that it shows as HTML from the start, so nothing of a row passes through the
script but as text: `page.js` only moves, hides and copies elements, and reads `data-row`.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from prompt_iml.pipeline.logs import printable
from prompt_iml.pipeline.report.reasons import NAMES, Row
from prompt_iml.pipeline.report.survey import BINS, LABELS, Survey

HERE = Path(__file__).parent
INPUTS_SHOWN = 5
PICTURES_A_PAGE = 24
FAILURES_A_PAGE = 25

# Columns of the CSV files that the page offers, as the table names them.
PICTURE_COLUMNS = [
    "image_id", "uri", "member", "label", "score", "threshold", "reasons", "width", "height",
    "jpeg_quality", "manipulated_fraction", "mask_confidence", "sha256",
]  # fmt: skip
FAILURE_COLUMNS = [
    "image_id", "uri", "member", "status", "error_stage", "error_code", "error_message",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """Image of the gallery.

    Attributes:
        row: its columns of the results.
        jpeg: thumbnail; None if the source is missing or has changed since the scan.
        layer: PNG of the mask to lie over it; None when the mask is empty.
        believed: whether the mask is shown without asking.
        reasons: why its label is `uncertain`, one sentence each.
    """

    row: Row
    jpeg: bytes | None
    layer: bytes | None
    believed: bool
    reasons: Sequence[str]

    @property
    def regions(self) -> list[Row]:
        """Regions to draw; none on what is labelled authentic, which earlier policies masked."""
        return [] if self.row["label"] == "authentic" else self.row["regions"] or []

    def details(self) -> Row:
        """Return the facts that the page shows on demand, by name."""
        row, confidence = self.row, self.row["mask_confidence"]
        covered = f"{100 * row['manipulated_fraction']:.1f}% of the pixels"
        facts = {
            "size": f"{row['width']} by {row['height']} pixels",
            "file": f"{row['media_type']}, {row['size_bytes']:,} bytes",
            "JPEG quality": row["jpeg_quality"],
            "EXIF orientation": row["exif_orientation"],
            "threshold": row["threshold"] and f"{row['threshold']:.3f}",
            "mask": covered if self.layer else None,
            "mask confidence": f"{confidence:.2f}" if self.layer and confidence else None,
            **said(row),
            "source": source(row),
            "content id": row["content_id"],
            "image id": row["image_id"],
            "sha256": row["sha256"],
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
        survey: counts of all rows.
        thresholds: scores at which labels change.
        rate: images a second of the last launch; None when it scanned nothing.
        best: number of the pictures that are there for their score, which come first.
        pictures: the gallery; behind the best, the random samples.
        unscored: rows that failed or were skipped, some of each error code.
    """

    run_id: str
    inputs: Sequence[str]
    made_by: Row
    notes: Sequence[str]
    survey: Survey
    thresholds: Sequence[float]
    rate: float | None
    best: int
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
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "data_uri": data_uri,
        "name": name,
        "folder": folder,
        "source": source,
    }
    style, script = (Markup((HERE / f"page.{kind}").read_text()) for kind in ("css", "js"))
    return environment.get_template("page.html").render(
        content=content,
        survey=content.survey,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        facts=_facts(content),
        inputs_shown=INPUTS_SHOWN,
        labels=LABELS,
        reason_names=NAMES,
        strips=list(strips(content.survey.histogram)),
        cards=_cards(content),
        pictures_a_page=PICTURES_A_PAGE,
        picture_columns=PICTURE_COLUMNS,
        failures=[(row, _data(row, FAILURE_COLUMNS)) for row in content.unscored],
        failures_a_page=FAILURES_A_PAGE,
        failure_columns=FAILURE_COLUMNS,
    )


def source(row: Row) -> str:
    """Return the URI of a row's image, `shard#member` inside a shard."""
    return str(row["uri"] if row["member"] is None else f"{row['uri']}#{row['member']}")


def said(row: Row) -> Row:
    """Return what a row's file says of itself, by name; None where it says nothing."""
    camera = " ".join(row[column] or "" for column in ("exif_make", "exif_model")).strip()
    manifest = f"there, signed in the name of {row['c2pa_signer'] or 'nobody'}; not verified"
    return {
        "camera": camera or None,
        "software": row["exif_software"],
        "taken": row["exif_taken"],
        "digital source type": row["digital_source_type"],
        "C2PA manifest": manifest if row["has_c2pa"] else None,
    }


def name(row: Row) -> str:
    """Return the name of a row's image in its folder or shard."""
    return str(row["uri"].rpartition("/")[2] if row["member"] is None else row["member"])


def folder(row: Row) -> str:
    """Return the URI of the folder or shard of a row's image."""
    return str(row["uri"].rpartition("/")[0] if row["member"] is None else row["uri"])


def data_uri(data: bytes, kind: str) -> Markup:
    """Return a data: URI of a JPEG (`jpeg`) or PNG (`png`) file."""
    return Markup(f"data:image/{kind};base64,{b64encode(data).decode()}")  # base64 needs no escape


def strips(histogram: NDArray[np.int64]) -> Iterator[Row]:
    """Yield the bars of each label's images by score, in frames of 100 x 40.

    Heights are logarithmic, of one scale for all labels, and one image is 5 high: so one among
    millions is visible.
    """
    width, scale = 100 / BINS, 35 / max(1, log10(max(1, int(histogram.max()))))
    for label, counts in zip(LABELS, histogram.tolist(), strict=True):
        bars = [
            {"bin": i, "count": count, "x": i * width, "height": 5 + scale * log10(count)}
            for i, count in enumerate(counts)
            if count
        ]
        yield {"label": label, "count": sum(counts), "width": width, "bars": bars}


def _hash(code: str) -> str:
    """Return a style sheet's or script's digest, as a Content-Security-Policy names it."""
    return "sha256-" + b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _data(row: Row, columns: Sequence[str], **more: Any) -> str:
    """Return the JSON of a row that the script searches, sorts and writes as CSV."""
    values = {column: row[column] for column in columns}
    values |= {"name": name(row), "folder": folder(row), **more}
    shown = {k: printable(v, kept="") if isinstance(v, str) else v for k, v in values.items()}
    return json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in shown.items()})


def _cards(content: Content) -> list[tuple[Picture, str]]:
    """Return the pictures with their JSON, which also names the sets of pictures they are in."""
    sampled = content.survey.sampled
    cards = []
    for place, picture in enumerate(content.pictures):
        row = picture.row | {"reasons": " ".join(picture.reasons)}
        sets = {"best": place < content.best, "sample": row["image_id"] in sampled}
        cards.append((picture, _data(row, PICTURE_COLUMNS, **sets)))
    return cards


def _facts(content: Content) -> dict[str, str]:
    facts = {name.replace("_", " "): value for name, value in content.made_by.items() if value}
    if content.survey.span:
        first, last = content.survey.span
        ended = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
        facts["scanned"] = f"{first:%Y-%m-%d %H:%M:%S} to {ended} UTC"
    if content.rate:
        facts["rate"] = f"{content.rate:,.1f} images/s, start-up included"
    return facts
