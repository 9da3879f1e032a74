"""How well a model does on images whose truth is known.

In come a manifest (a CSV of images and masks), an engine with its model and a policy; out go
numbers: a `SetResult` a set and perturbation, and `Judged` images for whoever calibrates. Images
pass the detector that a scan uses; nothing here looks into the network.
"""

from prompt_iml.pipeline.evaluation.judged import Judged, judge_samples
from prompt_iml.pipeline.evaluation.manifest import Labelled, read_manifest
from prompt_iml.pipeline.evaluation.sets import SetResult, evaluate_set, set_name, summarize_set

__all__ = [
    "Judged",
    "Labelled",
    "SetResult",
    "evaluate_set",
    "judge_samples",
    "read_manifest",
    "set_name",
    "summarize_set",
]
