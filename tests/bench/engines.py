"""The CPU default beside other runtimes, and beside its own graph of an earlier commit."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.openvino import OpenVinoEngine, core
from prompt_iml.engine.runtimes.protocol import Batch
from prompt_iml.engine.runtimes.torch_cpu import TorchEngine
from tests.bench.rates import median_seconds

MODEL, EARLIER = "prompt-iml-micro", "c9512a1"
FILES = ("model.onnx", "model.safetensors")
ROOT = Path(__file__).parents[2]
DEFAULT, CONTEXT = "CPU default", "context of the picture"  # which once was in the graph

Way = Callable[[], object]


def engine_milliseconds(side: int, compiled: bool, rounds: int = 11) -> dict[str, float]:
    """Return CPU-milliseconds of one image on one thread, median of rounds in which all take turns.

    Args:
        side: of the image, pixels.
        compiled: also with `torch.compile`, which takes minutes.
        rounds: of one call each.
    """
    batch, ways = _noise(side), dict[str, Way]()
    ways[CONTEXT] = partial(whole_pictures, batch.image, batch.qtable)
    for kind, name in (("openvino", DEFAULT), ("onnxruntime", "ONNX Runtime")):
        ways[name] = partial(open_engine(load_model(MODEL), kind, 1).run, batch)
    ways |= _bfloat16(batch) | dict(_earlier(batch)) | _torch(batch, compiled)
    with threadpool_limits(1):  # NumPy's threads would wait, busy, on the account of who is next
        taken = median_seconds(ways, rounds, clock=time.process_time)
    return {name: 1e3 * each for name, each in taken.items()}


def _noise(side: int) -> Batch:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, side, side, 3), np.uint8)
    return whole_pictures(image, np.ones((1, 64), np.float32))


def _bfloat16(batch: Batch) -> dict[str, Way]:
    try:
        engine = OpenVinoEngine(load_model(MODEL), 1, precision="bfloat16")
    except UsageError as error:
        print(f"skipped: {error}")
        return {}
    return {"CPU default, bfloat16": partial(engine.run, batch)}


def _torch(batch: Batch, compiled: bool) -> dict[str, Way]:
    engines = {"PyTorch": TorchEngine(load_model(MODEL), 1)}
    if compiled:
        engines["PyTorch, compiled"] = TorchEngine(load_model(MODEL), 1)
        engines["PyTorch, compiled"]._network = torch.compile(  # type: ignore[assignment]
            engines["PyTorch, compiled"]._network
        )
    return {name: partial(engine.run, batch) for name, engine in engines.items()}


def _earlier(batch: Batch) -> Iterator[tuple[str, Way]]:
    """Yield the graph of `EARLIER` in OpenVINO, with our kernel and the default's options."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            shown = ["git", "-C", str(ROOT), "show", f"{EARLIER}:engine/models/{MODEL}/{name}"]
            done = subprocess.run(shown, capture_output=True, check=False)
            if done.returncode:
                print(f"skipped: the graph of {EARLIER}, which this checkout does not have")
                return
            (Path(folder) / name).write_bytes(done.stdout)
        runtime = core(kernel=True)
        graph = runtime.read_model(Path(folder) / FILES[0])
        random, feeds = np.random.default_rng(0), {"image": batch.image, "qtable": batch.qtable}
        for tensor in graph.inputs:
            if (name := tensor.get_any_name()) not in feeds:
                shape = list(tensor.get_shape())
                feeds[name] = random.normal(size=shape).astype(np.float32)
        graph.reshape({name: list(array.shape) for name, array in feeds.items()})
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        options |= {"ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 1}
        request = runtime.compile_model(graph, "CPU", options).create_infer_request()
    yield f"graph of {EARLIER}", lambda: request.infer(feeds, share_inputs=True)
