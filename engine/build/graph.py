"""The exported file as TensorRT is to read it: what its deformable attention becomes.

The file itself says nothing of TensorRT, and stays as it is for every other runtime. Each function
returns another graph for the same weights; none changes its argument.
"""

from __future__ import annotations

import warnings
from typing import Literal

import onnx
from onnx import helper, inliner

from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME

Plugin = Literal["own", "none"]

WARNING = (
    "deformable attention without a plugin: TensorRT is known to compute its GridSample form "
    "wrongly (NVIDIA/TensorRT#4813), and ours was never run there; believe only the comparison"
)


def for_tensorrt(model: onnx.ModelProto, plugin: Plugin = "own") -> onnx.ModelProto:
    """The graph with the operator as the setting has it.

    Args:
        model: as `engine.build.export` writes it.
        plugin: `own`: ours (`engine.operator.tensorrt_plugin`), which must be registered before
            the graph is parsed; float32, float16 and bfloat16. `none`: ONNX's own operators; warns.
    """
    if plugin == "none":
        warnings.warn(WARNING, RuntimeWarning, stacklevel=2)
        return decomposed(model)
    return _with_plugin(model)


def decomposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the operator in ONNX's own operators, for runtimes that know no functions."""
    return inliner.inline_local_functions(model)


def _with_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node of the operator the attributes by which TensorRT finds the plugin and its
    ahead-of-time body. Its function goes: with the plugin missing TensorRT must fail, not compute
    something else."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.functions[:]
    for node in changed.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, NAME):
            found = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
            node.attribute.extend(helper.make_attribute(*item) for item in found.items())
    return changed
