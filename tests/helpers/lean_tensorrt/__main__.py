"""Call our plugin as TensorRT's builder does, in its order, through TensorRT's own classes.

Prints the plugin's answers as JSON. The builder's shape expressions are replaced by `Number`, which
computes with ints and records which of them are constants.
"""

from __future__ import annotations

import json
import operator
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt  # the package of that name comes with the libraries

from tensorrt.plugin import _tensor  # noqa: E402

from prompt_iml.engine.operator import tensorrt_plugin  # noqa: E402
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME  # noqa: E402

OPERATIONS = {
    trt.DimensionOperation.SUM: operator.add,
    trt.DimensionOperation.SUB: operator.sub,
    trt.DimensionOperation.PROD: operator.mul,
    trt.DimensionOperation.FLOOR_DIV: operator.floordiv,
}


@dataclass(frozen=True)
class Number:
    """A shape expression: its value, and whether it is a constant to the builder."""

    value: int
    constant: bool = False

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value


class Builder(trt.IExprBuilder):  # type: ignore[misc]
    """Makes shape expressions that are `Number`s."""

    def constant(self, value: int) -> Number:
        return Number(value, constant=True)

    def operation(self, operation: Any, a: Number, b: Number) -> Number:
        return Number(OPERATIONS[operation](a.value, b.value), a.constant and b.constant)


def shape(*numbers: int, unknown: int = 0) -> list[Number]:
    """Return a shape whose first `unknown` sizes are known only when the engine runs."""
    return [Number(number, place >= unknown) for place, number in enumerate(numbers)]


SHAPES = [
    shape(16, 21_760, 8, 32, unknown=2),
    shape(4, 2),
    shape(16, 21_760, 8, 4, 4, 2, unknown=2),
    shape(16, 21_760, 8, 4, 4, unknown=2),
]


def described(dtype: Any, numbers: list[Number]) -> Any:
    """Return TensorRT's description of a tensor."""
    tensor = trt.PluginTensorDesc()
    tensor.type, tensor.format, tensor.scale = dtype, trt.TensorFormat.LINEAR, 1.0
    tensor.dims = trt.Dims([number.value for number in numbers])
    dynamic = trt.DynamicPluginTensorDesc()
    dynamic.desc = tensor
    return dynamic


def created() -> Any:
    """Return a plugin from the creator in TensorRT's registry, as the ONNX parser makes it."""
    creator = trt.get_plugin_registry().get_creator(NAME, "1", DOMAIN)
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    fields = trt.PluginFieldCollection([])
    return creator.create_plugin(NAME, DOMAIN, fields, trt.TensorRTPhase.BUILD, request)


def build(dtype: Any) -> dict[str, Any]:
    """Return the plugin's answers to the builder for one node whose value has this type."""
    plugin = created()
    types = [dtype, trt.int64, trt.float32, trt.float32]
    (out_type,) = plugin.get_output_data_types(types, [len(numbers) for numbers in SHAPES])
    (out_shape,) = plugin.get_output_shapes(SHAPES, [], Builder())
    tensors = [*map(described, types, SHAPES), described(out_type, out_shape)]
    supported = plugin.get_supported_format_combinations(tensors, len(SHAPES))
    offered = [[each.type.name for each in supported[i : i + 5]] for i in range(0, 15, 5)]
    plugin.configure_plugin(tensors[:4], tensors[4:])
    plugin.set_tactic(0)
    parameters, numbers = SimpleNamespace(), _Numbers()
    plugin.get_launch_params(SHAPES, tensors, len(SHAPES), parameters, numbers, Builder())
    kernel, ptx = plugin.get_kernel(
        *([t.desc for t in part] for part in (tensors[:4], tensors[4:]))
    )
    return {
        "out": [out_type.name, [number.value for number in out_shape]],
        "offered": offered,
        "launch": vars(parameters),
        "numbers": [numbers[place] for place in range(numbers.nbSymExprs)],
        "kernel": kernel,
        "ptx": ptx.decode(),
    }


class _Numbers(dict[int, int]):
    """The kernel's extra parameters by position, which the plugin fills in."""

    nbSymExprs = 0  # noqa: N815


if __name__ == "__main__":
    trt.IDimensionExpr = Number
    trt.DimsExprs = lambda length: [None] * length
    _tensor.SymExprImpl = lambda expression: expression._expr.value
    tensorrt_plugin.register()
    tensorrt_plugin.register()
    print(json.dumps([build(dtype) for dtype in (trt.float32, trt.float16, trt.bfloat16)]))
