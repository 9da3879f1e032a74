"""Evaluation of a model on images whose truth is known.

The input is a manifest (a CSV of images and masks), an engine with its model, and a policy. The
output is a `SetResult` for each set and perturbation, and an `ImageResult` for each image, which a
calibration needs. Images pass through the detector that a scan uses.
"""

from prompt_iml.pipeline.evaluation.images import ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.manifest import Labelled, read_manifest
from prompt_iml.pipeline.evaluation.sets import SetResult, evaluate_set, set_name, summarize_set

__all__ = [
    "ImageResult",
    "Labelled",
    "SetResult",
    "evaluate_images",
    "evaluate_set",
    "read_manifest",
    "set_name",
    "summarize_set",
]
