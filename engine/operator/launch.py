"""Launch parameters of the CUDA kernels in `ms_deform_attn.cu`; needs no GPU and no library.

PyTorch's hook, the TensorRT plugin and the tests' emulator all use them. Sizes may be TensorRT's
shape expressions, where shapes are not known yet; only the value's D must be an int. Letters of
shapes are those of `engine.operator.torch_op`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

THREADS = 256  # a block
WARP = 32
VECTOR_BYTES = 16
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

MOST_IMAGES = 65_535  # blocks along y
MOST_ELEMENTS = 2**31 - 1  # of one image's value: offsets are int32


@dataclass(frozen=True, slots=True)
class Launch:
    """Parameters of one launch, which does not synchronise and uses no memory but the tensors'.

    Attributes:
        kernel: name in the PTX.
        grid: blocks along x and y.
        block: threads along x and y.
        numbers: int32 parameters, between the inputs and the outputs.
    """

    kernel: str
    grid: tuple[int, int]
    block: tuple[int, int]
    numbers: tuple[int, ...]


def forward(dtype: str, value_shape: Sequence[int], locations_shape: Sequence[int]) -> Launch:
    """Return the launch with inputs value, sizes, locations, weights and output out, (N, Q, M*D).

    Args:
        dtype: of value and out: float32, float16 or bfloat16. Locations and weights are float32,
            sizes (L, 2) int64; all are contiguous in GPU memory, and start on 16 bytes.
        value_shape: (N, S, M, D).
        locations_shape: (N, Q, M, L, P, 2).
    """
    return _launch(f"promptiml_forward_{dtype}", ITEM_BYTES[dtype], value_shape, locations_shape)


def backward(value_shape: Sequence[int], locations_shape: Sequence[int]) -> Launch:
    """Return the launch with inputs value, sizes, locations, weights, grad_out and outputs
    grad_value (must hold zeros), grad_locations, grad_weights; all float32, else as `forward`."""
    return _launch("promptiml_backward_float32", 4, value_shape, locations_shape)


def problem(
    value_shape: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    locations_shape: Sequence[int],
    weights_shape: Sequence[int],
) -> str | None:
    """Return why the kernels, which check nothing, cannot run on these shapes; None if they can."""
    n, s, m, d = value_shape
    q, points = locations_shape[1], locations_shape[4]
    rows = (n, q, m, len(sizes), points)
    if (
        tuple(locations_shape) != (*rows, 2)
        or tuple(weights_shape) != rows
        or any(height < 1 or width < 1 for height, width in sizes)
        or sum(height * width for height, width in sizes) != s
    ):
        return (
            f"value {tuple(value_shape)}, sizes {list(sizes)}, locations "
            f"{tuple(locations_shape)} and weights {tuple(weights_shape)} do not fit each other"
        )
    if n > MOST_IMAGES or s * m * d > MOST_ELEMENTS:
        return (
            f"more than {MOST_IMAGES} images, or {MOST_ELEMENTS} elements an image: {value_shape}"
        )
    return None


def _launch(
    kernel: str, item_bytes: int, value_shape: Sequence[int], locations_shape: Sequence[int]
) -> Launch:
    n, s, m, d = value_shape
    q, levels, points = locations_shape[1], locations_shape[3], locations_shape[4]
    width = VECTOR_BYTES // item_bytes
    if d % width:
        kernel, width = f"{kernel}_scalar", 1
    lanes = _power_of_two(min(d // width, WARP))
    groups = THREADS // lanes
    blocks = (q + (groups - 1)) // groups * m
    return Launch(kernel, (blocks, n), (lanes, groups), (s, m, d, q, levels, points))


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
