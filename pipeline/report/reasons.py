"""Reasons for the label `uncertain`, and whether a mask is believed: from rows and their policy.

A policy is the one in the run's configuration, as JSON. It is empty where the run follows a
registry; then the limits of the policy are not known.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prompt_iml.engine.model.policy import LATER
from prompt_iml.pipeline.run.schema import SCHEMA

Row = dict[str, Any]

# Columns that `reasons` reads.
NEEDED = ["label", "width", "height", "jpeg_quality", "threshold", "preprocess"]

NAMES = {
    "between": "between the thresholds",
    "too_small": "too small",
    "too_compressed": "too compressed",
    "scaled": "too large, was scaled down",
    "enlarged": "small and no JPEG, probably scaled down before",
    "unlabelled": "no label by the policy",
}


def reasons(rows: pa.Table, policy: Row) -> dict[str, pa.Array]:
    """Return which rows are uncertain for which reason: bool, never null, by names of `NAMES`.

    `scaled` and `enlarged` come with `between`, as they explain a score that is not clear.
    """
    uncertain = pc.fill_null(pc.equal(rows["label"], "uncertain"), False)
    side = pc.min_element_wise(rows["width"], rows["height"])
    has_threshold, view = pc.is_valid(rows["threshold"]), rows["preprocess"]
    small = pc.less(side, policy.get("min_side") or 0)
    coarse = pc.less(rows["jpeg_quality"], policy.get("min_jpeg_quality") or 0)
    small, coarse = pc.fill_null(small, False), pc.fill_null(coarse, False)
    beyond = pc.invert(has_threshold)
    found = {
        "between": has_threshold,
        "too_small": pc.and_(beyond, small),
        "too_compressed": pc.and_(beyond, coarse),
        "scaled": pc.and_(has_threshold, pc.match_substring(view, "-scaled")),
        "enlarged": pc.and_(has_threshold, pc.ends_with(view, "-enlarged")),
        "unlabelled": pc.and_(beyond, pc.invert(pc.or_(small, coarse))),
    }
    return {name: pc.and_(uncertain, pc.fill_null(rule, False)) for name, rule in found.items()}


def reasons_of(rows: list[Row], policy: Row) -> list[list[str]]:
    """Return the names of each row's reasons."""
    table = pa.Table.from_pylist(rows, pa.schema([SCHEMA.field(name) for name in NEEDED]))
    found = {name: rule.to_pylist() for name, rule in reasons(table, policy).items()}
    return [[name for name in NAMES if found[name][place]] for place in range(len(rows))]


def sentences(names: list[str], row: Row, policy: Row) -> list[str]:
    """Return a row's reasons as sentences with their numbers."""
    side, at = min(row["width"], row["height"]), row["threshold"]
    below = policy.get("authentic_below")
    scores = "" if below is None or at is None else f" {below:.3f} and {at:.3f}"
    said = {
        "between": f"Between the thresholds{scores}.",
        "too_small": f"Too small: the shorter side has {side} pixels and needs "
        f"{policy.get('min_side')}.",
        "too_compressed": f"Too compressed: its JPEG quality is {row['jpeg_quality']} and must be "
        f"{policy.get('min_jpeg_quality')}.",
        "scaled": "Too large for the network: it was scaled down, which removes fine traces.",
        "enlarged": "Small and no JPEG: probably scaled down before, which removes fine traces.",
        "unlabelled": "Its policy gives no label.",
    }
    return [said[name] for name in names]


def believed(row: Row, policy: Row) -> bool:
    """True if a row's mask is shown without asking: its label claims a manipulation, and the
    expected F1 of the mask reaches the policy's `least_confidence`."""
    least = policy.get("least_confidence", LATER["least_confidence"])
    confidence = row["mask_confidence"]
    return row["label"] == "manipulated" and (confidence is None or confidence >= least)
