"""Compare a runtime with the reference, output by output.

Compilers for networks have been silently wrong, some of them only for batches of more than one.
So a compiled network is compared before it is used, at the smallest batch and at the largest, on
photographs and on noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.errors import InferError
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Engine

# Largest `Difference.error` that passes. The JPEG view counts rounded values, and some lie half way
# between integers: even two float32 engines differ by up to 8e-3. The emulated error of half
# precision alone is at most half of these (tests/engine/build/test_build.py).
TOLERANCES = {"float32": 1e-2, "float16": 2e-2, "bfloat16": 5e-2}
NOISE_FLOOR = 1e-3  # root mean square of logits: two float32 engines differ by less


@dataclass(frozen=True, slots=True)
class Case:
    """One batch to compare on; `images` says what it holds: `photographs` or `noise`."""

    images: str
    batch: Batch


@dataclass(frozen=True, slots=True)
class Difference:
    """The error of one output for one batch.

    Attributes:
        output: name in the graph.
        images: see `Case`.
        batch, height, width: shape of the batch.
        error: largest absolute difference of a logit, divided by the larger of 1 and the
            reference's largest absolute logit; infinite where a logit is not finite, or the
            engine failed.
    """

    output: str
    images: str
    batch: int
    height: int
    width: int
    error: float

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.height}x{self.width}"
        return f"{self.output} of {shape} {self.images} differs by {self.error:.1e}"


@dataclass(frozen=True, slots=True)
class Parity:
    """Comparison of an engine with the reference.

    Attributes:
        engine, reference: names of the two engines.
        tolerance: largest error that passes.
        differences: one for every output of every case.
    """

    engine: str
    reference: str
    tolerance: float
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The difference with the largest error."""
        return max(self.differences, key=lambda each: each.error)

    @property
    def passed(self) -> bool:
        """True if no error is above the tolerance."""
        return self.worst.error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that is stored with a build."""
        return {**asdict(self), "worst": str(self.worst), "passed": self.passed}


def compare(engine: Engine, reference: Engine, cases: Sequence[Case], tolerance: float) -> Parity:
    """Run both engines on every case; a case on which `engine` fails has an infinite error."""
    differences = tuple(
        difference
        for case in cases
        for difference in _differences(case, _run(engine, case.batch), reference.run(case.batch))
    )
    return Parity(engine.name, reference.name, tolerance, differences)


def missed_prompts(engine: Engine, reference: Engine, prompts: PromptSet, case: Case) -> float:
    """Return the share of the prompts' effect that an engine misses: 0 nothing, 1 all of it.

    The effect is the change of all logits from prompts of zeros to `prompts`. The share is the
    root mean square of the difference between the two engines' effects, over that of the
    reference's effect. The effect may be smaller than the tolerance of `compare`, so an engine
    that ignores prompts would pass there.

    Args:
        engine, reference: the engines; both have `prompts` loaded afterwards.
        prompts: the prompts whose effect is measured.
        case: one batch.
    """
    none = PromptSet(tuple(np.zeros_like(tensor) for tensor in prompts.tensors))
    effects = []
    for each in (engine, reference):
        each.load_prompts(none)
        without = _logits(each.run(case.batch))
        each.load_prompts(prompts)
        effects.append(_logits(each.run(case.batch)) - without)
    missed, whole = np.sqrt([((effects[0] - effects[1]) ** 2).mean(), (effects[1] ** 2).mean()])
    return float(max(missed - NOISE_FLOOR, 0) / whole) if whole else 0.0


def _logits(found: Detection) -> NDArray[np.float64]:
    return np.concatenate([found.mask_logits.ravel(), found.score_logit]).astype(np.float64)


def noise(shapes: Sequence[tuple[int, int]], batches: Sequence[int], seed: int = 0) -> list[Case]:
    """Return random pixels and tables, in their context, of each (height, width) at each batch
    size."""
    random = np.random.default_rng(seed)
    return [
        Case(
            "noise",
            whole_pictures(
                random.integers(0, 256, (n, height, width, 3), np.uint8),
                random.integers(1, 100, (n, 64)).astype(np.float32),
            ),
        )
        for n in batches
        for height, width in shapes
    ]


def _run(engine: Engine, batch: Batch) -> Detection | None:
    try:
        return engine.run(batch)
    except InferError:
        return None


def _differences(case: Case, found: Detection | None, expected: Detection) -> list[Difference]:
    n, height, width, _ = case.batch.image.shape
    return [
        Difference(
            output,
            case.images,
            n,
            height,
            width,
            _error(None if found is None else getattr(found, output), getattr(expected, output)),
        )
        for output in ("mask_logits", "score_logit")
    ]


def error_of(found: Detection, expected: Detection) -> float:
    """Return the larger error of the two outputs, as `Difference` defines it."""
    return max(
        _error(found.mask_logits, expected.mask_logits),
        _error(found.score_logit, expected.score_logit),
    )


def _error(found: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> float:
    if found is None or found.shape != expected.shape:
        return math.inf
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return math.inf
    return float(np.abs(found - expected).max() / max(1, np.abs(expected).max()))
