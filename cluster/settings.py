"""Settings of the commands that train, serve and submit."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator
from pydantic_settings import CliSuppress

from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.settings import (
    AccessFlags,
    EngineFlags,
    LimitFlags,
    LookFlags,
    RayFlags,
    RegistryFlags,
    ScanSettings,
)

# Variants of the paper's ablation: one branch alone; the branches added; added after alignment;
# fused by deformable attention without alignment; the whole network.
Variant = Literal["semantic", "high_frequency", "add", "align", "fuse", "full"]

# Name of a host, which no IP address is, and perhaps a port.
HOST = r"([a-z0-9-]+\.)*[a-z][a-z0-9-]*(:[0-9]{1,5})?"


class TrainingFlags(AccessFlags, RayFlags):
    """Flags of the commands that train."""

    photos: str
    """Folder of authentic photographs: camera/, camera.csv, coco/ and perhaps web/, web.csv."""
    negatives: str | None = None
    """Folder of authentic pictures that are no photographs, such as screenshots and scans, with a
    CSV file of the same name beside it."""
    autoencoders: str | None = None
    """Folder of autoencoders for generated regions, made by `python -m
    prompt_iml.cluster.pretraining.autoencoders`; without it, no region is generated."""
    output: str
    """Folder for checkpoints, curves and weights, local or s3://."""
    samples: int = Field(50_000, ge=1)
    """Number of examples to train on."""
    batch: int = Field(8, ge=1)
    """Examples in one step, over all workers."""
    learning_rate: float = Field(1.5e-3, gt=0)
    """Highest learning rate."""
    workers: int = Field(1, ge=1)
    """Number of training processes; with --max-workers, the smallest number."""
    gpus: bool = False
    """Give each training process a GPU and use NCCL, instead of CPUs and Gloo."""
    seed: int = 0
    """Seed of the initial weights and the generated examples."""

    @property
    def own_folders(self) -> list[str | None]:
        """Return the folder of the training."""
        return [self.output]

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.samples < self.batch:
            raise UsageError(f"--samples {self.samples} is less than one --batch of {self.batch}")
        return self

    def check(self) -> None:
        """Check that the photographs and the output's parent exist, and read the autoencoders."""
        from prompt_iml.pipeline.checks import check_output, find_folder
        from prompt_iml.pipeline.storage import storage

        super().check()
        uri = storage.canonical(self.output)
        if not storage.is_local(uri) and not storage.is_s3(uri):  # what Ray Train is given
            raise UsageError(f"--output {self.output}: use a local folder or s3://bucket/key")
        find_folder(self.photos)
        if self.autoencoders:  # whose module imports torch, which takes seconds
            from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders

            for held_back in (False, True):
                read_autoencoders(self.autoencoders, held_back)
        check_output(self.output)


class TrainSettings(TrainingFlags):
    """Train the network, or only its prompts, on manipulations generated from photographs."""

    renamed: ClassVar[dict[str, str]] = {
        "what": "train",
        "semantic": "semantic_weights",
        "grow": "add_new_parts",
        "peak": "learning_rate",
        "judge_every": "eval_every",
        "judged": "eval_examples",
    }

    train: Literal["all", "prompts"] = "all"
    """Train everything except the frozen branch, or only the prompts."""
    start: str | None = None
    """Model (name or folder) or weights file to start from; without it, random weights."""
    semantic_weights: str | None = None
    """Weights of the frozen branch, made by `python -m prompt_iml.cluster.pretraining.distill`
    or with the names of an official Swin; without them, those of --start."""
    prompt_set: str | None = None
    """Prompt set file to start from; without it, the prompts of --start."""
    labels: str | None = None
    """Labelled images to add to the examples: a table, a JSON list, a COCO file, a folder, or a
    scan's output with reviews."""
    preset: str = "prompt-iml-micro"
    """Shape of the network, unless --start names a model."""
    fusion: Variant = "full"
    """Variant of the network to train: one branch alone, the branches added, with alignment or
    deformable fusion only, or the whole network."""
    prompts: int | None = Field(None, ge=0)
    """Number of prompts per block, unless --start names a model; for ablations."""
    add_new_parts: bool = False
    """Add the parts that --preset has and the model of --start lacks; they begin without effect."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations without a better F1; with 0, never stop early."""
    max_workers: int | None = Field(None, ge=1)
    """Largest number of training processes, started and stopped as nodes join and leave."""
    eval_every: int = Field(2000, ge=1)
    """Number of examples between two evaluations; each evaluation saves a checkpoint."""
    eval_examples: int = Field(64, ge=1)
    """Number of held-back examples in an evaluation."""

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.max_workers is not None and self.max_workers < self.workers:
            raise UsageError(f"--max-workers {self.max_workers} is less than --workers")
        return self

    def check(self) -> None:
        """Check that the labels exist."""
        from prompt_iml.pipeline.checks import find_inputs

        super().check()
        find_inputs([self.labels] if self.labels else [])


class RetrainSettings(EngineFlags, TrainingFlags):
    """Tune the prompts on reviewers' labels and promote them if no test gets worse."""

    renamed: ClassVar[dict[str, str]] = {
        "sets": "eval_sets",
        "gain": "min_gain",
        "peak": "learning_rate",
    }

    labels: str
    """Reviewers' labels: a scan's output with reviews, a table, a JSON list, a COCO file or a
    folder, local or s3://."""
    registry: str
    """Registry of prompt sets, local or s3://."""
    eval_sets: list[str] = Field(min_length=1)
    """Test sets that must not get worse, in any form that `evaluate` reads."""
    margin: float = Field(0.02, ge=0, le=1)
    """Largest fall of pixel F1 and image AUC allowed in each set."""
    fpr_margin: float = Field(0.01, ge=0, le=1)
    """Largest rise of the false-positive rate allowed in each set."""
    max_fpr: float = Field(0.05, ge=0, le=1)
    """False-positive rate above which no rise is allowed."""
    min_gain: float = Field(0.005, ge=-1, le=1)
    """Least rise of pixel F1 or image AUC on the held-back labels, which must also exceed the
    effect of a single image; with -1, no rise is needed."""
    limit: int | None = Field(None, ge=1)
    """Evaluate at most N images of each set."""
    samples: int = Field(20_000, ge=1)
    """Number of examples to train on."""
    lease_seconds: float = Field(600, gt=0, le=7 * 24 * 3600)
    """Seconds without a sign of life of a cycle after which another one may take over; at most a
    week."""

    @property
    def own_folders(self) -> list[str | None]:
        """Return the folder of the training and the registry."""
        return [self.output, self.registry]

    def check(self) -> None:
        """Check that the labels and the test sets exist."""
        from prompt_iml.pipeline.checks import find_inputs

        super().check()
        find_inputs([self.labels, *self.eval_sets])


class SubmitSettings(ScanSettings):
    """Scan on a Ray cluster as a job; the same command attaches to it or resumes it."""

    output: str
    """Folder for the results: s3://, gs://, az://, or an absolute path that every node has."""
    # A job always has an output, and these two are for scans without one.
    json_lines: CliSuppress[bool] = False
    """Print each verdict as a JSON object; a job refuses it."""
    overlay: CliSuppress[str | None] = None
    """Draw the masks over the pictures; a job refuses it."""
    address: str
    """Jobs API of the cluster, such as http://head:8265; its token is taken from RAY_AUTH_TOKEN."""
    working_dir: str | None = None
    """Folder to upload as the job's working directory."""
    wait: bool = True
    """Show the job's log and exit as the scan does; otherwise return once the job is submitted."""

    def check(self) -> None:
        """Check nothing: inputs, model and engine are those of the cluster's nodes."""


class EndpointSettings(RegistryFlags, LookFlags, LimitFlags):
    """Settings of an endpoint, as flags of `prompt-iml serve` or as `args` in a Serve config."""

    max_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=1)
    """Larger request bodies are refused (413) before they are read, for example 64MiB."""
    image_timeout: float = Field(60.0, gt=0)
    """Seconds that decoding one image, or one run of the network, may take."""
    min_replicas: int = Field(1, ge=1)
    """Least number of replicas; each has an engine of its own."""
    max_replicas: int = Field(1, ge=1)
    """Largest number of replicas; more are started while requests wait."""
    actor_cpus: int = Field(1, ge=1)
    """CPUs of each replica, and threads of its engine."""
    actor_gpus: float = Field(0, ge=0)
    """GPUs of each replica, for engines that run on GPUs; below 1, replicas share a GPU."""
    max_queued: int = Field(32, ge=1)
    """Largest number of requests that wait for a replica; more are refused (503)."""
    max_images: int = Field(16, ge=1)
    """Largest number of images in one request; more are refused (400)."""
    url_hosts: list[str] = Field([])
    """Hosts, as HOST or HOST:PORT, from which a request may have an image fetched over HTTPS;
    without any, requests with a URL are refused (403)."""
    require_token: bool = False
    """Refuse to start unless PROMPT_IML_SERVE_TOKEN is set."""

    @field_validator("url_hosts")
    @classmethod
    def _check_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(HOST, host):
                raise UsageError(f"--url-hosts {host}: give the name of a host, such as a.example")
            if not 1 <= int(host.partition(":")[2] or 443) <= 65535:
                raise UsageError(f"--url-hosts {host}: give a port from 1 to 65535")
        return hosts


class ServeSettings(EndpointSettings, RayFlags):
    """Answer images posted over HTTP with the result of a scan, until a signal ends it."""

    host: str = "127.0.0.1"
    """Address to listen on, on each node that has a replica."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
