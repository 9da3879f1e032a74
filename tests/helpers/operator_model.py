"""An ONNX model of the operator `promptiml::MSDeformAttn` alone."""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import TensorProto, helper

from prompt_iml.engine.operator.onnx_op import DOMAIN, FUNCTION, NAME, OPSET


def operator_model(levels: int) -> onnx.ModelProto:
    """Return a graph of one node with the function that defines it, for so many levels."""
    floats = {"value": 4, "locations": 6, "weights": 5}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
        for name, rank in floats.items()
    ]
    inputs.insert(1, helper.make_tensor_value_info("sizes", TensorProto.INT64, [levels, 2]))
    names = [value.name for value in inputs]
    node = helper.make_node(NAME, names, ["out"], domain=DOMAIN)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 3)
    return helper.make_model(
        helper.make_graph([node], "operator", inputs, [out]),
        functions=[onnx.parser.parse_function(FUNCTION)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
