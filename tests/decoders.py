"""What another JPEG decoder does to findings: `pip install simplejpeg`, then

    python -m tests.decoders MANIFEST.csv ...

evaluates each set as it is, and with libjpeg-turbo's fast inverse DCT and plain upsampling of
chroma in place of the exact ones, as decoders of GPUs may do it. Prints both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from engine.checkpoint import load_model
from engine.runtimes import open_engine
from pipeline import decode
from pipeline.evaluation import evaluate_set

TOLD = ("f1", "best_f1", "pixel_auc", "image_auc", "true_positive_rate", "false_positive_rate")
exact = decode._to_rgb


def fast(picture: Any, facts: dict[str, Any]) -> Any:
    """In place of `decode._to_rgb`, for JPEG files."""
    if picture.format != "JPEG":
        return exact(picture, facts)
    data = picture.fp.getvalue()
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True))


def main() -> None:
    """Command line."""
    model = load_model("prompt-iml-micro")
    engine = open_engine(model)
    for manifest in map(Path, sys.argv[1:]):
        for name, to_rgb in (("exact", exact), ("fast", fast)):
            decode._to_rgb = to_rgb
            result = evaluate_set(engine, model, model.policy, manifest).to_dict()
            told = "  ".join(f"{measure} {result[measure]:.3f}" for measure in TOLD)
            print(f"{result['set']:8} {name:6} {told}", flush=True)


if __name__ == "__main__":
    main()
