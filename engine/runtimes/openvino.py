"""OpenVINO on the CPU: the default engine."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node, Op, Output, Shape, Tensor
from openvino import opset13 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from prompt_iml.engine.errors import DamagedModel, InferError, UsageError
from prompt_iml.engine.model.folder import Model, file_digest
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME
from prompt_iml.engine.runtimes.blob_cache import BlobCache
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, GraphEngine

Options = dict[str, Any]


class Part(NamedTuple):
    """A part of the graph that is compiled by itself, and the precision of its sums."""

    name: str
    hint: str


WHOLE, VIEW, BODY = Part("whole", "f32"), Part("view", "f32"), Part("body", "bf16")
_PARTS = {"f32": (WHOLE,), "bf16": (VIEW, BODY)}


class OpenVinoEngine(GraphEngine):
    """An engine on the CPU, in float32, or in bfloat16 where the processor multiplies it.

    The graph is compiled for each batch shape when the shape first occurs: fixed shapes run
    faster, and there are few of them. Compiling takes seconds, so the result is cached for later
    processes (`engine.runtimes.blob_cache`).

    Args:
        model: the model to run.
        threads: most CPU threads; None: one for each core.
        kernel: run `promptiml::MSDeformAttn` with our own kernel; None: if it was compiled.
            Results with and without it agree to 1e-5.
        precision: `float32`, which `auto` is too, or `bfloat16`: logits differ by some 5 % of the
            largest. The JPEG view stays in float32, because it counts what it rounded.

    Attributes:
        name: `openvino+kernel/f32/cpu`, or `openvino/f32/cpu` without it; `bf16` in bfloat16.

    Raises:
        UsageError: this processor has no bfloat16.
    """

    def __init__(
        self,
        model: Model,
        threads: int | None = None,
        kernel: bool | None = None,
        precision: str = "auto",
    ) -> None:
        self._kernel = cpu.available() if kernel is None else kernel
        self._core = core(self._kernel)
        short = "bf16" if precision == "bfloat16" else "f32"
        if short == "bf16" and "BF16" not in self._capabilities():
            raise UsageError("this processor has no bfloat16: use precision float32")
        self._parts = _PARTS[short] if model.config.jpeg_view else _PARTS[short][-1:]
        self.name = f"openvino{'+kernel' if self._kernel else ''}/{short}/cpu"
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # pinned, all actors of a node would share the same cores
        } | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self._requests: dict[tuple[int, ...], list[openvino.InferRequest]] = {}
        self._cache = BlobCache()
        super().__init__(model)

    @cached_property
    def _graph(self) -> openvino.Model:
        """The graph, read when the cache lacks a shape: `load_model` has checked its digest."""
        path = self._model.graph
        try:
            return self._core.read_model(path)
        except RuntimeError as error:
            raise DamagedModel(f"{self.name} cannot load {path}: {_line(error)}") from error

    def submit(self, batch: Batch) -> Done:
        """Run the batch. Raises `InferError` when OpenVINO fails."""
        feeds = self._feeds(batch)
        try:
            *views, last = self._requests_for(feeds)
            for view in views:
                found = view.infer(feeds, share_inputs=True).values()
                feeds |= {f"view_{n}": value for n, value in enumerate(found)}
            outputs = last.infer(feeds, share_inputs=True)
        except RuntimeError as error:
            raise InferError(f"{self.name}: {_line(error)}") from error
        return Done(Detection(outputs["mask_logits"], outputs["score_logit"]))

    def _requests_for(self, feeds: dict[str, NDArray[np.generic]]) -> list[openvino.InferRequest]:
        """Return a request of each part for the shape of the batch, compiled on first use."""
        shape = feeds["image"].shape
        if shape not in self._requests:
            shapes = {name: list(feed.shape) for name, feed in feeds.items()}
            self._requests[shape] = [self._open(part, shapes) for part in self._parts]
        return self._requests[shape]

    def _open(self, part: Part, shapes: dict[str, list[int]]) -> openvino.InferRequest:
        options = {**self._options, "INFERENCE_PRECISION_HINT": part.hint}
        key = self._key(part, shapes)
        compiled = self._cached(key, options) or self._compile(key, part, options, shapes)
        return compiled.create_infer_request()

    def _cached(self, key: str, options: Options) -> openvino.CompiledModel | None:
        blob = self._cache.read(key)
        try:
            return self._core.import_model(blob, "CPU", options) if blob else None
        except RuntimeError:
            return None

    def _compile(
        self, key: str, part: Part, options: Options, shapes: dict[str, list[int]]
    ) -> openvino.CompiledModel:
        graph = self._graph.clone()
        graph.reshape(shapes)
        if part is not WHOLE:
            graph = _split(graph)[part is BODY]
        compiled = self._core.compile_model(graph, "CPU", options)
        blob = io.BytesIO()
        compiled.export_model(blob)
        self._cache.write(key, blob.getbuffer())
        return compiled

    def _key(self, part: Part, shapes: dict[str, list[int]]) -> str:
        """Return the digest of everything that the compiled network depends on."""
        made_of = [
            self._model.sha256,
            self._model.graph_sha256,
            file_digest(Path(__file__)),
            file_digest(Path(cpu.library_path() or "")) if self._kernel else None,
            openvino.get_version(),
            self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            self._capabilities(),
            self._options,
            part,
            shapes,
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _capabilities(self) -> list[str]:
        found: list[str] = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return found


def core(kernel: bool = False) -> openvino.Core:
    """Return OpenVINO with the network's operator: our kernel, or OpenVINO's own operations."""
    runtime = openvino.Core()
    if kernel:
        runtime.add_extension(MSDeformAttn)
    convert = _kernel_node if kernel else _ms_deform_attn
    runtime.add_extension(ConversionExtension(NAME, DOMAIN, convert))
    return runtime


def _split(graph: openvino.Model) -> tuple[openvino.Model, openvino.Model]:
    """Divide a graph (in place) into its JPEG view, and the rest with the view as an input.

    OpenVINO takes one precision for a whole graph. The view is what the quantisation table reaches
    before it meets the results of a convolution.
    """
    of_table, of_convolution = {"qtable"}, set[str]()
    cut: list[Output] = []
    for node in graph.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [each.get_source_output() for each in node.inputs()]
        before = {source.get_node().get_friendly_name() for source in sources}
        if kind == "Convolution" or before & of_convolution:
            of_convolution.add(name)
            view_nodes = of_table - of_convolution
            cut += [
                source
                for source in sources
                if source.get_node().get_friendly_name() in view_nodes and source not in cut
            ]
        if kind != "ShapeOf" and before & of_table:
            of_table.add(name)
    inputs = graph.get_parameters()
    view = openvino.Model([ops.result(output) for output in cut], inputs, "view").clone()
    for number, output in enumerate(cut):
        given = ops.parameter(output.get_shape(), output.get_element_type(), f"view_{number}")
        given.output(0).set_names({f"view_{number}"})
        for target in output.get_target_inputs():
            if target.get_node().get_type_name() != "Result":
                target.replace_source_output(given.output(0))
        inputs.append(given)
    return view, openvino.Model(graph.get_results(), inputs, "body")


class MSDeformAttn(Op):  # type: ignore[misc]
    """`promptiml::MSDeformAttn` as an operation of OpenVINO: the CPU kernel, in one thread.

    Inputs are those of `engine.operator.torch_op`; the output has the shape (N, Q, M*D).
    """

    def __init__(self, inputs: list[Output] | None = None) -> None:
        super().__init__(self, inputs)

    def validate_and_infer_types(self) -> None:
        """Set the output's type and shape; static once the graph has a batch's shape."""
        value, locations = self.get_input_partial_shape(0), self.get_input_partial_shape(2)
        known = value[2].is_static and value[3].is_static
        channels = value[2].get_length() * value[3].get_length() if known else -1
        shape = openvino.PartialShape([value[0], locations[1], openvino.Dimension(channels)])
        self.set_output_type(0, self.get_input_element_type(0), shape)

    def clone_with_new_inputs(self, inputs: list[Output]) -> MSDeformAttn:
        """Return a copy on other inputs, as OpenVINO requires."""
        return MSDeformAttn(inputs)

    def has_evaluate(self) -> bool:
        """Return that `evaluate` is implemented."""
        return True

    def evaluate(self, outputs: list[Tensor], inputs: list[Tensor]) -> bool:
        """Run the kernel on OpenVINO's own memory."""
        value, sizes, locations, weights = (tensor.data for tensor in inputs)
        n, _, m, d = value.shape
        outputs[0].shape = Shape([n, locations.shape[1], m * d])
        # OpenVINO converts integers to 32 bits
        cpu.forward(value, sizes.astype(np.int64), locations, weights, outputs[0].data)
        return True

    def visit_attributes(self, visitor: openvino.AttributeVisitor) -> bool:
        """Return that there are no attributes."""
        return True


def _kernel_node(node: NodeContext) -> list[Output]:
    outputs: list[Output] = MSDeformAttn([node.get_input(i) for i in range(4)]).outputs()
    return outputs


def _line(error: RuntimeError) -> str:
    """Join the lines of an OpenVINO message."""
    return " ".join(str(error).split())


def _ms_deform_attn(node: NodeContext) -> list[Output]:
    """Build `promptiml::MSDeformAttn` from OpenVINO's operations: one GridSample for each level.

    OpenVINO does not expand local functions, and GridSample is several times faster here than the
    gathers of ours. Letters in names are those of `engine.operator.torch_op`.
    """
    value_NSMD, sizes_L2, locations, weights = (node.get_input(i) for i in range(4))
    n, _, m, d = _shape(value_NSMD)
    _, q, _, _, p, _ = _shape(locations)
    b, one, two = ops.multiply(n, m), _ints(1), _ints(2)
    maps_NMDS = ops.transpose(value_NSMD, _ints(0, 2, 3, 1))
    maps = ops.variadic_split(maps_NMDS, ops.constant(3), ops.reduce_prod(sizes_L2, one)).outputs()
    grid = ops.subtract(ops.multiply(locations, np.float32(2)), np.float32(1))
    grid_LNMQP2 = ops.transpose(grid, _ints(3, 0, 2, 1, 4, 5))
    weights_LNMQP = ops.transpose(weights, _ints(3, 0, 2, 1, 4))
    sampled_BDQ = [
        _sample(
            map_BDHW=_reshape(map_NMDS, b, d, _at(sizes_L2, level)),
            grid_BQP2=_reshape(_at(grid_LNMQP2, level), b, q, p, two),
            weights_B1QP=_reshape(_at(weights_LNMQP, level), b, one, q, p),
        )
        for level, map_NMDS in enumerate(maps)
    ]
    out_NCQ = _reshape(reduce(ops.add, sampled_BDQ), n, ops.multiply(m, d), q)
    out_NQC: list[Output] = ops.transpose(out_NCQ, _ints(0, 2, 1)).outputs()
    return out_NQC


def _sample(map_BDHW: Node, grid_BQP2: Node, weights_B1QP: Node) -> Node:
    """Return (B, D, Q): bilinear samples, zero outside, weighted and summed over P."""
    mode = {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"}
    sampled_BDQP = ops.grid_sample(map_BDHW, grid_BQP2, mode)
    return ops.reduce_sum(ops.multiply(sampled_BDQP, weights_B1QP), _ints(-1))


def _ints(*values: int) -> Node:
    return ops.constant(np.array(values, np.int64))


def _at(x: Output, index: int) -> Node:
    """Return x[index]."""
    return ops.gather(x, ops.constant(np.int64(index)), _ints(0))


def _shape(x: Output) -> list[Output]:
    """Return each size as a tensor (1,)."""
    rank = x.get_partial_shape().rank.get_length()
    sizes: list[Output] = ops.split(ops.shape_of(x, "i64"), ops.constant(0), rank).outputs()
    return sizes


def _reshape(x: Node, *sizes: Output) -> Node:
    return ops.reshape(x, ops.concat(list(sizes), 0), False)
