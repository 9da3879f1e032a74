"""What `prompt-iml build` made, kept with how it compared: plans by all that shapes them.

A `BlobCache` holds the bytes, so a plan is read only from a folder that nobody else can write to,
and only when its digest is right: deserialising a plan runs what is in it. Two blobs a build: the
plans under their key, and which key is current for a model on a machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prompt_iml.engine.model.folder import Model, file_digest
from prompt_iml.engine.runtimes.blob_cache import BlobCache
from prompt_iml.engine.runtimes.parity import Parity

VERSION = 1  # of what builds plans: counts up when all must be built anew

Precision = Literal["float32", "float16", "bfloat16"]
Plugin = Literal["own", "none"]
Tile = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What shapes plans, besides the model and the machine.

    Attributes:
        tiles: (height, width), one plan each.
        batches: sizes of a batch, ascending, each an optimisation profile.
        precision: of all but the islands (`engine.build.precision`).
        plugin: for the deformable attention, as `engine.build.graph` has them.
    """

    tiles: tuple[Tile, ...]
    batches: tuple[int, ...]
    precision: Precision = "float16"
    plugin: Plugin = "own"

    @property
    def short_precision(self) -> str:
        """As engines name it."""
        return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[self.precision]


@dataclass(frozen=True, slots=True)
class Built:
    """Plans and what is known of them.

    Attributes:
        plans: by tile.
        precision: short: `f16`.
        about: JSON: recipe, machine, comparison.
    """

    plans: Mapping[Tile, bytes]
    precision: str
    about: Mapping[str, Any]


def plan_key(model: Model, recipe: Recipe, machine: Sequence[str]) -> str:
    """sha256 of all that shapes plans; `machine` as `engine.runtimes.tensorrt.machine` has it."""
    return _digest("plans", model, machine, asdict(recipe))


def store(
    cache: BlobCache,
    model: Model,
    recipe: Recipe,
    machine: Sequence[str],
    plans: Mapping[Tile, bytes],
    parity: Parity,
) -> str:
    """Keep plans that passed, and make them current. Returns their key.

    Raises:
        ValueError: they did not pass.
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
    cache.write(key, b"\n".join([json.dumps(about).encode(), b"".join(plans.values())]))
    cache.write(_digest("current", model, machine), key.encode())
    return key


def load(cache: BlobCache, model: Model, recipe: Recipe, machine: Sequence[str]) -> Built | None:
    """The plans of a recipe, or None when there are none whole."""
    return _read(cache, plan_key(model, recipe, machine))


def current(cache: BlobCache, model: Model, machine: Sequence[str]) -> Built | None:
    """The plans that were stored last for this model on such a machine, or None."""
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


def _digest(what: str, model: Model, machine: Sequence[str], more: Any = None) -> str:
    made_of = [VERSION, what, model.sha256, file_digest(model.graph), list(machine), more]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
