"""Training loop of one process: the steps on its share of the examples."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.evaluate import evaluate
from prompt_iml.cluster.training.examples import held_back_generator
from prompt_iml.cluster.training.losses import training_loss
from prompt_iml.cluster.training.schedule import learning_rate, precision, weight_decay_groups
from prompt_iml.cluster.training.variants import make_variant
from prompt_iml.engine.errors import FetchError, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.prompts import PREFIX, PromptSet, check_fits, parameters
from prompt_iml.engine.network.config import PRESETS
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.network.swin import load_official
from prompt_iml.engine.runtimes.torch_cpu import load_network
from prompt_iml.pipeline.forgery.generator import Example
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.s3 import use

DECAY = 0.02
CLIP = 2.0
FILE = "checkpoint.safetensors"
AVERAGE_STEPS = 1000  # the average of the weights is over about so many steps


class Objective(nn.Module):
    """The network and its loss as one module, as DDP needs it."""

    def __init__(self, network: PromptIML) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Sequence[Tensor], mask_BHW: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar; `inputs` are the network's but for the prompts."""
        image, qtable, histogram, matches = inputs
        fused_BHWC = self.network.extract(image, qtable, histogram, matches)
        return training_loss(*self.network.localize(fused_BHWC), mask_BHW)


class Run:
    """State of a training run, as a checkpoint stores it: network, optimiser and progress.

    Args:
        network: trained in place.
        train: `prompts` to train only the prompts, or `all`.

    Attributes:
        average: exponential moving average of the parameters that train, by name.
        steps: number of steps that it is over.
        samples: number of examples seen by all processes together.
        best: highest F1 of an evaluation so far.
        since_best: number of evaluations since then.
    """

    def __init__(self, network: PromptIML, train: str = "all") -> None:
        self.network = network
        if train == "prompts":
            freeze_all_but_prompts(network)
        groups = weight_decay_groups(network, DECAY)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)
        self.samples, self.best, self.since_best, self.steps = 0, 0.0, 0, 0
        self.average = {n: p.detach().clone() for n, p in self._training()}

    def _training(self) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]

    def step(self, loss: Tensor, rate: float) -> None:
        """Take one step of the optimiser, at learning rate `rate`."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.steps += 1
        # In the beginning the average is over all steps so far.
        share = 1 / min(self.steps, AVERAGE_STEPS)
        for name, parameter in self._training():
            self.average[name].lerp_(parameter.detach(), share)

    def averaged(self) -> dict[str, Tensor]:
        """Return the network's tensors, with the average of those that train."""
        return self.network.state_dict() | self.average

    def count_evaluation(self, f1: float) -> None:
        """Update `best` and `since_best`; an F1 of nan (no forged example) is not better."""
        better = f1 > self.best
        self.best = f1 if better else self.best
        self.since_best = 0 if better else self.since_best + 1

    def save(self, folder: Path) -> None:
        """Write `checkpoint.safetensors` into a folder."""
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{n}": t for n, t in state.items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        progress = {n: repr(getattr(self, n)) for n in ("samples", "steps", "best", "since_best")}
        save_file(tensors, folder / FILE, progress)

    def load(self, folder: Path) -> None:
        """Restore the state from a folder that `save` wrote."""
        with safe_open(folder / FILE, "pt") as file:
            progress = file.metadata()
        self.samples, self.since_best = int(progress["samples"]), int(progress["since_best"])
        self.steps = int(progress["steps"])
        self.best = float(progress["best"])
        states = defaultdict[int, dict[str, Tensor]](dict)
        tensors = load_file(folder / FILE)
        for name in [n for n in tensors if n.startswith("optimiser.")]:
            _, index, key = name.split(".")
            states[int(index)][key] = tensors[name]
        self.network.load_state_dict(network_tensors(tensors))
        self.average = network_tensors(tensors, "average.")
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": states})


def network_tensors(checkpoint: dict[str, Tensor], prefix: str = "network.") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with a prefix, by their names in the network."""
    return {n.removeprefix(prefix): t for n, t in checkpoint.items() if n.startswith(prefix)}


def freeze_all_but_prompts(network: PromptIML) -> None:
    """Freeze every parameter of a network except its prompts."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(PREFIX))


def start_network(settings: TrainSettings) -> PromptIML:
    """Return the network at the start of training: random, from a weights file or from a model.

    Raises:
        UsageError: `start`, `semantic_weights` or `prompt_set` cannot be read or does not fit, or
            there is no such `preset`.
    """
    if settings.preset not in PRESETS:
        raise UsageError(f"no --preset {settings.preset}: use one of {', '.join(PRESETS)}")
    torch.manual_seed(settings.seed)
    config, tensors = PRESETS[settings.preset], None
    if settings.prompts is not None:
        config = replace(config, prompts=settings.prompts)
    if settings.start and is_weights_file(settings.start):
        tensors = _read_weights(settings.start)
    elif settings.start:
        model = load_model(settings.start)
        tensors = load_network(model).state_dict()
        config = config if settings.add_new_parts else model.config
    network = PromptIML(config)
    make_variant(network, settings.fusion)
    try:
        if tensors is not None:
            network.load_state_dict(_new_parts(network) | tensors)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--start {settings.start} does not fit {config.name}: {line}") from error
    if settings.semantic_weights:
        _load_semantic(network, settings.semantic_weights)
    if settings.prompt_set:
        _load_prompts(network, settings.prompt_set)
    return network


def is_weights_file(start: str) -> bool:
    """Return whether `--start` names a weights file and not a model."""
    return start.endswith(".safetensors")


def _load_semantic(network: PromptIML, uri: str) -> None:
    branch, tensors = network.semantic, _read_weights(uri)
    try:
        if tensors.keys() == branch.state_dict().keys():
            branch.load_state_dict(tensors)
        else:
            load_official(branch, tensors)
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"--semantic-weights {uri} does not fit the network: {line}") from error


def _load_prompts(network: PromptIML, uri: str) -> None:
    try:
        prompts = PromptSet.from_bytes(storage.read_bytes(storage.canonical(uri)), uri)
    except FetchError as error:
        raise UsageError(f"--prompt-set cannot be read: {error}") from error
    check_fits(prompts, network.config)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in parameters(prompts).items()}
    network.load_state_dict(network.state_dict() | tensors)


def _new_parts(network: PromptIML) -> dict[str, Tensor]:
    """Return tensors that earlier weights may lack; untrained, they do not change the output."""
    parts = "high_frequency.patch_embed.blocks.", "jpeg_view.ratios.", "matches."
    layers = len(network.config.swin.depths)
    prompts = {f"{PREFIX}{i}" for i in range(layers, len(network.prompts))}
    state = network.state_dict().items()
    return {n: t for n, t in state if n.startswith(parts) or n in prompts}


def _read_weights(uri: str) -> dict[str, Tensor]:
    try:
        return load(storage.read_bytes(storage.canonical(uri)))
    except (FetchError, SafetensorError) as error:
        raise UsageError(f"The weights {uri} cannot be read: {error}") from error


def train_worker(fields: dict[str, Any]) -> None:
    """Run one training process on Ray Train; `fields` are those of `TrainSettings`."""
    settings, context = TrainSettings(**fields), ray.train.get_context()
    use(settings.access)
    torch.set_num_threads(1)
    run = Run(start_network(settings), settings.train)
    objective = ray.train.torch.prepare_model(Objective(run.network))
    if checkpoint := ray.train.get_checkpoint():  # after the network is on its device
        with checkpoint.as_directory() as folder:
            run.load(Path(folder))
    if 0 < settings.patience <= run.since_best:  # it stopped early before its driver died
        return
    held_back = _held_back(settings) if context.get_world_rank() == 0 else []
    processes, losses = context.get_world_size(), list[float]()
    each = max(1, settings.batch // processes)  # the number of processes is elastic
    together = each * processes
    for batch in _batches(each):
        with precision("cuda" if settings.gpus else "cpu"):
            inputs = [batch[name] for name in ("image", "qtable", "histogram", "matches")]
            loss = objective(inputs, batch["mask"])
        run.step(loss, learning_rate(run.samples / settings.samples, settings.learning_rate))
        losses.append(loss.item())
        before, run.samples = run.samples, run.samples + together
        ended = run.samples + together > settings.samples
        if run.samples // settings.eval_every > before // settings.eval_every or ended:
            stops = _report(run, held_back, losses, settings)
            # If the driver dies between checkpoint and curves, some examples are seen twice.
            if stops or ended:
                return
            losses.clear()


def _batches(size: int) -> Iterator[dict[str, Tensor]]:
    """Yield this process's share of the examples, in batches."""
    shard = ray.train.get_dataset_shard("examples")
    yield from shard.iter_torch_batches(batch_size=size, drop_last=True, prefetch_batches=2)


def _report(
    run: Run, held_back: list[Example], losses: list[float], settings: TrainSettings
) -> bool:
    """Evaluate and save a checkpoint in process 0; return in each process whether to stop."""
    metrics, stop = dict[str, Any](), False
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            evaluation = evaluate(run.network, held_back)["all"]
            average = evaluate(_with(run.network, run.averaged()), held_back)["all"]
            run.count_evaluation(evaluation.f1)
            run.save(Path(folder))
            checkpoint = Checkpoint.from_directory(folder)
            metrics = {"samples": run.samples, "loss": float(np.mean(losses)), **asdict(evaluation)}
            metrics |= {"average_f1": average.f1, "average_score_auc": average.score_auc}
            stop = 0 < settings.patience <= run.since_best
        ray.train.report(metrics, checkpoint)
    return bool(broadcast_from_rank_zero(stop))


def _with(network: PromptIML, tensors: dict[str, Tensor]) -> PromptIML:
    """Return a copy of a network that has other tensors."""
    other = copy.deepcopy(network)
    other.load_state_dict(tensors)
    return other


def _held_back(settings: TrainSettings) -> list[Example]:
    generator = held_back_generator(settings)
    # Training never uses 2 as third number; (0, 5) and (0, 5, 0) are the same seed to NumPy.
    numbers = range(settings.eval_examples)
    return [generator.example(settings.seed, number, 2) for number in numbers]
