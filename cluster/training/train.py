"""Training on Ray Train: `prompt-iml train`.

    photographs -> Ray Data: generators -> training processes (DDP) -> checkpoints -> weights

The output folder is the run: after a training process or the driver dies, the same command resumes
from the newest checkpoint in it.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import ray
import torch
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
from torch import Tensor

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.curves import CURVES, Curves, read_curves
from prompt_iml.cluster.training.examples import TRAINING_CPUS, examples, training_photos
from prompt_iml.cluster.training.loop import (
    FILE,
    Run,
    is_weights_file,
    network_tensors,
    start_network,
    train_worker,
)
from prompt_iml.cluster.training.rendezvous import FileConfig
from prompt_iml.engine.errors import MissingInput, PromptImlError, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.forgery.history import FRAME
from prompt_iml.pipeline.forgery.photos import can_donate
from prompt_iml.pipeline.scan.actors import quiet_ray_data
from prompt_iml.pipeline.scan.session import ray_session
from prompt_iml.pipeline.settings import AccessFlags
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import read_labels

RUN = "ray"  # Ray Train's own folder in the output
WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"  # the same, with the average of the weights over the last steps
CONFIG = "config.json"
MAX_FAILURES = 3
# Settings of glibc's malloc. A step frees and allocates the same large tensors again and again. A
# process that keeps them, instead of returning them each time, saves 14 % of a step on a CPU.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
BEST_BY = "f1"  # the field of a report that chooses the best checkpoint
# Settings that may change when a run resumes: they say where it runs and what it may read,
# and not what it learns.
PLACE = {"workers", "max_workers", "gpus", "address", "output", *AccessFlags.model_fields}


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a run.

    Attributes:
        weights: URI of the network's state dict with the prompts, safetensors.
        samples: number of examples seen.
        metrics: the last loss and evaluation; names as in `cluster.training.evaluate.Evaluation`.
    """

    weights: str
    samples: int
    metrics: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def train(settings: TrainSettings) -> Trained:
    """Train, resume a run, or return the result of a finished run.

    Raises:
        UsageError: the settings contradict each other, or the folder holds another run.
        MissingInput: there are no photographs to train on.
        PromptImlError: training failed more than `MAX_FAILURES` times.
    """
    output = storage.canonical(settings.output)
    settings = settings.model_copy(update={"output": output})
    _check(settings)
    _bind(settings)
    if not storage.exists(f"{output}/{WEIGHTS}"):
        workers = settings.max_workers or settings.workers
        with ray_session(settings.address, None if settings.gpus else workers) as private:
            _fit(_for_workers(settings), private)
    *_, last = read_curves(f"{output}/{CURVES}")
    metrics = {name: float(value) for name, value in last.items() if name != "samples"}
    return Trained(f"{output}/{WEIGHTS}", int(last["samples"]), metrics)


def _check(settings: TrainSettings) -> None:
    try:
        photos = training_photos(settings)
    except FileNotFoundError as error:
        raise MissingInput(
            f"--photos {settings.photos} has no photographs: {error.filename} is missing"
        ) from error
    for purpose, side in zip(("to train on", "to hold back"), photos, strict=True):
        if not any(can_donate(photo) for photo in side):
            raise MissingInput(
                f"--photos {settings.photos} has no photograph of {FRAME} pixels or more with "
                f"outlines of objects {purpose} (split by camera or name): add some"
            )
    if settings.labels:
        read_labels(settings.labels)
    start_network(settings)


def _bind(settings: TrainSettings) -> None:
    """Bind the output folder to these settings; raises `UsageError` if it has others."""
    uri = f"{settings.output}/{CONFIG}"
    fields = settings.model_dump(exclude=PLACE)
    storage.create_once(uri, json.dumps(fields, indent=2).encode())
    stored = json.loads(storage.read_bytes(uri))  # an earlier version may have used other names
    bound = {TrainSettings.renamed.get(name, name): value for name, value in stored.items()}
    if other := [name for name in fields if fields[name] != bound.get(name)]:
        raise UsageError(
            f"--output {settings.output} holds a run with other {', '.join(other)}: choose another "
            "folder"
        )


def _for_workers(settings: TrainSettings) -> TrainSettings:
    """Return the settings without relative paths, as training processes run in another folder."""
    names = ("labels", "semantic_weights", "prompt_set")
    given = {name: getattr(settings, name) for name in names}
    paths = {name: storage.canonical(path) for name, path in given.items() if path}
    folders = {name: getattr(settings, name) for name in ("photos", "negatives", "autoencoders")}
    paths |= {name: str(Path(path).absolute()) for name, path in folders.items() if path}
    if settings.start:
        paths["start"] = _absolute_start(settings.start)
    return settings.model_copy(update=paths)


def _absolute_start(start: str) -> str:
    return storage.canonical(start) if is_weights_file(start) else load_model(start).reference


def _fit(settings: TrainSettings, private: Path | None) -> None:
    quiet_ray_data()
    group = FileConfig(folder=str(private)) if private else TorchConfig()
    group.backend = "nccl" if settings.gpus else "gloo"
    scheme, path = _split(settings.output)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings.model_dump(),
        torch_config=group,
        scaling_config=_scaling(settings),
        run_config=RunConfig(
            name=RUN,
            storage_path=path,
            storage_filesystem=_filesystem(scheme),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=BEST_BY),
            worker_runtime_env={"env_vars": MALLOC},  # type: ignore[call-arg]  # V2's
            callbacks=[Curves(settings.output)],  # type: ignore[list-item]  # V2's
        ),
        # Ray Train calls it whenever processes restart; so examples before the checkpoint are
        # not seen again.
        datasets={"examples": lambda: examples(settings, _seen(settings))},
    )
    try:
        with _interruptible():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise PromptImlError(f"training failed: {error}") from error
    with _chosen(result, settings).as_directory() as folder:
        checkpoint = load_file(Path(folder) / FILE)
    tensors = network_tensors(checkpoint)
    average = tensors | network_tensors(checkpoint, "average.")
    _check_frozen(settings, average, tensors)
    storage.create_once(f"{settings.output}/{AVERAGE}", save(average))
    storage.create_once(f"{settings.output}/{WEIGHTS}", save(tensors))


def _check_frozen(settings: TrainSettings, *trained: Mapping[str, Tensor]) -> None:
    """Raise `PromptImlError` unless every frozen tensor of all is unchanged, bit for bit."""
    start = Run(start_network(settings), settings.train).network
    trains = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    frozen = {name: tensor for name, tensor in start.state_dict().items() if name not in trains}
    if moved := [
        name
        for name, value in frozen.items()
        if not all(torch.equal(value, tensors[name]) for tensors in trained)
    ]:
        raise PromptImlError(f"Training changed frozen weights: {', '.join(moved[:5])}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGINT, and restore the handler afterwards.

    Ray Train exits silently on SIGINT and leaves its own handler installed; that handler calls an
    actor that is gone, and so starts a new cluster.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _chosen(result: Result, settings: TrainSettings) -> Checkpoint:
    """Return the last checkpoint, or, for a run that may stop early, the best one."""
    chosen: Checkpoint | None = result.checkpoint
    if settings.patience and result.best_checkpoints:
        chosen, _ = max(result.best_checkpoints, key=lambda kept: float(kept[1][BEST_BY]))
    if chosen is None:
        raise PromptImlError("Training ended without a checkpoint.")
    return chosen


def _seen(settings: TrainSettings) -> int:
    """Return the number of examples seen before the newest report."""
    reports = read_curves(f"{settings.output}/{CURVES}")
    return int(reports[-1]["samples"]) if reports else 0


def _scaling(settings: TrainSettings) -> ScalingConfig:
    """Return a fixed number of processes, or an elastic range up to `max_workers`."""
    resources = {"GPU": 1.0, "CPU": 1.0} if settings.gpus else {"CPU": TRAINING_CPUS}
    least, most = settings.workers, settings.max_workers or settings.workers
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name in ("CPU", "GPU") if settings.gpus else ("CPU",):
        if least > available.get(name, 0):
            raise UsageError(
                f"{least} training processes need {least} {name}s and the cluster has "
                f"{available.get(name, 0):g}: lower --workers, or add nodes"
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
