"""The reference and the CPU kernel, compared with arithmetic done one point at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_iml.engine.operator import cpu
from prompt_iml.engine.operator.torch_op import Kernel, ms_deform_attn, reference

Shapes = Sequence[tuple[int, int]]
Attend = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

compiled = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler when it was installed")
bodies = pytest.mark.parametrize(
    "attend", [reference, pytest.param(Kernel.apply, marks=compiled)], ids=["reference", "kernel"]
)


def _random_case(
    shapes: Shapes, heads: int = 2, seed: int = 0, d: int = 3, n: int = 2, q: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random value, locations (about half outside the map) and weights, float64."""
    torch.manual_seed(seed)
    points = 4
    value = torch.randn(n, sum(h * w for h, w in shapes), heads, d, dtype=torch.float64)
    location = torch.rand(n, q, heads, len(shapes), points, 2, dtype=torch.float64) * 3 - 1
    logits = torch.randn(n, q, heads, len(shapes) * points, dtype=torch.float64)
    return value, location, logits.softmax(-1).reshape(location.shape[:-1])


def _bilinear(grid_HWD: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    height, width, depth = grid_HWD.shape
    out = np.zeros(depth)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                out += (1 - abs(y - row)) * (1 - abs(x - column)) * grid_HWD[row, column]
    return out


def _one_point_at_a_time(value: Tensor, shapes: Shapes, location: Tensor, weight: Tensor) -> Tensor:
    n, q, m, levels, points, _ = location.shape
    out = np.zeros((n, q, m, value.shape[-1]))
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for i, j, k, level, p in np.ndindex(n, q, m, levels, points):
        h, w = shapes[level]
        grid = value[i, starts[level] : starts[level + 1], k].reshape(h, w, -1).numpy()
        x, y = location[i, j, k, level, p].tolist()
        sample = _bilinear(grid, x * w - 0.5, y * h - 0.5)
        out[i, j, k] += weight[i, j, k, level, p].item() * sample
    return torch.from_numpy(out.reshape(n, q, -1))


@bodies
@pytest.mark.parametrize("shapes", [[(1, 1)], [(7, 5)], [(9, 4), (5, 2), (1, 3)]])
def test_equals_bilinear_sampling_one_point_at_a_time(attend: Attend, shapes: Shapes) -> None:
    value, location, weight = _random_case(shapes)
    out = attend(value, shapes, location, weight)
    expected = _one_point_at_a_time(value, shapes, location, weight)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@bodies
def test_locations_have_x_first(attend: Attend) -> None:
    value = torch.arange(6.0).reshape(1, 6, 1, 1)  # 2 rows of 3
    last_column_first_row = torch.tensor([2.5 / 3, 0.5 / 2]).reshape(1, 1, 1, 1, 1, 2)
    out = attend(value, [(2, 3)], last_column_first_row, torch.ones(1, 1, 1, 1, 1))
    assert out.item() == pytest.approx(2.0)


def test_half_precision_values_keep_float32_locations() -> None:
    value, location, weight = _random_case([(128, 128)])
    expected = ms_deform_attn(value, [(128, 128)], location, weight)
    half = ms_deform_attn(value.half(), [(128, 128)], location.float(), weight.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=5e-3)


@bodies
def test_gradients_are_those_of_finite_differences(attend: Attend) -> None:
    value, location, weight = _random_case([(4, 3), (2, 2)])
    leaves = [tensor.requires_grad_() for tensor in (value, location, weight)]
    torch.autograd.gradcheck(lambda v, p, a: attend(v, [(4, 3), (2, 2)], p, a), leaves)


@compiled
@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("d", [1, 7, 16, 32])
def test_the_kernel_in_float32_equals_the_reference_in_float64(d: int, n: int) -> None:
    """Runs on several threads, into memory that is not empty."""
    shapes = [(13, 9), (7, 5), (1, 3)]
    case = _random_case(shapes, heads=4, d=d, n=n, q=301, seed=d * n)
    value, locations, weights = (tensor.float().numpy() for tensor in case)
    out = np.full((n, 301, 4 * d), np.nan, np.float32)
    cpu.forward(value, np.array(shapes), locations, weights, out, threads=3)
    expected = reference(case[0], shapes, *case[1:]).numpy()
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@compiled
def test_halves_on_the_cpu_are_the_kernel_s_rounded_once() -> None:
    value, location, weight = (x.float() for x in _random_case([(4, 3)]))
    halves = value.bfloat16(), [(4, 3)], location, weight.bfloat16()
    expected = Kernel.apply(halves[0].float(), [(4, 3)], location, halves[3].float())
    assert torch.equal(ms_deform_attn(*halves), expected.bfloat16())


@compiled
def test_the_kernel_s_gradients_do_not_depend_on_threads() -> None:
    shapes = [(13, 9), (7, 5)]
    value, locations, weights = (t.numpy() for t in _random_case(shapes, heads=4, d=8, n=4, q=900))
    grad = np.random.default_rng(0).normal(size=(4, 900, 32))
    one, many = (
        cpu.backward(value, np.array(shapes), locations, weights, grad, threads)
        for threads in (1, 5)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))


@bodies
def test_what_is_not_finite_shows_where_it_counts_and_only_there(attend: Attend) -> None:
    """NaN weights, also of a point outside, and an infinite value at the map's edge."""
    value, location, weight = (tensor.float() for tensor in _random_case([(4, 4)], heads=1))
    weight[0, 1, 0, 0, 2] = torch.nan
    weight[1, 3, 0, 0, 0] = torch.inf
    location[1, 3, 0, 0, 0] = 5.0
    out = attend(value, [(4, 4)], location, weight)
    assert out.isnan().all(-1).nonzero().tolist() == [[0, 1], [1, 3]]
    assert not out[0, 0].isnan().any()
    corner = torch.full((1, 4, 1, 1), torch.inf)
    corner[0, 0] = 1.0
    at = torch.tensor([0.1, 0.1]).reshape(1, 1, 1, 1, 1, 2)
    assert attend(corner, [(2, 2)], at, torch.ones(1, 1, 1, 1, 1)).item() == pytest.approx(0.49)


@compiled
def test_arrays_that_do_not_fit_are_refused() -> None:
    shapes = np.array([(4, 3)])
    value, locations, weights = (tensor.numpy() for tensor in _random_case([(4, 3)]))
    out = np.empty((2, 5, 6))
    cpu.forward(value, shapes, locations, weights, out)
    for wrong in (
        (value, np.array([(4, 4)]), locations, weights, out),
        (value, np.array([(-4, -3)]), locations, weights, out),
        (value, shapes, locations[:, :4], weights, out),
        (value, shapes, locations, weights[..., :3], out),
        (value, shapes, locations, weights, out[:1]),
        (value, shapes, locations.astype(np.float32), weights, out),
        (value[:, :, ::-1], shapes, locations, weights, out),
    ):
        with pytest.raises(ValueError, match=r"fit each other|out has|contiguous"):
            cpu.forward(*wrong)


def test_a_kernel_of_another_platform_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_cpu.so").write_bytes(b"\xcf\xfa\xed\xfe of a Mac")
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    monkeypatch.setattr(cpu, "_library", cpu._library.__wrapped__)  # not what is cached
    assert not cpu.available()
    assert cpu.library_path() is None


def test_a_compiler_traces_the_reference_in_one_graph() -> None:
    """It asked whether the CPU's kernel is there first, which no compiler can trace."""
    value, *rest = (torch.rand(1, 6, 2, 8), torch.rand(1, 3, 2, 1, 4, 2), torch.rand(1, 3, 2, 1, 4))
    compiled = torch.compile(ms_deform_attn, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(value, [(2, 3)], *rest), ms_deform_attn(value, [(2, 3)], *rest)
    )
