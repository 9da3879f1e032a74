"""Settings of this room's commands."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field
from pydantic_settings import SettingsConfigDict

from prompt_iml.pipeline.settings import Command, ScanSettings

# Of the paper's ablation: one branch alone; both added; added after alignment; fused by deformable
# attention without alignment; the whole network.
Variant = Literal["semantic", "high_frequency", "add", "align", "fuse", "full"]


class TrainSettings(Command):
    """Train the network, or only its prompts, on forgeries made from photographs."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml train")

    photos: str
    """Folder of authentic photographs: camera/, camera.csv, coco/."""
    output: str
    """Folder for checkpoints, curves and weights; local or s3://."""
    what: Literal["all", "prompts"] = "all"
    """Train everything but the frozen branch, or only the prompts."""
    start: str | None = None
    """Model (name or folder) or weights file to start from; none given: random weights."""
    semantic: str | None = None
    """Weights of the frozen branch, made by `python -m prompt_iml.cluster.training.distill`, or
    with the names of an official Swin's; none given: those of `start`."""
    prompt_set: str | None = None
    """File of a prompt set to start from; none given: those of `start`."""
    labels: str | None = None
    """Parquet of reviewers' labels to mix in."""
    preset: str = "prompt-iml-micro"
    """Shape of the network, where `start` does not tell."""
    fusion: Variant = "full"
    """Variant of the network to train: one branch alone, the branches added, with alignment or
    deformable fusion only, or the whole network."""
    prompts: int | None = Field(None, ge=0)
    """Prompts a block, where `start` does not tell; for ablations."""
    grow: bool = False
    """Add what `preset` has and the model of `start` lacks; it begins as what changes nothing."""
    samples: int = Field(50_000, ge=1)
    """Examples to see."""
    batch: int = Field(8, ge=1)
    """Examples a step, all workers together."""
    peak: float = Field(1.5e-3, gt=0)
    """Highest learning rate."""
    patience: int = Field(0, ge=0)
    """Stop early after so many judgements without a better one; 0: never."""
    workers: int = Field(1, ge=1)
    """Training processes; with max_workers, the least."""
    max_workers: int | None = Field(None, ge=1)
    """As many as there is room for, up to this, while nodes come and go."""
    gpus: bool = False
    """A GPU each, and NCCL; else CPUs and Gloo."""
    judge_every: int = Field(2000, ge=1)
    """Samples between two judgements, each with a checkpoint."""
    judged: int = Field(64, ge=1)
    """Held-back examples of a judgement."""
    seed: int = 0
    """Of weights and examples."""
    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""


class RetrainSettings(Command):
    """Tune the prompts on reviewers' labels, and promote them if no test gets worse."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml retrain")

    photos: str
    """Folder of authentic photographs: camera/, camera.csv, coco/."""
    labels: str
    """Parquet of reviewers' labels: uri, member, label, mask; local or s3://."""
    registry: str
    """Registry of prompt sets, local or s3://."""
    output: str
    """Folder for checkpoints, curves and weights; local or s3://."""
    sets: list[str] = Field(min_length=1)
    """Fixed test sets, which must not get worse: CSV with the columns image and mask."""
    model: str = "prompt-iml-micro"
    """Base model, a name or a folder: what is frozen."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime that the tests run in."""
    margin: float = Field(0.02, ge=0, le=1)
    """Pixel F1 and image AUC may fall by so much in each set."""
    fpr_margin: float = Field(0.01, ge=0, le=1)
    """The false-positive rate may rise by so much in each set."""
    max_fpr: float = Field(0.05, ge=0, le=1)
    """Above this false-positive rate it may not rise at all."""
    gain: float = Field(0.005, ge=-1, le=1)
    """Pixel F1 or image AUC on the labels held back must rise by so much, and by more than one
    image can move it; -1: need not."""
    limit: int | None = Field(None, ge=1)
    """Judge at most N images of each set."""
    samples: int = Field(20_000, ge=1)
    """Examples to train on."""
    batch: int = Field(8, ge=1)
    """Examples a step, all workers together."""
    peak: float = Field(1.5e-3, gt=0)
    """Highest learning rate."""
    workers: int = Field(1, ge=1)
    """Training processes."""
    gpus: bool = False
    """A GPU each, and NCCL; else CPUs and Gloo."""
    seed: int = 0
    """Of the examples."""
    lease_seconds: float = Field(600, gt=0)
    """A cycle that gave no sign for so long may be taken over by another."""
    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""


class SubmitSettings(ScanSettings):
    """Scan on a Ray cluster, as a job of it; the same command attaches, or resumes."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml submit")

    address: str
    """The cluster's Jobs API, say http://head:8265; its token comes from RAY_AUTH_TOKEN."""
    working_dir: str | None = None
    """Folder that travels to the cluster and is the job's working directory."""
    wait: bool = True
    """Show the job's log, and exit as the scan does; else return when the job is submitted."""


class EndpointSettings(Command):
    """What an endpoint runs and takes: of `prompt-iml serve`, or `args` in a Serve config."""

    model: str = "prompt-iml-micro"
    """Name of a packaged model, or the path of a model folder."""
    engine: Literal["auto", "onnxruntime", "openvino", "torch", "tensorrt"] = "auto"
    """Runtime of the network."""
    registry: str | None = None
    """Registry of prompt sets, local or s3://; none given: the prompts the model comes with."""
    prompts: str = "current"
    """Prompt set of the registry: `current`, looked up once when it is deployed, or an id."""
    max_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=1)
    """Larger bodies are refused (413) before they are read, say 64MiB."""
    max_pixels: int = Field(210_000_000, ge=1)
    """Larger images fail as too_large, before they are decoded, which takes 10 bytes a pixel."""
    image_timeout: float = Field(60.0, gt=0)
    """Seconds that one image may take to decode, or one run of the network."""
    min_replicas: int = Field(1, ge=1)
    """Replicas, each with an engine, at the least."""
    max_replicas: int = Field(1, ge=1)
    """Replicas at the most; more are added while requests wait."""
    actor_cpus: int = Field(1, ge=1)
    """CPUs of each replica, and threads of its engine."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each replica; below 1, replicas share one. For engines that run on GPUs."""
    max_queued: int = Field(32, ge=1)
    """Requests that wait for a replica at the most; further ones are told to come again (503)."""
    require_token: bool = False
    """Do not start where PROMPT_IML_SERVE_TOKEN is not set."""


class ServeSettings(EndpointSettings):
    """Answer images posted over HTTP with what a scan would say of them, until a signal."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml serve")

    host: str = "127.0.0.1"
    """Address to listen at, on each node that has a replica."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen at."""
    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""
