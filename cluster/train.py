"""Train on Ray Train: `prompt-iml train`.

    photographs -> Ray Data: forgers -> training processes (DDP) -> checkpoints -> weights

A run is its output folder: the same command goes on from the newest checkpoint there, whether a
process died or the whole driver.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save

from cluster.curves import CURVES, Curves, read_curves
from cluster.examples import TRAINING_CPUS, examples
from cluster.loop import FILE, network_tensors, start_network, train_worker
from cluster.photos import list_photos
from cluster.settings import TrainSettings
from engine.errors import MissingInput, PromptImlError, UsageError
from pipeline import storage
from pipeline.waves import quiet_ray_data, ray_session

RUN = "ray"  # Ray Train's own folder in the output
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
MAX_FAILURES = 3
BEST_BY = "f1"  # of a report
# What may change between two starts of one run: where it runs, not what it learns.
PLACE = {"workers", "max_workers", "gpus", "address", "output"}


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left.

    Attributes:
        weights: URI of the network's state dict, safetensors, prompts and all.
        samples: examples seen.
        judgement: the last one, on photographs held back; names as in `cluster.judge`.
    """

    weights: str
    samples: int
    judgement: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)


def train(settings: TrainSettings) -> Trained:
    """Train, or go on with a run, or say what a finished one left.

    Raises:
        UsageError: settings that contradict each other, or those of another run.
        MissingInput: no photographs.
        PromptImlError: training failed more often than `MAX_FAILURES`.
    """
    output = storage.canonical(settings.output)
    settings = settings.model_copy(update={"output": output})
    _check(settings)
    _bind(settings)
    if not storage.exists(f"{output}/{WEIGHTS}"):
        workers = settings.max_workers or settings.workers
        with ray_session(settings.address, None if settings.gpus else workers):
            _fit(settings)
    *_, last = read_curves(f"{output}/{CURVES}")
    judgement = {name: float(value) for name, value in last.items() if name != "samples"}
    return Trained(f"{output}/{WEIGHTS}", int(last["samples"]), judgement)


def _check(settings: TrainSettings) -> None:
    try:
        photos = list_photos(Path(settings.photos))
    except FileNotFoundError as error:
        raise MissingInput(f"{settings.photos}: no photographs ({error.filename})") from error
    if not photos:
        raise MissingInput(f"{settings.photos}: no photographs")
    if settings.max_workers is not None and settings.max_workers < settings.workers:
        raise UsageError("--max-workers is less than --workers")
    if settings.samples < settings.batch:
        raise UsageError(f"--samples {settings.samples} is less than a batch of {settings.batch}")
    start_network(settings)


def _bind(settings: TrainSettings) -> None:
    """One folder, one run: another configuration is refused."""
    uri = f"{settings.output}/{CONFIG}"
    fields = settings.model_dump(exclude=PLACE)
    storage.create_once(uri, json.dumps(fields, indent=2).encode())
    bound = json.loads(storage.read_bytes(uri))
    if other := [name for name in fields if fields[name] != bound.get(name)]:
        raise UsageError(f"{settings.output} holds a run with other {', '.join(other)}")


def _fit(settings: TrainSettings) -> None:
    quiet_ray_data()
    scheme, path = _split(settings.output)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings.model_dump(),
        torch_config=TorchConfig(backend="nccl" if settings.gpus else "gloo"),
        scaling_config=_scaling(settings),
        run_config=RunConfig(
            name=RUN,
            storage_path=path,
            storage_filesystem=_filesystem(scheme),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=BEST_BY),
            callbacks=[Curves(settings.output)],  # type: ignore[list-item]  # V2's
        ),
        # A callable: asked again whenever processes start anew, so that what was seen before
        # the checkpoint is not seen again.
        datasets={"examples": lambda: examples(settings, _seen(settings))},
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise PromptImlError(f"training failed: {error}") from error
    with _chosen(result, settings).as_directory() as folder:
        tensors = network_tensors(load_file(Path(folder) / FILE))
    storage.create_once(f"{settings.output}/{WEIGHTS}", save(tensors))


def _chosen(result: Result, settings: TrainSettings) -> Checkpoint:
    """The last, which the falling rate has settled; where a run may stop early, the best."""
    chosen: Checkpoint | None = result.checkpoint
    if settings.patience and result.best_checkpoints:
        chosen, _ = max(result.best_checkpoints, key=lambda kept: float(kept[1][BEST_BY]))
    if chosen is None:
        raise PromptImlError("training ended without a checkpoint")
    return chosen


def _seen(settings: TrainSettings) -> int:
    """Examples before the newest report."""
    reports = read_curves(f"{settings.output}/{CURVES}")
    return int(reports[-1]["samples"]) if reports else 0


def _scaling(settings: TrainSettings) -> ScalingConfig:
    """Fixed, or elastic between `workers` and `max_workers`."""
    resources = {"GPU": 1.0, "CPU": 1.0} if settings.gpus else {"CPU": TRAINING_CPUS}
    least, most = settings.workers, settings.max_workers or settings.workers
    cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    if least > cpus:
        raise UsageError(
            f"{least} training processes need as many CPUs and the cluster has {cpus:g}: "
            "lower --workers, or add nodes"
        )
    return ScalingConfig(
        num_workers=least if least == most else (least, most),  # type: ignore[arg-type]  # V2's
        use_gpu=settings.gpus,
        resources_per_worker=resources,
    )


def _split(uri: str) -> tuple[str, str]:
    if storage.is_s3(uri):
        return "s3", uri.removeprefix("s3://")
    return "file", str(storage.local_path(uri))


def _filesystem(scheme: str) -> pyarrow.fs.FileSystem | None:
    if scheme == "file":
        return None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
