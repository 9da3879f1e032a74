"""Calibration and thresholds that turn the network's logits into score, label and mask.

A policy is calibrated on validation images at a stated false-positive rate and stored with the
model as `policy.json`. It holds numbers only; changing a threshold needs no new model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from prompt_iml.engine.errors import UsageError

Label: TypeAlias = Literal["authentic", "manipulated", "uncertain"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Calibration and thresholds of one model.

    Raises `UsageError` when the values do not make a policy.

    Attributes:
        id: the policy's name in the results.
        scale, offset: Platt calibration, score = sigmoid(scale * score_logit + offset);
            scale > 0, so that order is kept.
        manipulated_at: label `manipulated` from this score on; None: no label is claimed.
        authentic_below: label `authentic` below this score, at most `manipulated_at`;
            None exactly when `manipulated_at` is.
        mask_threshold: a pixel is manipulated above this probability, in (0, 1).
        false_positive_rate: share of authentic images labelled manipulated when the
            thresholds were chosen; None when nothing is claimed.
        min_side: images whose shorter side has fewer pixels are `uncertain`; None: no limit.
        min_jpeg_quality: JPEG files of a lower estimated quality are `uncertain`; None: no limit.
        mask_share: a manipulated pixel is also above this share of the image's highest
            probability, in [0, 1), so that the surroundings of a certain region are left out.
    """

    id: str
    scale: float = 1.0
    offset: float = 0.0
    manipulated_at: float | None = None
    authentic_below: float | None = None
    mask_threshold: float = 0.5
    false_positive_rate: float | None = None
    min_side: int | None = None
    min_jpeg_quality: int | None = None
    mask_share: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise UsageError("policy: id must be a name")
        for field in dataclasses.fields(self)[1:]:
            _check_number(field.name, getattr(self, field.name), field.default is None)
        if self.scale <= 0:
            raise UsageError(f"policy {self.id}: scale must be above 0, not {self.scale}")
        if not 0 < self.mask_threshold < 1:
            raise UsageError(f"policy {self.id}: mask_threshold must lie between 0 and 1")
        if not 0 <= self.mask_share < 1:
            raise UsageError(f"policy {self.id}: mask_share must be 0 or more and below 1")
        _check_thresholds(self)
        _check_limits(self)

    def score(self, score_logit: float) -> float:
        """Return the calibrated probability of manipulation, a float32 value in [0, 1]."""
        return float(np.float32(_sigmoid(self.scale * score_logit + self.offset)))

    def pixel_threshold(self, peak: float) -> float:
        """Return the probability above which pixels of an image are manipulated.

        Args:
            peak: the image's highest probability.
        """
        return max(self.mask_threshold, self.mask_share * peak)

    def label(
        self, score: float, *, side: int | None = None, jpeg_quality: int | None = None
    ) -> tuple[Label, float | None]:
        """Return the label of a score, and the threshold that the score was compared with.

        The threshold is `authentic_below` for authentic, else `manipulated_at`: so in every
        row with a threshold, `score >= threshold` means the same as label = manipulated. Where
        nothing is claimed, or the image is beyond the policy's limits, there is none.

        Args:
            score: calibrated, as `score` gives it.
            side: the image's shorter side in pixels; None: `min_side` does not apply.
            jpeg_quality: estimated, 1..100; None when the file is no JPEG.
        """
        if self.manipulated_at is None or self.authentic_below is None:
            return "uncertain", None
        if _below(side, self.min_side) or _below(jpeg_quality, self.min_jpeg_quality):
            return "uncertain", None
        # As float32, like the columns, so that rounding makes no row contradict its label.
        value = np.float32(score)
        if value >= np.float32(self.manipulated_at):
            return "manipulated", self.manipulated_at
        if value < np.float32(self.authentic_below):
            return "authentic", self.authentic_below
        return "uncertain", self.manipulated_at

    def to_json(self) -> str:
        """Return the policy as a JSON object, one key for each attribute."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read a policy that `to_json` wrote. Raises `UsageError` on anything else."""
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"policy: not JSON ({error}): write it again") from error
        if not isinstance(values, dict) or "id" not in values:
            raise UsageError("policy: must be a JSON object with an id")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(f"policy: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**values)


def _below(value: int | None, limit: int | None) -> bool:
    return value is not None and limit is not None and value < limit


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))  # exp could overflow


def _check_number(name: str, value: object, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"policy: {name} must be a finite number, not {value!r}")


def _check_thresholds(policy: Policy) -> None:
    below, at = policy.authentic_below, policy.manipulated_at
    if (below is None) != (at is None):
        raise UsageError(f"policy {policy.id}: give authentic_below and manipulated_at, or neither")
    if below is not None and at is not None and not 0 <= below <= at <= 1:
        raise UsageError(f"policy {policy.id}: need 0 <= authentic_below <= manipulated_at <= 1")
    rate = policy.false_positive_rate
    if rate is not None and (at is None or not 0 <= rate <= 1):
        raise UsageError(f"policy {policy.id}: false_positive_rate needs thresholds and 0 to 1")


def _check_limits(policy: Policy) -> None:
    side, quality = policy.min_side, policy.min_jpeg_quality
    if side is not None and (side != int(side) or side < 1):
        raise UsageError(f"policy {policy.id}: min_side must be whole pixels, not {side}")
    if quality is not None and (quality != int(quality) or not 1 <= quality <= 100):
        raise UsageError(f"policy {policy.id}: min_jpeg_quality must be 1 to 100, not {quality}")


UNTRAINED = Policy("untrained")
