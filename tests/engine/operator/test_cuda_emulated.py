"""The source of the CUDA kernels, run on the CPU (`tests.helpers.emulator`), against float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_iml.engine.operator import launch
from prompt_iml.engine.operator import torch_op as deform_attn
from prompt_iml.engine.operator.launch import Launch
from prompt_iml.engine.operator.torch_op import CudaKernel, reference
from tests.helpers.emulator import COMPILER, Emulator, compile_emulator
from tests.helpers.emulator.__main__ import case

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")

Case = tuple[Tensor, Tensor, Tensor]
LEVELS = [(13, 9), (7, 5), (1, 3)]
CELLS = 13 * 9 + 7 * 5 + 1 * 3
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="module")
def emulator(folder: Path) -> Emulator:
    return compile_emulator(folder)


def _random_case(d: int, n: int = 2, q: int = CELLS, dtype: torch.dtype = torch.float32) -> Case:
    """Return random value, locations (half of them outside the map) and weights, of 3 heads."""
    seed = torch.seed()
    print(f"torch.manual_seed({seed})")
    location = torch.rand(n, q, 3, len(LEVELS), 4, 2) * 3 - 1
    weight = torch.randn(n, q, 3, len(LEVELS) * 4).softmax(-1).reshape(location.shape[:-1])
    return torch.randn(n, CELLS, 3, d).to(dtype), location, weight


def _array(tensor: Tensor) -> NDArray[np.generic]:
    """Return an array on the tensor's memory; as int16 for halves, as NumPy has no bfloat16."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else tensor.dtype).numpy()


def _forward(emulator: Emulator, case: Case, backwards: bool = False) -> Tensor:
    value, locations, weights = case
    n, q = locations.shape[:2]
    out = torch.full((n, q, value.shape[2] * value.shape[3]), torch.nan, dtype=value.dtype)
    plan = launch.forward(str(value.dtype).removeprefix("torch."), value.shape, locations.shape)
    inputs = [_array(value), np.array(LEVELS), _array(locations), _array(weights)]
    emulator.launch(plan, inputs, [_array(out)], backwards)
    return out


def _expected(case: Case) -> Tensor:
    value, locations, weights = (tensor.double() for tensor in case)
    return reference(value, LEVELS, locations, weights)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("d", "n", "q"), [
    (32, 1, CELLS), (16, 2, CELLS), (8, 16, 37), (24, 1, 300), (96, 1, 5), (1, 16, 9), (41, 1, 70),
])  # fmt: skip
def test_forward_equals_float64_into_poisoned_memory(
    emulator: Emulator, dtype: torch.dtype, d: int, n: int, q: int
) -> None:
    case = _random_case(d, n, q, dtype)
    out, expected = _forward(emulator, case), _expected(case)
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=rounding / 2)


def test_no_thread_reads_what_another_has_not_written(emulator: Emulator) -> None:
    case = _random_case(32)
    assert torch.equal(_forward(emulator, case), _forward(emulator, case, backwards=True))


def test_what_is_not_finite_shows_where_it_counts_and_only_there(emulator: Emulator) -> None:
    value, location, weight = _random_case(8, n=1, q=5)
    location[0, 0] = 0.5
    weight[0, 1, 0, 0, 2] = torch.nan
    weight[0, 3, 0, 2, 0], location[0, 3, 0, 2, 0] = torch.inf, 5.0
    out = _forward(emulator, (value, location, weight)).reshape(5, 3, 8)
    assert out.isnan().all(-1).nonzero().tolist() == [[1, 0], [3, 0]]
    value[0, 0], location[:] = torch.inf, 0.9  # the first cell, which no location samples
    assert _forward(emulator, (value, location, torch.ones_like(weight))).isfinite().all()


def test_half_a_cell_outside_an_infinite_neighbour_is_not_read(emulator: Emulator) -> None:
    value, location, weight = _random_case(8, n=1, q=1)
    value[:], location[:], weight[:] = torch.inf, 0.001, 0.0
    value[0, [0, 117, 152]] = 1.0  # the first cell of each level, which is in reach
    weight[..., 0] = 1 / 3
    assert _forward(emulator, (value, location, weight)).isfinite().all()


@pytest.mark.parametrize(
    ("d", "dtype"), [(16, torch.float32), (24, torch.float16), (41, torch.float32)], ids=str
)
def test_autograd_on_tensors_that_no_kernel_could_read_as_they_are(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, d: int, dtype: torch.dtype
) -> None:
    """Runs PyTorch's function for the GPU; only the launch is replaced."""
    monkeypatch.setattr(deform_attn, "_launch", partial(_launch, emulator))
    value, locations, weights = _random_case(d, n=2, q=11, dtype=dtype)
    locations = torch.cat([torch.zeros(1), locations.flatten()])[1:].reshape(locations.shape)
    value = value.transpose(2, 3).contiguous().transpose(2, 3)
    weights = weights.to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    out = CudaKernel.apply(leaves[0], LEVELS, *leaves[1:])
    expected = reference(exact[0], LEVELS, *exact[1:])
    grad = torch.randn_like(out)
    torch.autograd.backward([out, expected], [grad, grad.double()])
    rounding = 10 * ROUNDING[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=rounding)
    for leaf, right in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        torch.testing.assert_close(leaf.grad.double(), right.grad, rtol=rounding, atol=rounding)


def test_sizes_first_seen_in_inference_do_not_spoil_training(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deform_attn, "_launch", partial(_launch, emulator))
    deform_attn._sizes_on.cache_clear()
    value, *rest = _random_case(8, n=1, q=3)
    with torch.inference_mode():
        CudaKernel.apply(value, LEVELS, *rest)
    CudaKernel.apply(value.requires_grad_(), LEVELS, *rest).sum().backward()
    assert value.grad.any()


def _launch(emulator: Emulator, plan: Launch, *tensors: Sequence[Tensor]) -> None:
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors[0])
    inputs, outputs = ([_array(tensor) for tensor in each] for each in tensors)
    emulator.launch(plan, inputs, outputs)


@pytest.mark.skipif(find_spec("cuda") is None, reason="no cuda-bindings: not on Linux")
def test_the_driver_gets_the_kernel_and_its_parameters(emulator: Emulator, folder: Path) -> None:
    """Runs NVIDIA's bindings in a process where the emulator is the driver."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-m", "tests.helpers.emulator"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    plan, inputs, out = case()
    emulator.launch(plan, inputs, [out])
    np.testing.assert_array_equal(np.array(json.loads(printed), np.float32), out)
