"""Benchmark of a version: makes its sets, calibrates it, evaluates it, prints its card's tables.

    python -m tests.bench.card --photos DIR --negatives DIR --autoencoders DIR --clones DIR
        --output DIR [--model MODEL] [--miss-rate 0.15 | --own-policy] [--closer-look 64]
        [--forged casia1_dev/manifest.csv] [--old OLD.json]

What is in the output already is kept, so that an interrupted run goes on where it ended. A second
model is measured on the same sets with `--sets`, and an output of its own. Hours of a core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from prompt_iml.pipeline.evaluation.sets import SetResult
from prompt_iml.pipeline.run.folder import Json
from tests.bench.card.sets import LARGE_SEEDS, write_all
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
    parser.add_argument("--clones", type=Path, required=True, help="repositories of originals.csv")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", type=Path, help="folder of the sets; else in the output")
    parser.add_argument("--model", default="prompt-iml-micro")
    parser.add_argument("--miss-rate", default="0.15")
    parser.add_argument("--own-policy", action="store_true", help="evaluate the model's own policy")
    parser.add_argument("--closer-look", default="64")
    parser.add_argument("--forged", help="truth of pictures that people forged")
    parser.add_argument("--old", type=Path, help="evaluation.json of the version before")
    args = parser.parse_args()

    sets = args.sets or args.output / "sets"
    write_all(args.photos, args.negatives, args.autoencoders, args.clones, sets)
    flags = ["--model", args.model]
    if not args.own_policy:
        closer = ["--closer-look", args.closer_look]
        report = _calibrated(args.output, sets, *flags, *closer, "--miss-rate", args.miss_rate)
        print(calibration_tables(report), flush=True)
        flags += ["--policy", str(args.output / "policy.json")]
    old = _results(args.old) if args.old else []
    truths = [sets / name / "manifest.csv" for name in EVALUATED]
    truths += [sets / f"{name}-evaluation" / "manifest.csv" for name in AUTHENTIC]
    results = _evaluated(args.output / "evaluation.json", *truths, *flags)
    print(evaluation_table(results, old), flush=True)
    large = [sets / f"closer-{seed}" / "manifest.csv" for seed in LARGE_SEEDS]
    for closer in ("0", args.closer_look):
        file = args.output / f"closer-{closer}.json"
        print(f"\nwith --closer-look {closer}")
        results = _evaluated(file, *large, *flags, "--closer-look", closer)
        print(evaluation_table(results, []), flush=True)
    if args.forged:  # last, since a version is looked at on these once
        file = args.output / "forged.json"
        results = _evaluated(file, args.forged, *flags, "--perturbation", PERTURBED)
        print(evaluation_table(results, old))


def _calibrated(output: Path, sets: Path, *flags: str) -> Json:
    """Return the report of a calibration, which lies beside its policy and its plot."""
    report = output / "calibration.json"
    if not report.exists():
        truths = [sets / name / "manifest.csv" for name in CALIBRATED]
        truths += [sets / f"{name}-calibration" / "manifest.csv" for name in AUTHENTIC]
        files = ["--output", output / "policy.json", "--report", report]
        files += ["--plot", output / "reliability.png"]
        limits = ["--perturbation", "none", "--limit", str(MOST)]
        _run("calibrate", *truths, *flags, *limits, *files)
    found: Json = json.loads(report.read_text())
    return found


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
