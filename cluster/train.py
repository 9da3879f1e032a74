"""A first training of everything but the frozen semantic branch, for as many minutes as given.

    python -m cluster.train --photos DIR --semantic FILE --folder DIR --minutes 50

Goes on from `folder/checkpoint.safetensors` where there is one, and keeps `folder/log.csv`:
seconds, samples seen, loss, and how it does on photographs held back.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.batches import batches
from cluster.forgery import Example, Forger
from cluster.history import SIDE
from cluster.judge import Judgement, judge
from cluster.losses import training_loss
from cluster.photos import list_photos, split
from cluster.schedule import learning_rate, weight_decay_groups
from engine.config import PRESETS
from engine.network.model import PromptIML

PEAK = 1.5e-3
DECAY = 0.02
CLIP = 2.0
WHOLE_FROM = 0.75  # of the time: until then a quarter of each example, for four times as many
SAVE_EVERY = 600.0  # seconds
FINAL = 240  # held-back examples of the last judgement


class Run:
    """Network, optimiser, and how far they are: what a checkpoint holds.

    Attributes:
        samples: examples seen.
        seconds: spent, over all starts.
    """

    def __init__(self, network: PromptIML, folder: Path) -> None:
        self.network, self.folder = network, folder
        groups = weight_decay_groups(network, DECAY)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=PEAK)
        self.samples, self.seconds = 0, 0.0

    def step(self, batch: tuple[Tensor, Tensor, Tensor], rate: float) -> float:
        """One step of the optimiser; the loss before it."""
        image, qtable, mask = batch
        loss = training_loss(*self.network.predictions(image, qtable), mask)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.samples += len(image)
        return loss.item()

    def save(self) -> None:
        """Write `checkpoint.safetensors`, whole or not at all."""
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items()}
        partial = self.folder / "checkpoint.partial"
        save_file(tensors, partial, {"samples": str(self.samples), "seconds": str(self.seconds)})
        partial.replace(self.folder / "checkpoint.safetensors")

    def resume(self) -> None:
        """Go on from `checkpoint.safetensors`, if there is one."""
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        self.samples, self.seconds = int(metadata["samples"]), float(metadata["seconds"])
        network, states = {}, defaultdict[int, dict[str, Tensor]](dict)
        for name, tensor in load_file(path).items():
            part, rest = name.split(".", 1)
            if part == "network":
                network[rest] = tensor
            else:
                index, key = rest.split(".")
                states[int(index)][key] = tensor
        self.network.load_state_dict(network)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": states})


def train(
    run: Run, forger: Forger, held_back: Sequence[Example], minutes: float, seed: int
) -> None:
    """Train until `minutes` are spent: small windows first, whole examples after."""
    started, next_save, losses = time.monotonic() - run.seconds, run.seconds + SAVE_EVERY, []
    for side, until in ((SIDE // 2, WHOLE_FROM), (SIDE, 1.0)):
        stream = batches(forger, seed, side, run.samples)
        while (progress := run.seconds / (60 * minutes)) < until:
            losses.append(run.step(next(stream), learning_rate(progress, PEAK)))
            run.seconds = time.monotonic() - started
            if run.seconds > next_save:
                next_save = run.seconds + SAVE_EVERY
                run.save()
                log(run, losses, judge(run.network, held_back)["all"])
                losses.clear()
    run.save()


def log(run: Run, losses: Sequence[float], judgement: Judgement) -> None:
    """Add a line to `log.csv`."""
    path = run.folder / "log.csv"
    row = {"seconds": round(run.seconds), "samples": run.samples, "loss": np.mean(losses)}
    row |= asdict(judgement)
    begins = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if begins:
            writer.writeheader()
        writer.writerow({n: f"{v:.4f}" if isinstance(v, float) else v for n, v in row.items()})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--semantic", type=Path, required=True, help="from cluster.distill")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="prompt-iml-micro")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    network = PromptIML(PRESETS[args.preset])
    network.semantic.load_state_dict(load_file(args.semantic))
    photos, held_back = split(list_photos(args.photos))
    judged = Forger(held_back)
    args.folder.mkdir(parents=True, exist_ok=True)
    run = Run(network, args.folder)
    run.resume()
    train(
        run,
        Forger(photos),
        [judged.example(args.seed, i) for i in range(32)],
        args.minutes,
        args.seed,
    )
    save_file(network.state_dict(), args.folder / "weights.safetensors")
    final = judge(network, [judged.example(args.seed + 1, i) for i in range(FINAL)])
    path = args.folder / "judgement.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [{"group": name} | asdict(judgement) for name, judgement in final.items()]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
