"""Prepare the deformable attention of the exported graph for TensorRT.

The exported file is the same for all runtimes and has nothing of TensorRT. Each function returns a
new graph for the same weights.
"""

from __future__ import annotations

import warnings
from typing import Literal

import onnx
from onnx import TensorProto, helper, inliner

from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME

Plugin = Literal["own", "none"]

UINT8 = TensorProto.UINT8

WARNING = (
    "deformable attention without a plugin: TensorRT is known to compute its GridSample form "
    "wrongly (NVIDIA/TensorRT#4813), and ours was never run there; rely on the comparison alone"
)


def for_tensorrt(model: onnx.ModelProto, plugin: Plugin = "own") -> onnx.ModelProto:
    """Return the graph with the operator as a plugin, or in ONNX's own operators.

    Args:
        model: graph from `engine.build.export`.
        plugin: `own`: our plugin (`engine.operator.tensorrt_plugin`), which must be registered
            before the graph is parsed; float32, float16 and bfloat16. `none`: ONNX's own
            operators; warns.
    """
    if plugin == "none":
        warnings.warn(WARNING, RuntimeWarning, stacklevel=2)
        return _without_bytes(decomposed(model))
    return _without_bytes(_with_plugin(model))


def decomposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the operator in ONNX's own operators, without local functions."""
    return inliner.inline_local_functions(model)


def _without_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast inputs of unsigned bytes before they are transposed, and not after it (in place).

    TensorRT has them as inputs, and for some versions and machines no other layer than a cast takes
    them.
    """
    graph = model.graph
    inputs = {each.name for each in graph.input if each.type.tensor_type.elem_type == UINT8}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Transpose" and node.input[0] in inputs:
            (cast,) = (each for each in graph.node if node.output[0] in each.input)
            kind, name = cast.attribute[0].i, f"{node.input[0]}:cast"
            graph.node.insert(place, helper.make_node("Cast", [node.input[0]], [name], to=kind))
            node.input[0] = name
            for value in graph.value_info:
                if value.name == node.output[0]:
                    value.type.tensor_type.elem_type = kind
    return model


def _with_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the attributes by which TensorRT finds the plugin on every node.

    The operator's local function is removed, so that TensorRT fails if the plugin is missing.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.functions[:]
    for node in changed.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, NAME):
            found = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
            node.attribute.extend(helper.make_attribute(*item) for item in found.items())
    return changed
