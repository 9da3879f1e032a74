"""The gate: new prompts go live only when something measured got better, and nothing worse.

On every set, fixed or of new labels,

- pixel F1 and image AUC may fall by the margin at most;
- the false-positive rate may rise by its own margin at most, and not at all above its limit. It
  is the share of authentic images labelled manipulated or, while the policy claims no labels, of
  those with more than 0.5 % flagged pixels;
- no more images may fail than before;
- what could be measured before can be measured now.

All this beside the current prompts, and beside those that the base model came with: or each cycle
of many could lose a little.

And on the labels held back (on any set, where they measure nothing) pixel F1 or image AUC must
rise by the gain at least, and by more than one image can move it: prompts that change nothing, or
one image by chance, are refused, whatever they were trained on. One image of a small set may weigh
more than a margin; the verdict says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from prompt_iml.cluster.retraining.labels import LABELS
from prompt_iml.engine.model.policy import Policy
from prompt_iml.pipeline.evaluation import SetResult
from prompt_iml.pipeline.run.folder import Json

KEPT = ("f1", "image_auc")
SLACK = 1e-9  # of a margin: 0.52 - 0.50 is more than 0.02 in binary


@dataclass(frozen=True, slots=True)
class Limits:
    """How much worse is still let through.

    Attributes:
        margin: pixel F1 and image AUC may fall by so much.
        fpr_margin: the false-positive rate may rise by so much,
        max_fpr: and above this not at all.
        gain: pixel F1 or image AUC must rise by so much, and by what one image can move it by;
            negative: they need not.
    """

    margin: float = 0.02
    fpr_margin: float = 0.01
    max_fpr: float = 0.05
    gain: float = 0.005


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure on one set.

    Attributes:
        set, measure: as in `SetResult`.
        old, new: None where it could not be measured.
        least, most: between which new must lie; None: no such bound.
        one_image: by how much a single image can move it, at most; None where nobody asks.
        beside: whose the old one is: of the `current` prompts, or of those of the `base` model.
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
        """Why the gate stays shut, or None."""
        told = f"{self.set}: {self.measure}"
        told += " beside the base model" if self.beside == "base" else ""
        if self.old is None:
            return None
        if self.new is None:
            return f"{told} was {self.old:.4g} and cannot be measured any more"
        if self.least is not None and self.new < self.least - SLACK:
            return f"{told} fell from {self.old:.4g} to {self.new:.4g}, below {self.least:.4g}"
        if self.most is not None and self.new > self.most + SLACK:
            return f"{told} rose from {self.old:.4g} to {self.new:.4g}, above {self.most:.4g}"
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        passed: whether the prompts may go live.
        reasons: why not; empty when passed.
        notes: what whoever reads it should know.
        comparisons: every measure on every set.
    """

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def to_json(self) -> Json:
        """As the registry holds it."""
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
        old, new: in the same order.
        policy: by which all were judged.
        faults: what else speaks against the new prompts.
        base: of the base model's own prompts, in the same order; none where these are the old.

    Raises:
        ValueError: the sets are not the same, or there is none.
    """
    if not old or not _named(old) == _named(new) == _named(base or old):
        raise ValueError("old and new must be judged on the same sets, and on one at least")
    alarm = "flagged_rate" if policy.manipulated_at is None else "false_positive_rate"
    comparisons = [
        comparison
        for before, after in zip(old, new, strict=True)
        for comparison in _compare(before, after, alarm, limits)
    ]
    comparisons += [
        replace(comparison, beside="base")
        for first, after in zip(base, new if base else (), strict=True)
        for comparison in _compare(first, after, alarm, limits)
    ]
    reasons = [*faults, *(fault for one in comparisons if (fault := one.fault))]
    reasons += _no_gain(comparisons, limits.gain)
    notes = [note for result in old for note in _notes(result, limits)]
    return Verdict(not reasons, tuple(reasons), tuple(notes), tuple(comparisons))


def _no_gain(comparisons: Sequence[Comparison], least: float) -> list[str]:
    """Why there is nothing to promote for; empty when there is."""
    if least < 0:
        return []
    kept = [one for one in comparisons if one.measure in KEPT and one.beside == "current"]
    of_labels = [one for one in kept if one.set == LABELS and one.old is not None]
    told = []
    for one in of_labels or kept:
        if one.old is None or one.new is None or one.one_image is None:
            continue
        gain, needed = one.new - one.old, max(least, one.one_image)
        if gain >= needed - SLACK:
            return []
        why = ", which one image can move it by" if needed > least else ""
        told.append(f"{one.set} {one.measure} {gain:+.4f} of {needed:.4g}{why}")
    return [f"nothing gained: {'; '.join(told) or 'nothing measured'}"]


def _named(results: Sequence[SetResult]) -> list[tuple[str, str]]:
    return [(result.set, result.perturbation) for result in results]


def _compare(old: SetResult, new: SetResult, alarm: str, limits: Limits) -> list[Comparison]:
    before, after = old.to_dict(), new.to_dict()
    images = {"f1": old.masked, "image_auc": min(old.forged, old.authentic)}
    kept = [
        Comparison(
            old.set,
            name,
            before[name],
            after[name],
            least=_lowered(before[name], limits.margin),
            one_image=1 / images[name] if images[name] else None,
        )
        for name in KEPT
    ]
    rate = before[alarm]
    most = None if rate is None else min(rate + limits.fpr_margin, max(rate, limits.max_fpr))
    return [
        *kept,
        Comparison(old.set, alarm, rate, after[alarm], most=most),
        Comparison(old.set, "failed", old.failed, new.failed, most=old.failed),
    ]


def _lowered(value: float | None, margin: float) -> float | None:
    return None if value is None else value - margin


def _notes(result: SetResult, limits: Limits) -> list[str]:
    """Which class of a set is so small that one image outweighs a margin."""
    sizes = {
        "forged": (result.masked, limits.margin),
        "authentic": (result.authentic, limits.fpr_margin),
    }
    return [
        f"{result.set} has {count} {name} images: one outweighs the margin of {margin:g}"
        for name, (count, margin) in sizes.items()
        if count * margin < 1
    ]
