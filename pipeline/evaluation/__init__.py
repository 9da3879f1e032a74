"""Evaluation of a model on images whose truth is known.

The input is a truth (see `prompt_iml.pipeline.truth`), an engine with its model, and a policy; or
the masks of another model. The output is a `SetResult` for each set and perturbation, and an
`ImageResult` for each image, which a calibration needs. Images pass through the detector that a
scan uses.
"""

from prompt_iml.pipeline.evaluation.images import Evaluation, ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.sets import (
    SetResult,
    evaluate_set,
    set_name,
    summarize,
    summarize_set,
)

__all__ = [
    "Evaluation",
    "ImageResult",
    "SetResult",
    "evaluate_images",
    "evaluate_set",
    "set_name",
    "summarize",
    "summarize_set",
]
