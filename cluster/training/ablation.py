"""The paper's ablation (section 4.4, table 2) at the size of our models.

    python -m prompt_iml.cluster.training.ablation --photos DIR --semantic-weights FILE \
        --output DIR --samples 4000

Every variant (`cluster.training.variants`) trains from the same seed, for the same number of steps
and on the same examples, and is evaluated on the same forgeries of held-back photographs. Finished
variants are not trained again. The results are printed as a table and written to `ablation.csv`.
Without --semantic-weights the frozen branch is random; `--variant semantic` alone compares two ways
to make it (`cluster.pretraining.distill`, `cluster.pretraining.masked`).
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.evaluate import Evaluation, evaluate
from prompt_iml.cluster.training.examples import held_back_generator
from prompt_iml.cluster.training.loop import start_network
from prompt_iml.cluster.training.train import train
from prompt_iml.pipeline.forgery.generator import Example
from prompt_iml.pipeline.storage import storage

VARIANTS: dict[str, dict[str, Any]] = {
    "semantic": {"fusion": "semantic"},
    "high-frequency": {"fusion": "high_frequency"},
    "add": {"fusion": "add"},
    "align": {"fusion": "align"},
    "fuse": {"fusion": "fuse"},
    "full": {"fusion": "full"},
    "full, no prompts": {"fusion": "full", "prompts": 0},
    "full, 1 prompt": {"fusion": "full", "prompts": 1},
    "full, 10 prompts": {"fusion": "full", "prompts": 10},
}
GROUPS = ("all", "splice", "copy-move", "no table")
EVAL_EXAMPLES = 400


def ablate(base: TrainSettings, variants: Sequence[str]) -> dict[str, dict[str, Evaluation]]:
    """Train and evaluate variants; return the results of `evaluate` by variant."""
    generator = held_back_generator(base)
    held_back = [generator.example(base.seed, number, 3) for number in range(EVAL_EXAMPLES)]
    return {name: _variant(base, name, VARIANTS[name], held_back) for name in variants}


def _variant(
    base: TrainSettings, name: str, fields: dict[str, Any], held_back: list[Example]
) -> dict[str, Evaluation]:
    folder = name.replace(", ", "-").replace(" ", "-")
    settings = base.model_copy(update=fields | {"output": f"{base.output}/{folder}"})
    weights = storage.local_path(train(settings).weights)
    network = start_network(
        settings.model_copy(update={"start": str(weights), "semantic_weights": None})
    )
    return evaluate(network, held_back)


def table(results: dict[str, dict[str, Evaluation]]) -> str:
    """Return a table of pixel F1 by group, and of pixel AUC and false alarms over all examples."""
    lines = [
        f"{'':<18}" + "".join(f"{'F1 ' + g:>14}" for g in GROUPS) + f"{'AUC':>8}{'flagged':>9}"
    ]
    for name, groups in results.items():
        f1 = "".join(f"{groups[group].f1:>14.3f}" for group in GROUPS)
        whole = groups["all"]
        lines.append(f"{name:<18}{f1}{whole.pixel_auc:>8.3f}{whole.flagged:>9.2f}")
    return "\n".join(lines)


def _csv(results: dict[str, dict[str, Evaluation]]) -> bytes:
    rows = [
        {"variant": name, "group": group, **asdict(evaluation)}
        for name, groups in results.items()
        for group, evaluation in groups.items()
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--negatives", help="authentic pictures that are no photographs")
    parser.add_argument("--autoencoders", help="folder of autoencoders for generated regions")
    parser.add_argument("--semantic-weights", help="weights of the frozen branch")
    parser.add_argument(
        "--variant",
        action="append",
        choices=list(VARIANTS),
        help="train this variant (may be repeated); without it, all of them",
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    variants = args.variant or list(VARIANTS)
    del args.variant
    results = ablate(TrainSettings(**vars(args)), variants)
    print(table(results))
    storage.write(storage.canonical(f"{args.output}/ablation.csv"), _csv(results))


if __name__ == "__main__":
    main()
