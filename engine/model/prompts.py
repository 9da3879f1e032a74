"""Prompt sets: the small part of a model that re-training changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prompt_iml.engine.errors import DamagedModel, UsageError
from prompt_iml.engine.network.config import NetworkConfig

PREFIX = "prompts."  # begins a prompt tensor's name among the network's parameters
_METADATA = "prompt_set"  # a single key, because safetensors writes several in no fixed order


@dataclass(frozen=True, slots=True, eq=False)
class PromptSet:
    """Prompts of every block that takes some; an input of every engine.

    Attributes:
        tensors: (K, P, C) float32 for each layer, as `NetworkConfig.prompt_shapes` lists them: K
            blocks, P prompts of a block, C channels.
        parent: id of the set that re-training started from, or None.
        metrics: measurements of the evaluation when the set was made, by name.
    """

    tensors: tuple[NDArray[np.float32], ...]
    parent: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The set's name in rows and in a registry: the first 16 hex digits of `sha256`."""
        return self.sha256[:16]

    @property
    def sha256(self) -> str:
        """Digest of shapes and values, 64 hex digits: equal prompts have equal digests."""
        digest = hashlib.sha256()
        for tensor in self.tensors:
            digest.update(repr(tensor.shape).encode())
            digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
        return digest.hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "this file") -> PromptSet:
        """Read a set that `to_bytes` wrote.

        Args:
            data: the bytes of a safetensors file.
            name: name of the data in error messages.

        Raises:
            DamagedModel: the data is no prompt set, or its id is not that of its tensors.
        """
        try:
            tensors, stored = load(data), json.loads(_metadata(data)[_METADATA])
            ordered = tuple(tensors[_key(stage)] for stage in range(len(tensors)))
            prompts = cls(ordered, stored["parent"], stored["metrics"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedModel(f"{name} is not a prompt set ({error}): fetch it again") from error
        if prompts.id != stored["id"]:
            raise DamagedModel(f"{name} names itself {stored['id']} and holds {prompts.id}")
        return prompts

    def to_bytes(self) -> bytes:
        """Return a safetensors file: the same set, parent and metrics give the same bytes."""
        stored = {"id": self.id, "parent": self.parent, "metrics": dict(self.metrics)}
        return save(parameters(self), {_METADATA: json.dumps(stored, sort_keys=True)})


def load_prompts(path: Path) -> PromptSet:
    """Read a prompt set's file; raises `DamagedModel` as `PromptSet.from_bytes`."""
    try:
        return PromptSet.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise DamagedModel(f"{path} cannot be read ({error}): fetch it again") from error


def save_prompts(prompts: PromptSet, path: Path) -> None:
    """Write a prompt set's file: tensors, and id, parent and metrics in the metadata."""
    path.write_bytes(prompts.to_bytes())


def parameters(prompts: PromptSet) -> dict[str, NDArray[np.float32]]:
    """Return the tensors under their names among the network's parameters."""
    return {_key(stage): tensor for stage, tensor in enumerate(prompts.tensors)}


def graph_inputs(prompts: PromptSet, config: NetworkConfig) -> dict[str, NDArray[np.float32]]:
    """Return the tensors under their names as graph inputs; raises as `check_fits`."""
    check_fits(prompts, config)
    return {f"prompts_{stage}": tensor for stage, tensor in enumerate(prompts.tensors)}


def check_fits(prompts: PromptSet, config: NetworkConfig) -> None:
    """Raise `UsageError` unless the set has the shapes this network takes."""
    expected = config.prompt_shapes
    shapes = [tensor.shape for tensor in prompts.tensors]
    if shapes != expected:
        raise UsageError(f"prompt set {prompts.id} is {shapes}, {config.name} takes {expected}")


def _key(stage: int) -> str:
    return f"{PREFIX}{stage}"


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: 8 bytes of length, then a JSON header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found
