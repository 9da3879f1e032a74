"""Calibration and thresholds that turn the network's logits into score, label and mask.

A policy is calibrated on validation images at a stated false-positive rate and stored with the
model as `policy.json`. It holds numbers only; changing a threshold needs no new model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from prompt_iml.engine.detection.score import FEATURES, PixelModel, ScoreModel, Statistics
from prompt_iml.engine.errors import MissingInput, UsageError

Label: TypeAlias = Literal["authentic", "manipulated", "uncertain"]


# Attributes that earlier versions did not have, and the values that do as those versions did.
LATER: dict[str, Any] = {
    "score_model": None,
    "pixel_model": None,
    "least_confidence": 0.0,
    "manipulated_at_sizes": [],
    "closer_look": 0,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Calibration and thresholds of one model.

    Raises `UsageError` when the values do not make a policy.

    Attributes:
        id: the policy's name in the results.
        scale, offset: Platt calibration, score = sigmoid(scale * score_logit + offset);
            scale > 0, so that order is kept.
        score_model: model that gives the score logit; None: the largest of the tiles' scores.
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
        pixel_model: calibration of the pixels. With one, an image's mask is that of the highest
            expected F1, and `mask_threshold` and `mask_share` are not used; an image labelled
            authentic has no mask.
        least_confidence: masks of a lower expected F1 are empty, in [0, 1].
        manipulated_at_sizes: pairs of megapixels, ascending, and the `manipulated_at` of images
            from that size on; empty: one threshold for all sizes.
        closer_look: further tiles of an image that is too large for all of its own, with which the
            thresholds were chosen: see `engine.detection.closer`; 0: none.
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
    score_model: ScoreModel | None = None
    pixel_model: PixelModel | None = None
    least_confidence: float = 0.0
    manipulated_at_sizes: tuple[tuple[float, float], ...] = ()
    closer_look: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise UsageError("policy: id must be a name")
        for field in dataclasses.fields(self)[1:]:
            if field.name not in ("score_model", "pixel_model", "manipulated_at_sizes"):
                _check_number(field.name, getattr(self, field.name), field.default is None)
        _check_models(self)
        if self.scale <= 0:
            raise UsageError(f"policy {self.id}: scale must be above 0, not {self.scale}")
        if not 0 < self.mask_threshold < 1:
            raise UsageError(f"policy {self.id}: mask_threshold must lie between 0 and 1")
        if not 0 <= self.mask_share < 1:
            raise UsageError(f"policy {self.id}: mask_share must be 0 or more and below 1")
        _check_thresholds(self)
        _check_sizes(self)
        _check_limits(self)

    def score_logit(self, statistics: Statistics) -> float:
        """Return the logit of an image's score, before Platt calibration."""
        if self.score_model is None:
            return statistics.largest
        return self.score_model.logit(statistics.features())

    def score(self, score_logit: float) -> float:
        """Return the calibrated probability of manipulation, a float32 value in [0, 1]."""
        return float(np.float32(_sigmoid(self.scale * score_logit + self.offset)))

    def pixel_threshold(self, peak: float) -> float:
        """Return the probability above which pixels of an image are manipulated.

        Args:
            peak: the image's highest probability.
        """
        return max(self.mask_threshold, self.mask_share * peak)

    def believes(self, label: Label, confidence: float | None) -> bool:
        """True if an image has a mask; `confidence` is None without a `pixel_model`."""
        if confidence is None:
            return True
        return label != "authentic" and confidence >= self.least_confidence

    def label(
        self,
        score: float,
        *,
        side: int | None = None,
        jpeg_quality: int | None = None,
        megapixels: float | None = None,
    ) -> tuple[Label, float | None]:
        """Return the label of a score, and the threshold that the score was compared with.

        The threshold is `authentic_below` for authentic, else `manipulated_at`: so in every
        row with a threshold, `score >= threshold` means the same as label = manipulated. Where
        nothing is claimed, or the image is beyond the policy's limits, there is none.

        Args:
            score: calibrated, as `score` gives it.
            side: the image's shorter side in pixels; None: `min_side` does not apply.
            jpeg_quality: estimated, 1..100; None when the file is no JPEG.
            megapixels: of the image; None: the highest threshold of all sizes applies.
        """
        at, below = self.manipulated_from(megapixels), self.authentic_below
        if at is None or below is None:
            return "uncertain", None
        if _below(side, self.min_side) or _below(jpeg_quality, self.min_jpeg_quality):
            return "uncertain", None
        # As float32, like the columns, so that rounding makes no row contradict its label.
        value = np.float32(score)
        if value >= np.float32(at):
            return "manipulated", at
        if value < np.float32(below):
            return "authentic", below
        return "uncertain", at

    def manipulated_from(self, megapixels: float | None) -> float | None:
        """Return the score from which an image of this size is labelled manipulated."""
        if megapixels is None:
            return self.manipulated_at
        at = [at for least, at in self.manipulated_at_sizes if least <= megapixels]
        return at[-1] if at else self.manipulated_at

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes for JSON; those of `LATER` only where they are not the default.

        So the configuration of a run that an earlier version began stays equal.
        """
        fields = dataclasses.asdict(self)
        fields["manipulated_at_sizes"] = [list(pair) for pair in self.manipulated_at_sizes]
        return {
            name: value
            for name, value in fields.items()
            if name not in LATER or value != LATER[name]
        }

    def to_json(self) -> str:
        """Return the attributes as a JSON object."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read a policy that `to_json` wrote. Raises `UsageError` on anything else."""
        try:
            values: Any = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"policy: not JSON ({error}): write it again") from error
        if not isinstance(values, dict) or "id" not in values:
            raise UsageError("policy: must be a JSON object with an id")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(f"policy: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        for name, kind in (("score_model", ScoreModel), ("pixel_model", PixelModel)):
            if values.get(name) is not None:
                values[name] = _model(kind, name, values[name])
        if "manipulated_at_sizes" in values:
            values["manipulated_at_sizes"] = _pairs(values["manipulated_at_sizes"])
        return cls(**values)


def read_policy(path: str) -> Policy:
    """Read a policy file; raise `MissingInput`, or `UsageError` when it is not a policy."""
    if not Path(path).is_file():
        raise MissingInput(f"{path}: no such file")
    return Policy.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))


def _model(kind: type[Any], name: str, values: object) -> Any:
    try:
        return kind(**values)  # type: ignore[arg-type]
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(kind))
        raise UsageError(f"policy: {name} must be an object with {fields}") from error


def _pairs(values: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(values, list) or not all(isinstance(v, list) and len(v) == 2 for v in values):
        raise UsageError("policy: manipulated_at_sizes must be pairs of megapixels and a score")
    return tuple((least, at) for least, at in values)


def _check_sizes(policy: Policy) -> None:
    for number in (number for pair in policy.manipulated_at_sizes for number in pair):
        _check_number("manipulated_at_sizes", number, False)
    sizes = [least for least, _ in policy.manipulated_at_sizes]
    thresholds = [at for _, at in policy.manipulated_at_sizes]
    if sizes != sorted(set(sizes)):
        raise UsageError(f"policy {policy.id}: manipulated_at_sizes must ascend in megapixels")
    below, highest = policy.authentic_below, policy.manipulated_at
    if thresholds and (below is None or highest is None):
        raise UsageError(f"policy {policy.id}: manipulated_at_sizes needs manipulated_at")
    if not all((below or 0) <= at <= (highest or 0) for at in thresholds):
        raise UsageError(
            f"policy {policy.id}: need authentic_below <= manipulated_at_sizes <= manipulated_at"
        )


def _check_models(policy: Policy) -> None:
    if model := policy.score_model:
        if not isinstance(model.weights, dict) or set(model.weights) - set(FEATURES):
            raise UsageError(f"policy: score_model has weights of {', '.join(FEATURES)} only")
        for name, weight in model.weights.items():
            _check_number(f"score_model {name}", weight, False)
        _check_number("score_model offset", model.offset, False)
    if pixels := policy.pixel_model:
        for field in dataclasses.fields(pixels):
            _check_number(f"pixel_model {field.name}", getattr(pixels, field.name), False)
        if pixels.scale <= 0:
            raise UsageError(f"policy {policy.id}: pixel_model scale must be above 0")
    if not 0 <= policy.least_confidence <= 1:
        raise UsageError(f"policy {policy.id}: least_confidence must lie between 0 and 1")


def _below(value: int | None, limit: int | None) -> bool:
    return value is not None and limit is not None and value < limit


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))  # exp could overflow


def _check_number(name: str, value: object, optional: bool) -> None:
    if value is None and optional:
        return
    if not _is_finite(value):
        raise UsageError(f"policy: {name} must be a finite number, not {value!r:.40}")


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        return False


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
    if policy.closer_look != int(policy.closer_look) or policy.closer_look < 0:
        raise UsageError(
            f"policy {policy.id}: closer_look must be a number of tiles, not {policy.closer_look}"
        )


UNTRAINED = Policy("untrained")
