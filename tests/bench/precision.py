"""Labels and F1 in bfloat16 beside float32, of the CPU default on sets whose truth is known.

    python -m tests.bench.precision TRUTH... [--limit N] [--model MODEL]

Each image is evaluated by both engines, one after the other, with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.evaluation.images import ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.sets import set_name
from prompt_iml.pipeline.truth import Label, read_labels

PRECISIONS = ("float32", "bfloat16")
Pair = tuple[ImageResult, ImageResult]


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("truths", nargs="+", metavar="TRUTH")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="prompt-iml-micro")
    options = parser.parse_args()
    model = load_model(options.model)
    detectors = [
        Detector(open_engine(model, "openvino", 1, precision), model.view, model.policy)
        for precision in PRECISIONS
    ]
    for truth in options.truths:
        seconds = [0.0, 0.0]
        pairs = list(_pairs(detectors, read_labels(truth, options.limit), seconds))
        print(f"\n{set_name(truth)}, {len(pairs)} images\n{_table(pairs, seconds)}", flush=True)


def _pairs(
    detectors: Sequence[Detector], labels: Sequence[Label], seconds: list[float]
) -> Iterator[Pair]:
    """Yield the results of each image that both can read; adds the CPU time of each."""
    for label in labels:
        found = []
        for place, detector in enumerate(detectors):
            started = time.process_time()
            found += [each.outcome for each in evaluate_images(detector, [label])]
            seconds[place] += time.process_time() - started
        if all(isinstance(each, ImageResult) for each in found):
            yield found[0], found[1]


def _table(pairs: Sequence[Pair], seconds: Sequence[float]) -> str:
    changed = Counter(f"{a.label} -> {b.label}" for a, b in pairs if a.label != b.label)
    f1 = np.array([(a.f1, b.f1) for a, b in pairs if a.f1 == a.f1]).reshape(-1, 2)
    score = max((abs(a.score_raw - b.score_raw) for a, b in pairs), default=0.0)
    shares = [abs(a.masked - b.masked) for a, b in pairs]
    which = ", ".join(f"{name} {count}" for name, count in changed.most_common())
    lines = [
        f"labels that change     {changed.total()}{f' ({which})' if which else ''}",
        f"largest change         score {score:.4f}, masked share {max(shares, default=0):.4f}",
        f"CPU time               {' -> '.join(f'{s:.1f} s' for s in seconds)}, evaluation included",
    ]
    if len(f1):
        lines.append(f"F1                     {' -> '.join(f'{x:.4f}' for x in f1.mean(0))}")
        lines.append(f"largest change of F1   {abs(f1[:, 1] - f1[:, 0]).max():.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
