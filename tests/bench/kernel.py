"""The operator alone, and the default engine with and without our kernel for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from prompt_iml.engine.detection.context import NEAR
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.operator.torch_op import reference
from prompt_iml.engine.runtimes.openvino import OpenVinoEngine
from tests.bench.rates import median_seconds, one_image
from tests.helpers.operator_model import operator_model

LEVELS = ((128, 128), (64, 64), (32, 32), (16, 16))  # 21,760 queries: each cell asks
HEADS, DEPTH, POINTS = 8, 32, 4
ROUNDS = 7
VECTORS = 64, 32, 16  # bytes


def operator_seconds(threads: int) -> dict[str, float]:
    """Seconds of one call, the median of rounds in which all take turns; points lie some four
    cells from their query's own place."""
    rng = np.random.default_rng(0)
    cells = sum(h * w for h, w in LEVELS)
    samples = (1, cells, HEADS, len(LEVELS), POINTS)
    value = rng.normal(size=(1, cells, HEADS, DEPTH)).astype(np.float32)
    sizes = np.array(LEVELS, np.int64)
    own = np.concatenate([_centres(h, w) for h, w in LEVELS])[None, :, None, None, None]
    cells_away = rng.normal(scale=4, size=(*samples, 2))
    locations = (own + cells_away / sizes[:, None, ::-1]).astype(np.float32)
    weights = rng.dirichlet(np.ones(16), samples[:3]).reshape(samples).astype(np.float32)
    out = np.empty((1, cells, HEADS * DEPTH), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(operator_model(len(LEVELS)).SerializeToString(), options)
    feeds = {"value": value, "sizes": sizes, "locations": locations, "weights": weights}
    tensors = [torch.from_numpy(array) for array in (value, locations, weights)]
    torch.set_num_threads(threads)
    ways: dict[str, Callable[[], object]] = {
        "our kernel": lambda: cpu.forward(value, sizes, locations, weights, out, threads),
        "ONNX Runtime, decomposed": lambda: session.run(None, feeds),
        "torch, grid_sample": lambda: reference(tensors[0], LEVELS, *tensors[1:]),
    }
    return median_seconds(ways, ROUNDS)


def _centres(height: int, width: int) -> NDArray[np.float64]:
    """(H*W, 2): x and y of each cell, 0..1."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([x, y], -1).reshape(-1, 2)


def search_seconds() -> dict[int, float]:
    """Seconds of one search for matches in a picture of 512x512, by bytes of the vectors.

    Half as long vectors should take about twice as long. Those of 32 bytes once took 50 times as
    long, because GCC made scalars of vectors that it could not keep in registers.
    """
    cells = np.random.default_rng(0).standard_normal((64, 64, 25)).astype(np.float32)
    cells /= np.linalg.norm(cells, axis=2, keepdims=True)
    ways = {longest: partial(cpu.best_matches, cells, NEAR, longest) for longest in VECTORS}
    return median_seconds(ways, ROUNDS)


def engine_seconds() -> dict[str, float]:
    """Seconds of one 512x512 image on one thread, as a scan actor has it."""
    model = load_model("prompt-iml-micro")
    batch = one_image()
    ours, decomposed = (OpenVinoEngine(model, 1, kernel) for kernel in (True, False))
    ways = {"with": partial(ours.run, batch), "without": partial(decomposed.run, batch)}
    return median_seconds(ways, ROUNDS)
