"""Settings of this room's commands."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from engine.config import Fusion
from pipeline.settings import Command


class TrainSettings(Command):
    """Train the network, or only its prompts, on forgeries made from photographs."""

    model_config = SettingsConfigDict(cli_prog_name="prompt-iml train")

    photos: str
    """Folder of authentic photographs: camera/, camera.csv, coco/."""
    output: str
    """Folder for checkpoints, curves and weights; local or any fsspec URI."""
    what: Literal["all", "prompts"] = "all"
    """Train everything but the frozen branch, or only the prompts."""
    start: str | None = None
    """Model (name or folder) or weights file to start from; none given: random weights."""
    semantic: str | None = None
    """Weights of the frozen branch, from cluster.distill; none given: those of `start`."""
    labels: str | None = None
    """Parquet of reviewers' labels to mix in."""
    preset: str = "prompt-iml-micro"
    """Shape of the network, where `start` does not tell."""
    fusion: Fusion = "full"
    """What of the two branches reaches the decoder; for ablations."""
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
    """Grow to so many training processes when there is room."""
    gpus: bool = False
    """A GPU each, and NCCL; else CPUs and Gloo."""
    judge_every: int = Field(2000, ge=1)
    """Samples between two judgements, each with a checkpoint."""
    seed: int = 0
    """Of weights and examples."""
    address: str = "auto"
    """Ray cluster: `local` starts one here, `auto` takes RAY_ADDRESS or else `local`."""
