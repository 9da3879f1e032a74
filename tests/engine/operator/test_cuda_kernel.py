"""The CUDA kernels on a GPU; without one, `test_cuda_emulated` runs their source on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prompt_iml.engine.operator import cuda, launch, ptx
from prompt_iml.engine.operator.torch_op import CudaKernel, ms_deform_attn, reference

UNAVAILABLE = cuda.unavailable() if torch.cuda.is_available() else "PyTorch finds no GPU"
on_gpu = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"{UNAVAILABLE}")

Case = tuple[Tensor, Tensor, Tensor]
LEVELS = ((53, 37), (27, 19), (7, 5), (1, 3))
CELLS = sum(h * w for h, w in LEVELS)
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def _random_case(
    d: int, n: int = 2, q: int = CELLS, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Case:
    """Return random tensors on the GPU; half of the points lie outside the map."""
    torch.manual_seed(seed)
    location = torch.rand(n, q, 3, len(LEVELS), 4, 2, device="cuda") * 3 - 1
    logits = torch.randn(n, q, 3, len(LEVELS) * 4, device="cuda")
    value = torch.randn(n, CELLS, 3, d, device="cuda").to(dtype)
    return value, location, logits.softmax(-1).reshape(location.shape[:-1])


def _expected(case: Case) -> Tensor:
    value, locations, weights = (tensor.double() for tensor in case)
    return reference(value, LEVELS, locations, weights)


@on_gpu
@DTYPES
@pytest.mark.parametrize("d", [1, 7, 8, 16, 24, 32, 96, 300])
@pytest.mark.parametrize(("n", "q"), [(1, CELLS), (16, 301)])
def test_forward_equals_float64(dtype: torch.dtype, d: int, n: int, q: int) -> None:
    case = _random_case(d, n, q, dtype)
    out = CudaKernel.apply(case[0], LEVELS, *case[1:])
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(out.double(), _expected(case), rtol=rounding, atol=rounding)


@on_gpu
def test_the_network_s_operator_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[launch.Launch] = []
    monkeypatch.setattr(cuda, "run", lambda plan, *_: launched.append(plan))
    value, *rest = _random_case(16, dtype=torch.float16)
    ms_deform_attn(value, LEVELS, *rest)
    assert [plan.kernel for plan in launched] == ["promptiml_forward_float16"]


@on_gpu
@DTYPES
@pytest.mark.parametrize("d", [16, 24, 41])
def test_gradients_equal_those_of_float64(dtype: torch.dtype, d: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in _random_case(d, q=301, dtype=dtype)]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    out, expected = ms_deform_attn(leaves[0], LEVELS, *leaves[1:]), _expected(tuple(exact))
    grad = torch.randn_like(out)
    torch.autograd.backward([out, expected], [grad, grad.double()])
    for leaf, right in zip(leaves, exact, strict=True):
        scale = float(right.grad.abs().max())
        torch.testing.assert_close(
            leaf.grad.double(), right.grad, rtol=0, atol=10 * scale * ROUNDING[dtype]
        )


@on_gpu
def test_what_is_not_finite_shows_where_it_does_on_the_cpu() -> None:
    value, location, weight = _random_case(8, q=6)
    weight[0, 1, 0, 0, 2], weight[0, 3, 0, 2, 0] = torch.nan, torch.inf
    location[0, 3, 0, 2, 0], location[0, 4, 1, 1, 1] = 5.0, torch.nan
    value[0, 0] = torch.inf
    case = (value, location, weight)
    on_cpu = ms_deform_attn(value.cpu(), LEVELS, location.cpu(), weight.cpu())
    out = ms_deform_attn(case[0], LEVELS, *case[1:]).cpu()
    assert torch.equal(out.isnan(), on_cpu.isnan())
    assert torch.equal(out.isinf(), on_cpu.isinf())


@on_gpu
@DTYPES
def test_the_ptx_that_tensorrt_gets_writes_its_output_and_nothing_else(
    dtype: torch.dtype,
) -> None:
    """Launches the PTX of one kernel by name, with TensorRT's order of parameters."""
    case = _random_case(32, dtype=dtype)
    value, locations, weights = case
    size = value.shape[0] * CELLS * 96
    memory = torch.full((size + 4096,), torch.nan, dtype=dtype, device="cuda")
    plan = launch.forward(str(dtype).removeprefix("torch."), value.shape, locations.shape)
    inputs = (value, torch.tensor(LEVELS, device="cuda"), locations, weights)
    addresses = [tensor.data_ptr() for tensor in inputs]
    stream = torch.cuda.current_stream().cuda_stream
    cuda.run(plan, addresses, [memory.data_ptr()], 0, stream, ptx.of_kernel(plan.kernel))
    out = memory[:size].reshape(value.shape[0], CELLS, 96)
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(out.double(), _expected(case), rtol=rounding, atol=rounding)
    assert memory[size:].isnan().all()


@on_gpu
def test_a_cuda_graph_replays_it_on_new_input() -> None:
    value, locations, weights = _random_case(32)
    for _ in range(2):
        ms_deform_attn(value, LEVELS, locations, weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ms_deform_attn(value, LEVELS, locations, weights)
    value.copy_(_random_case(32, seed=1)[0])
    graph.replay()
    torch.testing.assert_close(out, ms_deform_attn(value, LEVELS, locations, weights))
