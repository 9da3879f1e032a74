"""Prompt sets: the small part of a model that re-training changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_iml.engine.errors import DamagedModel, UsageError
from prompt_iml.engine.network.config import NetworkConfig

PREFIX = "prompts."  # of their names among the network's parameters
_METADATA = "prompt_set"  # one key: safetensors writes several in no fixed order


@dataclass(frozen=True, slots=True, eq=False)
class PromptSet:
    """Prompts of every block of the semantic branch; an input of every engine.

    Attributes:
        tensors: (depth, n_p, C) float32, one a stage.
        parent: id of the set that re-training started from, or None.
        metrics: what was measured when the set was made.
    """

    tensors: tuple[NDArray[np.float32], ...]
    parent: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """First 16 hex digits of `sha256`, as rows name the set."""
        return self.sha256[:16]

    @property
    def sha256(self) -> str:
        """Of shapes and values, hexadecimal: equal for equal prompts, whoever made them."""
        digest = hashlib.sha256()
        for tensor in self.tensors:
            digest.update(repr(tensor.shape).encode())
            digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
        return digest.hexdigest()


def load_prompts(path: Path) -> PromptSet:
    """Read a prompt set. Raises `DamagedModel` when the file is not what `save_prompts` wrote."""
    try:
        with safe_open(path, framework="numpy") as file:
            stored = json.loads(file.metadata()[_METADATA])
            tensors = tuple(file.get_tensor(_key(stage)) for stage in range(len(file.keys())))
        prompts = PromptSet(tensors, stored["parent"], stored["metrics"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedModel(f"{path} is not a prompt set ({error}): fetch it again") from error
    if prompts.id != stored["id"]:
        raise DamagedModel(f"{path} names itself {stored['id']} and holds {prompts.id}")
    return prompts


def save_prompts(prompts: PromptSet, path: Path) -> None:
    """Write a prompt set: one file, its id, parent and metrics in the metadata."""
    path.write_bytes(prompt_bytes(prompts))


def prompt_bytes(prompts: PromptSet) -> bytes:
    """The bytes of a prompt set's file: the same set, parent and metrics, the same bytes."""
    stored = {"id": prompts.id, "parent": prompts.parent, "metrics": dict(prompts.metrics)}
    return save(parameters(prompts), {_METADATA: json.dumps(stored, sort_keys=True)})


def parameters(prompts: PromptSet) -> dict[str, NDArray[np.float32]]:
    """The tensors under their names among the network's parameters."""
    return {_key(stage): tensor for stage, tensor in enumerate(prompts.tensors)}


def graph_inputs(prompts: PromptSet, config: NetworkConfig) -> dict[str, NDArray[np.float32]]:
    """The tensors under their names as inputs of the exported graph; raises as `check_fits`."""
    check_fits(prompts, config)
    return {f"prompts_{stage}": tensor for stage, tensor in enumerate(prompts.tensors)}


def check_fits(prompts: PromptSet, config: NetworkConfig) -> None:
    """Raise `UsageError` unless the set has the shapes this network takes."""
    swin = config.swin
    expected = [
        (depth, config.prompts, channels)
        for depth, channels in zip(swin.depths, swin.stage_channels, strict=True)
    ]
    shapes = [tensor.shape for tensor in prompts.tensors]
    if shapes != expected:
        raise UsageError(f"prompt set {prompts.id} is {shapes}, {config.name} takes {expected}")


def _key(stage: int) -> str:
    return f"{PREFIX}{stage}"
