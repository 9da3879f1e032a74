"""`promptiml::MSDeformAttn` as an ahead-of-time TensorRT plugin (TensorRT 10.9 or later).

`register` makes the node known to TensorRT's ONNX parser. While it builds an engine, TensorRT asks
for the kernel's PTX and stores it in the engine with the arithmetic of its launch: the engine runs
without our package. `engine.build.graph` prepares the file. TensorRT calls such plugins
experimental.

No `from __future__ import annotations` here: TensorRT reads the annotations as classes.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from prompt_iml.engine.operator import launch, ptx
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME

ID = f"{DOMAIN}::{NAME}"
# Types of value, sizes, locations, weights and out, which has the type of the value.
TYPES = "FP32|FP16|BF16, INT64, FP32, FP32, FP32|FP16|BF16"
LAYOUT = "LINEAR"
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def plan(dtype: str, value_shape: Sequence[Any], locations_shape: Sequence[Any]) -> launch.Launch:
    """Return the launch for shapes made of TensorRT's symbols.

    Args:
        dtype: TensorRT's name of the value's type.
        value_shape: (N, S, M, D); D must be a constant.
        locations_shape: (N, Q, M, L, P, 2).
    """
    *outer, depth = value_shape
    return launch.forward(DTYPES[dtype], (*outer, depth.constant_value()), locations_shape)


@cache
def register() -> None:
    """Register the plugin, once in a process. Needs the package `tensorrt`."""
    import tensorrt.plugin as trtp

    def out_of(
        value: trtp.TensorDesc,
        sizes: trtp.TensorDesc,
        locations: trtp.TensorDesc,
        weights: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        images, _, heads, depth = value.shape_expr
        shape = (images, locations.shape_expr[1], heads * depth)
        return trtp.from_shape_expr(shape, value.dtype)

    def types_of(
        value: trtp.TensorDesc,
        sizes: trtp.TensorDesc,
        locations: trtp.TensorDesc,
        weights: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(TYPES, LAYOUT)]

    def kernel_of(
        value: trtp.TensorDesc,
        sizes: trtp.TensorDesc,
        locations: trtp.TensorDesc,
        weights: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        planned = plan(value.dtype.name, value.shape_expr, locations.shape_expr)
        (grid_x, grid_y), (block_x, block_y) = planned.grid, planned.block
        parameters = trtp.KernelLaunchParams(
            grid_x=grid_x, grid_y=grid_y, block_x=block_x, block_y=block_y
        )
        numbers = trtp.SymIntExprs.from_tuple(tuple(map(trtp.SymInt32, planned.numbers)))
        return planned.kernel, ptx.of_kernel(planned.kernel), parameters, numbers

    trtp.register(ID)(out_of)
    trtp.autotune(ID)(types_of)
    trtp.aot_impl(ID)(kernel_of)
