"""The operator against arithmetic done one point at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.deform_attn import ms_deform_attn

Shapes = Sequence[tuple[int, int]]


def _random_case(shapes: Shapes, heads: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (about half of them outside the map) and weights, float64."""
    torch.manual_seed(seed)
    n, q, d, points = 2, 5, 3, 4
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


@pytest.mark.parametrize("shapes", [[(1, 1)], [(7, 5)], [(9, 4), (5, 2), (1, 3)]])
def test_equals_bilinear_sampling_one_point_at_a_time(shapes: Shapes) -> None:
    value, location, weight = _random_case(shapes)
    out = ms_deform_attn(value, shapes, location, weight)
    expected = _one_point_at_a_time(value, shapes, location, weight)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_locations_have_x_first() -> None:
    value = torch.arange(6.0).reshape(1, 6, 1, 1)  # 2 rows of 3
    last_column_first_row = torch.tensor([2.5 / 3, 0.5 / 2]).reshape(1, 1, 1, 1, 1, 2)
    out = ms_deform_attn(value, [(2, 3)], last_column_first_row, torch.ones(1, 1, 1, 1, 1))
    assert out.item() == pytest.approx(2.0)


def test_half_precision_values_keep_float32_locations() -> None:
    value, location, weight = _random_case([(128, 128)])
    expected = ms_deform_attn(value, [(128, 128)], location, weight)
    half = ms_deform_attn(value.half(), [(128, 128)], location.float(), weight.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=5e-3)


def test_gradients_are_those_of_finite_differences() -> None:
    value, location, weight = _random_case([(4, 3), (2, 2)])
    leaves = [tensor.requires_grad_() for tensor in (value, location, weight)]
    torch.autograd.gradcheck(lambda v, p, a: ms_deform_attn(v, [(4, 3), (2, 2)], p, a), leaves)
