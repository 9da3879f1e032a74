"""Reviews: what people decided about scanned images, in a Parquet file for each decision.

    OUTPUT/reviews/review-<time>-<random>.parquet

A file is created once and whole, and none is ever changed. When they are read, a later decision of
a reviewer on an image replaces the earlier one, and a withdrawal ends it. As a truth, an image is
what its reviewers agree on; it is left out where they do not, and where nobody is sure.
"""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import datetime
from functools import reduce
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prompt_iml.engine.errors import BadLabels, EmptySource, NotFound, UsageError
from prompt_iml.pipeline.logs import log, one_line
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.truth.labels import Label, Verdict
from prompt_iml.pipeline.truth.masks import Rle, load_mask

Decision = Literal["manipulated", "mask_wrong", "authentic", "unsure", "withdrawn"]
"""`manipulated` where the mask says; `mask_wrong`: manipulated, but not there."""

FOLDER = "reviews"
START = "review-"  # of the files' names
READING_THREADS = 16
ALIKE = 0.5  # least intersection over union of masks that agree

SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "uri", "member", "sha256", "decision")),
        ("mask_rle", pa.binary()),
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
        ("note", pa.string()),
        ("reviewer", pa.string()),
        ("decided_at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("run_id", "model", "scan_label")),
        ("scan_score", pa.float32()),
        ("shown_for", pa.string()),
    ],
    metadata={"prompt_iml.reviews_version": "1"},
)


@dataclass(frozen=True, slots=True)
class Review:
    """Decision of a reviewer on an image.

    Attributes:
        image_id, uri, member, sha256: the image, as in the scan's results.
        decision: what the reviewer decided.
        mask: where `manipulated` is, in the stored frame; None with every other decision.
        note: what the reviewer wrote; may be empty.
        reviewer: name of the reviewer.
        decided_at: time of the decision, UTC.
        run_id, model, scan_label, scan_score: the finding that was reviewed.
        shown_for: why the image was shown: `uncertainty`, `score`, or `sample` of a random one.
    """

    image_id: str
    uri: str
    member: str | None
    sha256: str
    decision: Decision
    mask: Rle | None
    note: str
    reviewer: str
    decided_at: datetime
    run_id: str
    model: str
    scan_label: str
    scan_score: float
    shown_for: str


_PLAIN = [field.name for field in fields(Review) if field.name != "mask"]


def write_review(folder: str, review: Review) -> str:
    """Write a decision to a folder (its URI); return the URI of the file. Raises as `create_once`.

    When it returns, the file is there whole, and a crash does not lose it.
    """
    row = {name: getattr(review, name) for name in _PLAIN}
    if review.mask:
        row["mask_rle"] = review.mask.counts
        row["mask_height"], row["mask_width"] = review.mask.height, review.mask.width
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), sink, compression="zstd")
    name = f"{START}{review.decided_at:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(8)}.parquet"
    storage.create_once(f"{folder}/{name}", sink.getvalue().to_pybytes())
    return f"{folder}/{name}"


def reviews_folder(uri: str) -> str | None:
    """Return the folder with the reviews of an output or of their own folder; None without any.

    Raises:
        UsageError: it is the output of a scan that nobody has reviewed.
    """
    for folder in (f"{uri}/{FOLDER}", uri):
        if _files(folder):
            return folder
    if storage.exists(f"{uri}/_runs"):
        shown = storage.display_name(uri)
        raise UsageError(f"{shown} has no reviews yet: make some with prompt-iml review {shown}")
    return None


def _files(folder: str) -> list[str]:
    def is_other(name: str) -> bool:
        return not name.startswith(START)

    try:
        return [ref.uri for ref in list_objects(folder, is_other, START)]
    except NotFound:
        return []


def read_reviews(folder: str, known: Container[str] = ()) -> dict[str, list[Review]]:
    """Return the decisions in a folder by the URI of their file, but for files that are known.

    Raises:
        BadLabels: a file is damaged, or of a later version.
        FetchError: the folder or a file cannot be read.
    """
    new = [uri for uri in _files(folder) if uri not in known]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        return dict(zip(new, pool.map(_read, new), strict=True))


def _read(uri: str) -> list[Review]:
    try:
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist()
        return [_review(row) for row in rows]
    except (pa.ArrowException, OSError, OverflowError, KeyError, ValueError) as error:
        shown = storage.display_name(uri)
        raise BadLabels(f"{shown} holds no review ({one_line(error)[:100]}): remove it") from error


def _review(row: Mapping[str, Any]) -> Review:
    if row["decision"] not in get_args(Decision):
        raise ValueError(f"the decision {row['decision']!r}")
    height, counts = row["mask_height"], row["mask_rle"]
    mask = None if height is None else Rle(counts, height, row["mask_width"])
    return Review(mask=mask, **{name: row[name] for name in _PLAIN})


def current(reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """Return the decisions that hold, by image_id: the last of each reviewer, in order of time.

    Decisions on other bytes than those that the latest one saw hold no longer.
    """
    last: dict[tuple[str, str], Review] = {}
    for review in sorted(reviews, key=lambda review: review.decided_at):
        last.pop((review.image_id, review.reviewer), None)
        last[review.image_id, review.reviewer] = review
    found = defaultdict[str, list[Review]](list)
    for review in last.values():
        if review.decision != "withdrawn":
            found[review.image_id].append(review)
    return {
        image: [each for each in group if each.sha256 == group[-1].sha256]
        for image, group in found.items()
    }


def verdicts(reviews: Sequence[Review]) -> set[Verdict]:
    """Return what reviewers say of one image: nothing if none is sure, both if they disagree."""
    sure = [each.decision for each in reviews if each.decision != "unsure"]
    return {"authentic" if decision == "authentic" else "manipulated" for decision in sure}


def agreed_mask(reviews: Sequence[Review]) -> Rle | None:
    """Return the pixels that more than half of the reviewers marked on a manipulated image.

    None if one finds the mask wrong, or if two masks have an intersection over union below `ALIKE`.
    """
    sure = [each for each in reviews if each.decision != "unsure"]
    masks = [load_mask(each.mask) for each in sure if each.mask]
    if len(masks) < len(sure) or len({mask.shape for mask in masks}) != 1:
        return None
    for place, mask in enumerate(masks):
        for other in masks[:place]:
            if (mask & other).sum() < ALIKE * (mask | other).sum():
                return None
    votes = reduce(np.add, (mask.astype(np.uint16) for mask in masks))
    return Rle.of(2 * votes > len(masks))


def review_labels(folder: str) -> list[Label]:
    """Return the labels of the images on which reviewers agree, by URI; log how many are left out.

    Raises:
        BadLabels, FetchError: as `read_reviews`.
        EmptySource: there is no such image.
    """
    files, shown = read_reviews(folder).values(), storage.display_name(folder)
    images = current(review for file in files for review in file).values()
    left_out, labels = Counter[str](), list[Label]()
    for group in sorted(images, key=lambda group: (group[0].uri, group[0].member or "")):
        said = verdicts(group)
        if len(said) != 1:
            left_out["reviewers disagree" if said else "nobody is sure"] += 1
            continue
        (verdict,) = said
        mask = agreed_mask(group) if verdict == "manipulated" else None
        uri, member, sha256 = group[-1].uri, group[-1].member, group[-1].sha256
        labels.append(Label(len(labels), uri, member, verdict, mask, sha256=sha256))
    if left_out:
        reasons = ", ".join(f"{count} where {why}" for why, count in sorted(left_out.items()))
        log(f"{shown}: images left out: {reasons}")
    if not labels:
        raise EmptySource(f"{shown}: there is no image yet on which reviewers agree: review more")
    return labels
