"""Acceptance test of new prompts: some measure must get better, and none may get worse.

On every fixed set, and on the held-back labels,

- pixel F1 and image AUC may fall by at most the margin;
- the false-positive rate may rise by at most its own margin, and not at all above its limit. It is
  the share of authentic images that are labelled manipulated or, if the policy gives no labels,
  the share with more than 0.5 % masked pixels;
- no more images may fail than before;
- every measure that existed before must exist now.

New prompts are compared with the current ones, and with those of the base model: otherwise small
losses could add up over many cycles.

On the held-back labels (on any set, if they give no measure) pixel F1 or image AUC must rise by at
least the gain, and by at least the effect of a single image. So prompts that change nothing, or one
image by chance, are refused. The verdict notes sets in which one image outweighs a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from prompt_iml.cluster.retraining.labels import LABELS
from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.evaluation import SetResult
from prompt_iml.pipeline.logs import one_line, printable
from prompt_iml.pipeline.run.folder import Json

QUALITY = ("f1", "image_auc")
LONGEST_REASON = 1000  # characters; the registry refuses texts above 4,096
ROUNDING = 1e-9  # because 0.52 - 0.50 is more than 0.02 in binary


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the gate, all as shares (0..1).

    Attributes:
        margin: largest fall of pixel F1 and image AUC.
        fpr_margin: largest rise of the false-positive rate.
        max_fpr: false-positive rate above which no rise is allowed.
        min_gain: least rise of pixel F1 or image AUC; negative if no rise is needed.
    """

    margin: float = 0.02
    fpr_margin: float = 0.01
    max_fpr: float = 0.05
    min_gain: float = 0.005


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of one measure on one set.

    Attributes:
        set, measure: names, as in `SetResult`.
        old, new: values; None where it could not be measured.
        least, most: bounds of the new value; None without such a bound.
        one_image: largest effect of a single image; None if it is not needed.
        beside: prompts of the old value: the `current` ones, or those of the `base` model.
    """

    set: str
    measure: str
    old: float | None
    new: float | None
    least: float | None = None
    most: float | None = None
    one_image: float | None = None
    beside: Literal["current", "base"] = "current"

    @property
    def fault(self) -> str | None:
        """Reason to refuse the new prompts, or None."""
        name = f"{self.set}: {self.measure}"
        name += ", compared with the base model," if self.beside == "base" else ""
        if self.old is None:
            return None
        if self.new is None:
            return f"{name} was {self.old:.4g} and cannot be measured any more"
        if self.least is not None and self.new < self.least - ROUNDING:
            return f"{name} fell from {self.old:.4g} to {self.new:.4g}, below {self.least:.4g}"
        if self.most is not None and self.new > self.most + ROUNDING:
            return f"{name} rose from {self.old:.4g} to {self.new:.4g}, above {self.most:.4g}"
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of the gate on new prompts.

    Attributes:
        passed: whether the prompts may be promoted.
        reasons: reasons for a refusal; empty if passed.
        notes: remarks for the reader, such as on sets that are too small.
        comparisons: comparison of every measure on every set.
    """

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> Json:
        """Return the verdict as the registry stores it."""
        fields = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def decide(
    old: Sequence[SetResult],
    new: Sequence[SetResult],
    policy: Policy,
    limits: Limits,
    faults: Sequence[str] = (),
    base: Sequence[SetResult] = (),
) -> Verdict:
    """Compare the results of old and new prompts on the same sets.

    Args:
        old, new: results in the same order of sets.
        policy: policy of all evaluations.
        faults: other reasons to refuse the new prompts.
        base: results of the base model's prompts in the same order; empty if these are the old.

    Raises:
        ValueError: the sets differ, or there is none.
    """
    if not old or not _named(old) == _named(new) == _named(base or old):
        raise ValueError("old and new must be evaluated on the same sets, and on at least one")
    rate = "flagged_rate" if policy.manipulated_at is None else "false_positive_rate"
    comparisons = [
        comparison
        for before, after in zip(old, new, strict=True)
        for comparison in _compare(before, after, rate, limits)
    ]
    comparisons += [
        replace(comparison, beside="base")
        for first, after in zip(base, new if base else (), strict=True)
        for comparison in _compare(first, after, rate, limits)
    ]
    reasons = [*faults, *(fault for one in comparisons if (fault := one.fault))]
    reasons += _no_gain(comparisons, limits.min_gain)
    reasons = [printable(one_line(each), kept="")[:LONGEST_REASON] for each in reasons]
    notes = [note for result in old for note in _notes(result, limits)]
    return Verdict(not reasons, tuple(reasons), tuple(notes), tuple(comparisons))


def _no_gain(comparisons: Sequence[Comparison], least: float) -> list[str]:
    """Return the reason to refuse prompts without a gain; empty if some measure rose enough."""
    if least < 0:
        return []
    quality = [one for one in comparisons if one.measure in QUALITY and one.beside == "current"]
    of_labels = [one for one in quality if one.set == LABELS and one.old is not None]
    gains = []
    for one in of_labels or quality:
        if one.old is None or one.new is None or one.one_image is None:
            continue
        gain, needed = one.new - one.old, max(least, one.one_image)
        if gain >= needed - ROUNDING:
            return []
        why = ", the effect of one image" if needed > least else ""
        gains.append(f"{one.set} {one.measure} {gain:+.4f}, {needed:+.4g} needed{why}")
    return [f"nothing gained: {'; '.join(gains) or 'nothing measured'}"]


def _named(results: Sequence[SetResult]) -> list[tuple[str, str]]:
    return [(result.set, result.perturbation) for result in results]


def _compare(old: SetResult, new: SetResult, rate: str, limits: Limits) -> list[Comparison]:
    before, after = old.to_dict(), new.to_dict()
    images = {"f1": old.masked, "image_auc": min(old.forged, old.authentic)}
    quality = [
        Comparison(
            old.set,
            name,
            before[name],
            after[name],
            least=_lowered(before[name], limits.margin),
            one_image=1 / images[name] if images[name] else None,
        )
        for name in QUALITY
    ]
    was = before[rate]
    most = None if was is None else min(was + limits.fpr_margin, max(was, limits.max_fpr))
    return [
        *quality,
        Comparison(old.set, rate, was, after[rate], most=most),
        Comparison(old.set, "failed", old.failed, new.failed, most=old.failed),
    ]


def _lowered(value: float | None, margin: float) -> float | None:
    return None if value is None else value - margin


def _notes(result: SetResult, limits: Limits) -> list[str]:
    """Return a note for each class of a set that is so small that one image outweighs a margin."""
    sizes = {
        "forged": (result.masked, limits.margin),
        "authentic": (result.authentic, limits.fpr_margin),
    }
    return [
        f"{result.set} has {count} {name} images: one outweighs the margin of {margin:g}"
        for name, (count, margin) in sizes.items()
        if count * margin < 1
    ]
