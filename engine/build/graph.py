"""The exported file as TensorRT is to read it: what its deformable attention becomes.

The file itself says nothing of TensorRT, and stays as it is for every other runtime. Each function
returns another graph for the same weights; none changes its argument.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import onnx
from onnx import NodeProto, TensorProto, helper, inliner

from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME

Plugin = Literal["own", "nvidia", "none"]

NVIDIA_DOMAIN = "TRT"
NVIDIA_NAME = "MultiscaleDeformableAttnPlugin_TRT"
WARNING = (
    "deformable attention without a plugin: TensorRT is known to compute its GridSample form "
    "wrongly (NVIDIA/TensorRT#4813), and ours was never run there; believe only the comparison"
)


def for_tensorrt(model: onnx.ModelProto, plugin: Plugin = "own") -> onnx.ModelProto:
    """The graph with the operator as the setting has it.

    Args:
        model: as `engine.build.export` writes it.
        plugin: `own`: ours (`engine.operator.tensorrt_plugin`), which must be registered before
            the graph is parsed; float32, float16 and bfloat16. `nvidia`: the one that comes with
            TensorRT; float32 and float16, which it takes for locations and sums
            too. `none`: ONNX's own operators; warns.
    """
    if plugin == "none":
        warnings.warn(WARNING, RuntimeWarning, stacklevel=2)
        return decomposed(model)
    if plugin == "nvidia":
        model = _with_nodes(model, _nvidia_nodes)
        model.opset_import.append(helper.make_opsetid(NVIDIA_DOMAIN, 1))
        return model
    return _with_nodes(model, _own_node)


def decomposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the operator in ONNX's own operators, for runtimes that know no functions."""
    return inliner.inline_local_functions(model)


def _with_nodes(
    model: onnx.ModelProto, replace: Callable[[NodeProto], list[NodeProto]]
) -> onnx.ModelProto:
    """Replace every node of the operator. Its function goes too: with the plugin missing TensorRT
    must fail, not compute something else."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:], changed.functions[:]
    for node in model.graph.node:
        ours = (node.domain, node.op_type) == (DOMAIN, NAME)
        changed.graph.node.extend(replace(node) if ours else [node])
    return changed


def _own_node(node: NodeProto) -> list[NodeProto]:
    """By which TensorRT finds the plugin, and its ahead-of-time body."""
    found: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
    return [helper.make_node(NAME, node.input, node.output, domain=DOMAIN, **found)]


def _nvidia_nodes(node: NodeProto) -> list[NodeProto]:
    """Theirs takes int32 sizes, the first cell of each level, and locations and weights of the
    value's type; what comes out is (N, Q, M, D)."""
    value, sizes, locations, weights = node.input
    (out,) = node.output

    def named(part: str) -> str:
        return f"{out}:{part}"

    def step(op: str, inputs: list[str], part: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [named(part)], **attributes)

    def constant(part: str, **attribute: Any) -> NodeProto:
        return step("Constant", [], part, **attribute)

    inputs = [value, *map(named, ("sizes32", "starts32", "locations", "weights"))]
    return [
        constant("columns", value_ints=[1]),
        constant("first", value_int=0),
        constant("flat", value_ints=[0, 0, -1]),
        step("ReduceProd", [sizes, named("columns")], "area", keepdims=0),
        step("CumSum", [named("area"), named("first")], "starts", exclusive=1),
        step("Cast", [sizes], "sizes32", to=TensorProto.INT32),
        step("Cast", [named("starts")], "starts32", to=TensorProto.INT32),
        step("CastLike", [locations, value], "locations"),
        step("CastLike", [weights, value], "weights"),
        helper.make_node(
            NVIDIA_NAME,
            inputs,
            [named("heads")],
            domain=NVIDIA_DOMAIN,
            plugin_namespace="",
            plugin_version="2",
        ),
        helper.make_node("Reshape", [named("heads"), named("flat")], [out]),
    ]
