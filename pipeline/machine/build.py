"""`prompt-iml build`: build a model's engine for this GPU, and store it if its outputs agree.

graph of fixed sizes -> float32 operators -> TensorRT's builder -> comparison of every output with
the reference, at batch 1 and the largest, on photographs and noise -> stored, or exit 3
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, Protocol

import numpy as np

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.runtimes import plans
from prompt_iml.engine.runtimes.blob_cache import PLAN, BlobCache
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.parity import TOLERANCES, Case, Parity, compare, noise
from prompt_iml.engine.runtimes.plans import Recipe, Tile
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.demo.photographs import PHOTOGRAPHS, photograph
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import BuildSettings


class Builder(Protocol):
    """Builder of plans, which it can also open.

    Attributes:
        machine: versions and hardware that plans depend on, see `engine.runtimes.tensorrt.machine`.
    """

    machine: Sequence[str]

    def build(self, model: Model, recipe: Recipe, tile: Tile, float32: frozenset[str]) -> bytes: ...

    def open(self, model: Model, recipe: Recipe, built: Mapping[Tile, bytes]) -> Engine: ...


class TensorRtBuilder(Builder):
    """Builder with TensorRT on the GPU of this machine.

    Raises:
        MissingDependency: TensorRT or the GPU is missing; the message names the fix.
    """

    def __init__(self) -> None:
        from prompt_iml.engine.runtimes.cuda_device import CudaDevice
        from prompt_iml.engine.runtimes.tensorrt import import_tensorrt, machine

        self._trt, self._device = import_tensorrt(), CudaDevice()
        self.machine = machine(self._trt, self._device)
        self._timing = b""  # cache of one tile size, for the next

    def build(self, model: Model, recipe: Recipe, tile: Tile, float32: frozenset[str]) -> bytes:
        """Build the plan of one tile size."""
        from prompt_iml.engine.build.builder import build_plan, graph_for

        if recipe.plugin == "own":
            from prompt_iml.engine.operator.tensorrt_plugin import register

            register()
        graph = graph_for(model, recipe, tile, float32)
        plan, self._timing = build_plan(
            self._trt, graph, recipe.batches, timing_cache=self._timing, log=log
        )
        return plan

    def open(self, model: Model, recipe: Recipe, built: Mapping[Tile, bytes]) -> Engine:
        """Open the engine that a scan would use."""
        from prompt_iml.engine.runtimes.overlap import OverlappingEngine
        from prompt_iml.engine.runtimes.tensorrt import TensorRtProgram

        program = TensorRtProgram(self._trt, built, recipe.short_precision)
        return OverlappingEngine(model, self._device, program)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a build.

    Attributes:
        parity: comparison with the reference.
        float32: operator types that stay in float32 besides the default nodes.
        seconds: duration of the build.
        key: key of the stored plans; None if they did not pass.
    """

    parity: Parity
    float32: frozenset[str]
    seconds: float
    key: str | None


def build(settings: BuildSettings, builder: Builder | None = None) -> Json:
    """Build the engine, unless it is stored, and compare it.

    Returns:
        `model`, `machine`, `stored`, and `parity` (`engine.runtimes.parity.Parity`); for a new
        build also `float32` and `seconds`.

    Raises:
        UsageError: the model or the settings are wrong, or a package is missing.
        PromptImlError: TensorRT cannot build.
    """
    model = load_model(settings.model)
    builder = TensorRtBuilder() if builder is None else builder
    recipe = recipe_for(model, settings)
    about = {"model": model.id, "machine": list(builder.machine)}
    if not settings.force and (
        built := plans.load(BlobCache(kind=PLAN), model, recipe, builder.machine)
    ):
        log(f"already built and compared: {built.about['parity']['worst']}")
        return {**about, "stored": True, "parity": built.about["parity"]}
    outcome = build_and_compare(model, recipe, builder)
    worst = outcome.parity.worst
    word = "stored" if outcome.key else f"not stored, tolerance {outcome.parity.tolerance:g}"
    log(f"{outcome.parity.engine} compared with {outcome.parity.reference}: {worst}: {word}")
    return {
        **about,
        "stored": outcome.key is not None,
        "float32": sorted(outcome.float32),
        "seconds": round(outcome.seconds, 1),
        "parity": outcome.parity.to_json(),
    }


def recipe_for(model: Model, settings: BuildSettings) -> Recipe:
    """Return the recipe: every tile size of the model's view, and batches halved down to 1."""
    sides = model.config.sides
    tiles = tuple((height, width) for height in sides for width in sides)
    halves = {settings.batch >> shift for shift in range(settings.batch.bit_length())}
    return Recipe(tiles, tuple(sorted(halves)), settings.precision, settings.plugin)


def build_and_compare(model: Model, recipe: Recipe, builder: Builder) -> Outcome:
    """Build every plan, compare, and store the plans if they pass."""
    from prompt_iml.engine.build.builder import float32_operators

    started = time.monotonic()
    smallest, *_ = recipe.tiles
    shown = photographs([smallest], [4])[0]
    float32, error = float32_operators(model, recipe, shown.batch)
    kept = f" with {', '.join(sorted(float32))} in float32" if float32 else ""
    log(f"error of {recipe.precision}{kept}, emulated: {error:.1e}")
    built = {}
    for size in recipe.tiles:
        log(f"building {model.id} for {size[0]}x{size[1]}, batches of {recipe.batches}")
        built[size] = builder.build(model, recipe, size, float32)
    parity = check_parity(builder.open(model, recipe, built), model, recipe)
    key = None
    if parity.passed:
        key = plans.store(BlobCache(kind=PLAN), model, recipe, builder.machine, built, parity)
    return Outcome(parity, float32, time.monotonic() - started, key)


def check_parity(engine: Engine, model: Model, recipe: Recipe) -> Parity:
    """Compare an engine with PyTorch, or with the default engine where there is no PyTorch."""
    reference = open_engine(model, "torch" if find_spec("torch") else "auto")
    sizes = sorted({recipe.batches[0], recipe.batches[-1]})
    cases = [*photographs(recipe.tiles, sizes), *noise(recipe.tiles, sizes)]
    return compare(engine, reference, cases, TOLERANCES[recipe.precision])


def photographs(tiles: Sequence[Tile], sizes: Sequence[int]) -> list[Case]:
    """Return cases of random crops of scikit-image's photographs, one per tile and batch size."""
    whole = [np.asarray(photograph(name)) for name in sorted(PHOTOGRAPHS)]
    random = np.random.default_rng(0)
    cases = []
    for (height, width), size in product(tiles, sizes):
        images = [_cut(whole[n % len(whole)], height, width, random) for n in range(size)]
        tables = random.integers(1, 60, (size, 64)).astype(np.float32)
        cases.append(Case("photographs", whole_pictures(np.stack(images), tables)))
    return cases


def _cut(pixels: Any, height: int, width: int, random: np.random.Generator) -> Any:
    """Return a random crop of this size; a smaller photograph is tiled."""
    rows, columns = -(-height // pixels.shape[0]), -(-width // pixels.shape[1])
    pixels = np.tile(pixels, (rows, columns, 1))
    y = int(random.integers(pixels.shape[0] - height + 1))
    x = int(random.integers(pixels.shape[1] - width + 1))
    return pixels[y : y + height, x : x + width]
