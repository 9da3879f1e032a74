"""`promptiml::MSDeformAttn` as a TensorRT plugin of the ahead-of-time kind (TensorRT 10.9 on).

`register` makes TensorRT's ONNX parser know the node. Building an engine, TensorRT asks for the
kernel's PTX and stores it in the engine with the arithmetic of its launch: nothing of ours is
needed where the engine runs. `engine.build.graph` prepares the file. TensorRT calls this kind
of plugin experimental.

No `from __future__ import annotations` here: TensorRT reads the annotations, and wants classes.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from prompt_iml.engine.operator import launch, ptx
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME

ID = f"{DOMAIN}::{NAME}"
# value, sizes, locations, weights, out; the first and the last agree
TYPES = "FP32|FP16|BF16, INT64, FP32, FP32, FP32|FP16|BF16"
LAYOUT = "LINEAR"
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def plan(dtype: str, value_shape: Sequence[Any], locations_shape: Sequence[Any]) -> launch.Launch:
    """The launch for shapes of TensorRT's symbols.

    Args:
        dtype: of the value, by TensorRT's name.
        value_shape: (N, S, M, D), of which D is a constant.
        locations_shape: (N, Q, M, L, P, 2).
    """
    *outer, depth = value_shape
    return launch.forward(DTYPES[dtype], (*outer, depth.constant_value()), locations_shape)


@cache
def register() -> None:
    """Make the plugin known to TensorRT, once in a process. Needs the package `tensorrt`."""
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
