"""Queue of a review: which pictures are shown, in which order, and why each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from prompt_iml.pipeline.report.reasons import Row
from prompt_iml.pipeline.report.survey import FILE, LABELS, batches, first_rows, pictured

Order = Literal["uncertainty", "score"]
Reason = Literal["uncertainty", "score", "sample"]

SAMPLED = 10  # of so many pictures by uncertainty, one is a random one
MORE = ["mask_threshold", "heatmap_png", "model"]
_READ = ["image_id", "score", "label", "threshold", FILE]
_KEPT = ["image_id", "place", FILE]
_FIRST = [("place", "ascending"), ("image_id", "ascending")]
_NEAR_ONE = 1e-6  # scores are float32


@dataclass(frozen=True, slots=True)
class Shown:
    """Picture of the queue.

    Attributes:
        row: its columns of the results.
        shown_for: why it is in the queue; `sample`: it is one of the random ones.
    """

    row: Row
    shown_for: Reason


def make_queue(
    results: ds.Dataset, policy: Row, *, run_id: str, order: Order, limit: int
) -> list[Shown]:
    """Return at most `limit` pictures, in order.

    By uncertainty those come first whose score is closest to a threshold of the policy, in logits;
    every tenth is a random one, of each label in turn. The random ones depend on the run's id
    alone, as image ids are hashes. By score the highest comes first.

    Args:
        results: rows of the run, perhaps of some labels only.
        policy: of the run's configuration, as JSON; empty where it has none.
    """
    first: pa.Table | None = None
    samples: dict[str, pa.Table] = {}
    start = hashlib.sha256(run_id.encode()).hexdigest()[:32]
    for rows in batches(results, _READ):
        scored = rows.filter(pc.is_valid(rows["score"]))
        places = -scored["score"].to_numpy() if order == "score" else _distance(scored, policy)
        first = first_rows(first, _placed(scored, places), limit, _FIRST)
        before = pc.cast(pc.less(scored["image_id"], start), pa.float64())
        for label in LABELS:
            of_label = _placed(scored, before).filter(pc.equal(scored["label"], label))
            kept = samples.get(label)
            samples[label] = first_rows(kept, of_label, limit // SAMPLED, _FIRST)
    if first is None:
        return []
    ranked, drawn = _ids(first), list(_in_turn([_ids(samples[label]) for label in LABELS]))
    queue = [] if order == "score" else drawn[: min(limit, len(ranked)) // SAMPLED]
    chosen = list(_merged(ranked, queue, order))[:limit]
    rows_of = {
        row["image_id"]: row
        for row in pictured(results, pa.concat_tables([first, *samples.values()]), MORE)
    }
    return [Shown(rows_of[name], reason) for name, reason in chosen]


def _placed(rows: pa.Table, places: Any) -> pa.Table:
    return rows.append_column("place", pa.array(places, pa.float64())).select(_KEPT)


def _distance(rows: pa.Table, policy: Row) -> NDArray[np.float64]:
    """Return how far each score is from the closest threshold, in logits."""
    at = pc.fill_null(pc.cast(rows["threshold"], pa.float64()), policy.get("manipulated_at") or 0.5)
    below = policy.get("authentic_below")
    scores = _logit(rows["score"].to_numpy())
    distance: NDArray[np.float64] = abs(scores - _logit(at.to_numpy()))
    return distance if below is None else np.minimum(distance, abs(scores - _logit(below)))


def _logit(score: Any) -> NDArray[np.float64]:
    p = np.clip(np.asarray(score, np.float64), _NEAR_ONE, 1 - _NEAR_ONE)
    logit: NDArray[np.float64] = np.log(p / (1 - p))
    return logit


def _ids(rows: pa.Table) -> list[str]:
    """Return the image ids in order, each once: an image may be listed twice."""
    return list(dict.fromkeys(rows.sort_by(_FIRST)["image_id"].to_pylist()))


def _in_turn(lists: Sequence[Sequence[str]]) -> Iterator[str]:
    for each in zip_longest(*lists):
        yield from (name for name in each if name)


def _merged(
    ranked: Sequence[str], drawn: Sequence[str], order: Order
) -> Iterator[tuple[str, Reason]]:
    """Yield the ranked names, and after each nine of them one that was drawn."""
    left = [name for name in ranked if name not in set(drawn)]
    step = SAMPLED - 1
    for turn in range(max(len(drawn), -(-len(left) // step))):
        yield from ((name, order) for name in left[turn * step : (turn + 1) * step])
        yield from ((name, "sample") for name in drawn[turn : turn + 1])
