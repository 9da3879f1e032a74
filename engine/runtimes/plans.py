"""Storage of the TensorRT plans that `prompt-iml build` made, each with its comparison.

A `BlobCache` holds the bytes, so a plan is read only from a folder that no other user can write to,
and only when its digest is right: deserialising a plan runs code in it. A build stores two blobs:
the plans, under a key of everything that they depend on, and that key itself, as the current one
for a model on a machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.blob_cache import VARIABLE, BlobCache
from prompt_iml.engine.runtimes.parity import Parity

VERSION = 1  # of the builder; a higher one makes every stored plan out of date

Precision = Literal["float32", "float16", "bfloat16"]
Plugin = Literal["own", "none"]
Tile = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a build, besides the model and the machine.

    Attributes:
        tiles: (height, width) in pixels; one plan each.
        batches: batch sizes, ascending; each has an optimisation profile.
        precision: precision of all operators but those that stay in float32
            (`engine.build.precision`).
        plugin: implementation of the deformable attention, see `engine.build.graph`.
    """

    tiles: tuple[Tile, ...]
    batches: tuple[int, ...]
    precision: Precision = "float16"
    plugin: Plugin = "own"

    @property
    def short_precision(self) -> str:
        """The precision in the names of engines."""
        return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[self.precision]


@dataclass(frozen=True, slots=True)
class Built:
    """Plans that were built and passed the comparison.

    Attributes:
        plans: serialised plans by tile.
        precision: as `Recipe.short_precision`: `f16`.
        about: JSON with recipe, machine and comparison.
    """

    plans: Mapping[Tile, bytes]
    precision: str
    about: Mapping[str, Any]


def plan_key(model: Model, recipe: Recipe, machine: Sequence[str]) -> str:
    """Return the sha256 of all that plans depend on; `machine` as in `engine.runtimes.tensorrt`."""
    return _digest("plans", model, machine, asdict(recipe))


def store(
    cache: BlobCache,
    model: Model,
    recipe: Recipe,
    machine: Sequence[str],
    plans: Mapping[Tile, bytes],
    parity: Parity,
) -> str:
    """Store plans that passed the comparison, make them current, and return their key.

    Raises:
        ValueError: the plans did not pass.
        UsageError: the cache could not keep them, or will not give them back.
    """
    if not parity.passed:
        raise ValueError(f"plans that did not pass are not stored: {parity.worst}")
    about = {
        "model": model.id,
        "machine": list(machine),
        "recipe": asdict(recipe),
        "parity": parity.to_json(),
        "tiles": [[*tile, len(plan)] for tile, plan in plans.items()],
    }
    key = plan_key(model, recipe, machine)
    blobs = {
        key: b"\n".join([json.dumps(about).encode(), b"".join(plans.values())]),
        _digest("current", model, machine): key.encode(),
    }
    for name, blob in blobs.items():
        cache.write(name, blob)
    # A cache passes over a folder that it cannot write to or does not trust.
    if any(cache.read(name) != blob for name, blob in blobs.items()):
        raise UsageError(
            f"cannot keep the engine in {cache.folder}: set {VARIABLE} to a folder that only you "
            "can write to"
        )
    return key


def load(cache: BlobCache, model: Model, recipe: Recipe, machine: Sequence[str]) -> Built | None:
    """Return the plans of a recipe, or None when they are missing or damaged."""
    return _read(cache, plan_key(model, recipe, machine))


def current(cache: BlobCache, model: Model, machine: Sequence[str]) -> Built | None:
    """Return the plans that were stored last for this model on such a machine, or None."""
    key = cache.read(_digest("current", model, machine))
    return None if key is None else _read(cache, key.decode())


def _read(cache: BlobCache, key: str) -> Built | None:
    blob = cache.read(key)
    if blob is None:
        return None
    header, _, rest = blob.partition(b"\n")
    about, plans, start = json.loads(header), dict[Tile, bytes](), 0
    for height, width, size in about["tiles"]:
        plans[height, width] = rest[start : start + size]
        start += size
    recipe = Recipe(**about["recipe"])
    return Built(plans, recipe.short_precision, about)


def _digest(kind: str, model: Model, machine: Sequence[str], more: Any = None) -> str:
    made_of = [VERSION, kind, model.sha256, model.graph_sha256, list(machine), more]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
