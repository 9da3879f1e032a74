"""Benchmark of a version: makes its sets, calibrates it, evaluates it, prints its card's tables.

    python -m tests.bench.card --photos DIR --negatives DIR --autoencoders DIR --clones DIR
        --output DIR [--model MODEL] [--miss-rate 0.15] [--closer-look 64]
        [--forged casia1_dev/manifest.csv] [--old OLD.json]

What is in the output already is kept, so that an interrupted run goes on where it ended. A second
model is measured on the same sets with `--sets`, and an output of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from prompt_iml.pipeline.evaluation.sets import SetResult
from tests.bench.card.sets import write_all
from tests.bench.card.tables import calibration_tables, evaluation_table

CALIBRATED = ("posted", "png", "small", "once", "album", "resaved", "full")
EVALUATED = ("posted", "png", "small", "once", "album", "generated", "regenerated")
AUTHENTIC = ("negatives", "originals")
MOST = 80  # images of a set in the calibration
PERTURBED = "none,no-table,jpeg-70,resize-0.5"  # of the pictures that people forged


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--negatives", type=Path, required=True)
    parser.add_argument("--autoencoders", required=True, help="folder with held-back-*.safetensors")
    parser.add_argument(
        "--clones", type=Path, required=True, help="of originals.csv's repositories"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", type=Path, help="folder of the sets; else in the output")
    parser.add_argument("--model", default="prompt-iml-micro")
    parser.add_argument("--miss-rate", default="0.15")
    parser.add_argument("--closer-look", default="64")
    parser.add_argument("--forged", help="truth of pictures that people forged; evaluated last")
    parser.add_argument("--old", type=Path, help="evaluation.json of the version before")
    args = parser.parse_args()

    sets = args.sets or args.output / "sets"
    write_all(args.photos, args.negatives, args.autoencoders, args.clones, sets)
    model = ["--model", args.model, "--closer-look", args.closer_look]
    policy, report = args.output / "policy.json", args.output / "calibration.json"
    if not report.exists():
        truths = [sets / name / "manifest.csv" for name in CALIBRATED]
        truths += [sets / f"{name}-calibration" / "manifest.csv" for name in AUTHENTIC]
        rates = ["--perturbation", "none", "--miss-rate", args.miss_rate, "--limit", str(MOST)]
        plot = args.output / "reliability.png"
        files = ["--output", policy, "--report", report, "--plot", plot]
        _run("calibrate", *truths, *model, *rates, *files)
    print(calibration_tables(json.loads(report.read_text())), flush=True)

    model += ["--policy", str(policy)]
    truths = [sets / name / "manifest.csv" for name in EVALUATED]
    truths += [sets / f"{name}-evaluation" / "manifest.csv" for name in AUTHENTIC]
    results = _evaluated(args.output / "evaluation.json", *truths, *model)
    if args.forged:
        file = args.output / "forged.json"
        results += _evaluated(file, args.forged, *model, "--perturbation", PERTURBED)
    old = _results(args.old) if args.old else []
    print(evaluation_table(results, old))


def _evaluated(file: Path, *args: str | Path) -> list[SetResult]:
    if not file.exists():
        _run("evaluate", *args, "--output", file)
    return _results(file)


def _results(file: Path) -> list[SetResult]:
    return [SetResult.from_dict(each) for each in json.loads(file.read_text())["results"]]


def _run(*args: str | Path) -> None:
    command = [sys.executable, "-P", "-m", "prompt_iml.pipeline.cli", *map(str, args)]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
