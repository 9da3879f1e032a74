"""Multi-scale deformable attention: the one operator of the network that needs a kernel.

`reference` is the definition that every other backend is compared with. The network calls
`ms_deform_attn`, which uses the kernel for the CPU or the GPU (`engine.operator`) where it can run
and takes these tensors, or else the reference. During an ONNX export it becomes one node,
`promptiml::MSDeformAttn`, for which a runtime either has a kernel or expands the local function in
the exported file (`engine.operator.onnx_op`).

Letters: N batch, S cells of all levels, H W rows and columns of a level, M heads, D channels of a
head, C = M*D, Q queries, L levels, P points, B = N*M.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from prompt_iml.engine.operator import cpu, cuda, launch
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME, VERSION


def ms_deform_attn(
    value_NSMD: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations_NQMLP2: Tensor,
    weights_NQMLP: Tensor,
) -> Tensor:
    """Sample each level's map at each point, bilinearly, and sum under the attention weights.

    Args:
        value_NSMD: the levels' maps, each flattened row by row, one after the other.
        spatial_shapes: (H, W) of each level.
        locations_NQMLP2: (x, y), 0 and 1 at the outer edges of the map; values outside are
            zero. Float32 at every precision of `value_NSMD` (or float64).
        weights_NQMLP: attention weights, softmax over levels and points together.

    Returns:
        (N, Q, M*D) in the dtype of `value_NSMD`.
    """
    inputs = (value_NSMD, spatial_shapes, locations_NQMLP2, weights_NQMLP)
    if torch.onnx.is_in_onnx_export():
        return _onnx_node(*inputs)
    for kernel, fits in ((Kernel, _kernel_fits), (CudaKernel, _cuda_kernel_fits)):
        if fits(value_NSMD, locations_NQMLP2, weights_NQMLP):
            out: Tensor = kernel.apply(*inputs)  # type: ignore[no-untyped-call]
            return out
    # Under autocast tensors have half precision, which the CPU kernel does not take.
    if _on_cpu((torch.float16, torch.bfloat16), value_NSMD):
        return ms_deform_attn(
            value_NSMD.float(), spatial_shapes, locations_NQMLP2.float(), weights_NQMLP.float()
        ).to(value_NSMD.dtype)
    return reference(*inputs)


def reference(
    value_NSMD: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations_NQMLP2: Tensor,
    weights_NQMLP: Tensor,
) -> Tensor:
    """Compute `ms_deform_attn` with PyTorch's `grid_sample`, on any device."""
    n, _, m, d = value_NSMD.shape
    q, points = locations_NQMLP2.shape[1], locations_NQMLP2.shape[4]
    maps = torch.split(value_NSMD, [h * w for h, w in spatial_shapes], dim=1)
    out = value_NSMD.new_zeros(n * m, d, q)
    for level, (h, w) in enumerate(spatial_shapes):
        map_BDHW = maps[level].permute(0, 2, 3, 1).reshape(n * m, d, h, w)
        grid_BQP2 = locations_NQMLP2[:, :, :, level].transpose(1, 2).reshape(n * m, q, points, 2)
        weight_B1QP = weights_NQMLP[:, :, :, level].transpose(1, 2).reshape(n * m, 1, q, points)
        sampled_BDQP = _sample(map_BDHW, grid_BQP2)
        out = out + (sampled_BDQP * weight_B1QP.to(sampled_BDQP.dtype)).sum(-1)
    return out.reshape(n, m * d, q).transpose(1, 2)


class Kernel(torch.autograd.Function):
    """The CPU kernel, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        value_NSMD: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        locations_NQMLP2: Tensor,
        weights_NQMLP: Tensor,
    ) -> Tensor:
        """See `ms_deform_attn`."""
        leaves = [x.detach().contiguous() for x in (value_NSMD, locations_NQMLP2, weights_NQMLP)]
        ctx.save_for_backward(*leaves)
        ctx.sizes = np.array(spatial_shapes, np.int64)
        value, locations, weights = (x.numpy() for x in leaves)
        n, _, m, d = value.shape
        out_NQC = value_NSMD.new_empty(n, locations.shape[1], m * d)
        threads = torch.get_num_threads()
        cpu.forward(value, ctx.sizes, locations, weights, out_NQC.numpy(), threads)
        return out_NQC

    @staticmethod
    def backward(ctx: Any, grad_NQC: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of value, locations and weights; the sizes have none."""
        value, locations, weights = (x.numpy() for x in ctx.saved_tensors)
        grad = grad_NQC.contiguous().numpy()
        threads = torch.get_num_threads()
        grads = cpu.backward(value, ctx.sizes, locations, weights, grad, threads)
        of_value, of_locations, of_weights = map(torch.from_numpy, grads)
        return of_value, None, of_locations, of_weights


class CudaKernel(torch.autograd.Function):
    """The CUDA kernel, forward and backward.

    Backward adds atomically, so the last bits of gradients vary from call to call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        value_NSMD: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        locations_NQMLP2: Tensor,
        weights_NQMLP: Tensor,
    ) -> Tensor:
        """See `ms_deform_attn`."""
        shapes = [tuple(x.shape) for x in (value_NSMD, locations_NQMLP2, weights_NQMLP)]
        if problem := launch.problem(shapes[0], spatial_shapes, *shapes[1:]):
            raise ValueError(problem)
        value = _ready(value_NSMD, value_NSMD.dtype)
        sizes = _sizes_on(tuple(spatial_shapes), value.device)
        locations, weights = (_ready(x, torch.float32) for x in (locations_NQMLP2, weights_NQMLP))
        ctx.save_for_backward(value, locations, weights)
        ctx.sizes = sizes  # autograd saves no tensor that was made in inference mode
        ctx.weights_dtype = weights_NQMLP.dtype
        n, _, m, d = value.shape
        out_NQC = value.new_empty(n, locations.shape[1], m * d)
        dtype = str(value.dtype).removeprefix("torch.")
        plan = launch.forward(dtype, value.shape, locations.shape)
        _launch(plan, (value, sizes, locations, weights), (out_NQC,))
        return out_NQC

    @staticmethod
    def backward(ctx: Any, grad_NQC: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of value, locations and weights, computed in float32."""
        value, locations, weights = ctx.saved_tensors
        inputs = (_ready(value, torch.float32), ctx.sizes, locations, weights)
        grads = (
            torch.zeros_like(inputs[0]), torch.empty_like(locations), torch.empty_like(weights)
        )  # fmt: skip
        plan = launch.backward(value.shape, locations.shape)
        _launch(plan, (*inputs, _ready(grad_NQC, torch.float32)), grads)
        of_value, of_locations, of_weights = grads
        return of_value.to(value.dtype), None, of_locations, of_weights.to(ctx.weights_dtype)


def _cuda_kernel_fits(value: Tensor, locations: Tensor, weights: Tensor) -> bool:
    """Return whether all tensors are on one GPU, in dtypes of the kernel, and not being traced."""
    return (
        not torch.compiler.is_compiling()
        and value.is_cuda
        and value.device == locations.device == weights.device
        and value.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and locations.dtype == torch.float32
        and weights.dtype in (torch.float32, value.dtype)
        and cuda.unavailable() is None
    )


def _launch(plan: launch.Launch, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Launch on PyTorch's stream, unless the output is empty."""
    if 0 in plan.grid:
        return
    device = inputs[0].device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        read, written = ([x.data_ptr() for x in tensors] for tensors in (inputs, outputs))
        cuda.run(plan, read, written, torch.cuda.current_device(), stream)


def _ready(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor contiguous, in the dtype, and aligned to 16 bytes."""
    tensor = tensor.detach().to(dtype).contiguous()
    return tensor if tensor.data_ptr() % launch.VECTOR_BYTES == 0 else tensor.clone()


@cache
def _sizes_on(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return (L, 2) int64 on the GPU; cached, because CUDA graphs refer to it."""
    return torch.tensor(sizes, dtype=torch.int64, device=device)


def _kernel_fits(*tensors: Tensor) -> bool:
    """Return whether the CPU kernel takes these tensors, all in one dtype of the kernel."""
    alike = all(x.dtype == tensors[0].dtype for x in tensors)
    return alike and _on_cpu((torch.float32, torch.float64), *tensors)


def _on_cpu(dtypes: Sequence[torch.dtype], *tensors: Tensor) -> bool:
    """Return whether the kernel is available, and all tensors on the CPU, in `dtypes`, untraced."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler cannot trace what follows
        and all(x.device.type == "cpu" and x.dtype in dtypes for x in tensors)
        and cpu.available()
    )


def _sample(map_BDHW: Tensor, location_BQP2: Tensor) -> Tensor:
    """Return bilinear samples (B, D, Q, P); positions have the precision of the locations."""
    dtype = torch.promote_types(map_BDHW.dtype, location_BQP2.dtype)
    sampled = grid_sample(
        map_BDHW.to(dtype),
        2 * location_BQP2.to(dtype) - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return sampled.to(map_BDHW.dtype)


def _onnx_node(
    value_NSMD: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations_NQMLP2: Tensor,
    weights_NQMLP: Tensor,
) -> Tensor:
    n, _, m, d = value_NSMD.shape
    rows = [torch.stack([_size(h), _size(w)]) for h, w in spatial_shapes]
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}",
        (value_NSMD, torch.stack(rows), locations_NQMLP2, weights_NQMLP),
        dtype=value_NSMD.dtype,
        shape=(n, locations_NQMLP2.shape[1], m * d),
        version=VERSION,
    )


def _size(size: int) -> Tensor:
    """Return a size, which may be symbolic, as a tensor."""
    return torch.scalar_tensor(size, dtype=torch.int64)
