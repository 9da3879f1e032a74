"""Build a TensorRT plan from the exported ONNX file.

The builder is passed as a module: `tensorrt`, or in the tests `tensorrt_rtx`, which has the same
API and needs no GPU. One plan serves one tile size, with an optimisation profile for each batch
size; prompts stay inputs. TensorRT takes each tensor's precision from the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from prompt_iml.engine.build.graph import for_tensorrt
from prompt_iml.engine.build.precision import (
    choose_float32,
    default_float32,
    emulate,
    halve,
    specialised,
)
from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.prompts import graph_inputs
from prompt_iml.engine.operator.onnx_op import NAME
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.parity import TOLERANCES, error_of
from prompt_iml.engine.runtimes.plans import Recipe, Tile
from prompt_iml.engine.runtimes.protocol import Batch, Detection

CANDIDATES = ("Add", "Conv", "Gemm", "MatMul", "Mul")  # operators that may stay in float32


def graph_for(
    model: Model,
    recipe: Recipe,
    tile: Tile,
    float32: Collection[str] = (),
    *,
    emulated: bool = False,
) -> onnx.ModelProto:
    """Return the graph of one tile size for the builder.

    Args:
        tile: (height, width) in pixels.
        float32: operator types that stay in float32 besides the default nodes.
        emulated: return the graph for ONNX Runtime instead, with half precision's roundings.
    """
    graph = specialised(ir.load(model.graph), *tile)
    nodes = default_float32(graph.graph)
    kept = {*float32, *([NAME] if emulated or recipe.plugin == "none" else [])}
    nodes |= {node for node in graph.graph if node.op_type in kept}
    halve(graph, recipe.precision, nodes)
    if emulated:
        return ir.to_proto(emulate(graph))
    return for_tensorrt(ir.to_proto(graph), recipe.plugin)


def emulated_error(
    model: Model,
    recipe: Recipe,
    batch: Batch,
    expected: Detection,
    float32: Collection[str] = (),
) -> float:
    """Measure the error of a precision, with ONNX Runtime on the emulated graph.

    Args:
        expected: the output in float32.
        float32: operator types that stay in float32 besides the default nodes.

    Returns:
        The error as `engine.runtimes.parity.Difference` defines it.
    """
    _, height, width, _ = batch.image.shape
    feeds = {**batch.inputs(model.config), **graph_inputs(model.prompts, model.config)}
    graph = graph_for(model, recipe, (height, width), float32, emulated=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return error_of(Detection(*session.run(["mask_logits", "score_logit"], feeds)), expected)


def float32_operators(model: Model, recipe: Recipe, batch: Batch) -> tuple[frozenset[str], float]:
    """Find operator types to keep in float32, besides the default nodes, so that the error of the
    precision is at most half of the tolerance. Returns the types and the error."""
    expected = open_engine(model, "onnxruntime").run(batch)
    return choose_float32(
        CANDIDATES,
        lambda float32: emulated_error(model, recipe, batch, expected, float32),
        TOLERANCES[recipe.precision] / 2,
    )


def build_plan(
    trt: Any,
    graph: onnx.ModelProto,
    batches: Sequence[int],
    *,
    timing_cache: bytes = b"",
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> tuple[bytes, bytes]:
    """Build a plan.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        graph: from `graph_for`.
        batches: batch sizes; each gets an optimisation profile.
        timing_cache: the one that an earlier build on this machine returned.
        log: called with a line for each phase and error of the builder.

    Returns:
        The plan, and the timing cache for the next build.

    Raises:
        PromptImlError: TensorRT cannot read the graph or build from it; with TensorRT's message.
    """
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise PromptImlError(f"TensorRT cannot read the graph: {errors}")
    config = builder.create_builder_config()
    for size in batches:
        config.add_optimization_profile(_profile(builder, network, size))
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, ignore_mismatch=True)
    config.progress_monitor = _progress(trt, log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PromptImlError(f"TensorRT cannot build: {logger.last or 'no reason is given'}")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _profile(builder: Any, network: Any, size: int) -> Any:
    """Return the profile for a batch size, which is the only open dimension of an input."""
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        if -1 in tuple(tensor.shape):
            shape = (size, *tensor.shape[1:])
            profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _strongly_typed(trt: Any) -> int:
    """Return the flag for strong typing; 0 from TensorRT 11 on, where every network has it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any, log_line: Callable[[str], None]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        last = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = " ".join(message.split())
                log_line(f"tensorrt: {self.last}")

    return Logger()


def _progress(trt: Any, log: Callable[[str], None]) -> Any:
    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                log(f"tensorrt: {phase}, {steps} steps")

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return True

    return Progress()
