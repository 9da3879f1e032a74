"""The search for matches: PyTorch's form on the GPU against the CPU's kernel.

Letters: h w rows and columns of cells, P cells of a descriptor, Q queries, S = h*w cells.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prompt_iml.engine.detection.context import NEAR, search_matches
from prompt_iml.engine.operator import cpu
from tests.bench.gpu.device import DEVICE, REHEARSED, Row, milliseconds

CELLS = (16, 24) if REHEARSED else (96, 128)  # those of a picture of 512x384, which is the most
SAME_PLACES = 0.999  # share of the queries; the others are ties


def measure() -> list[Row]:
    """Return milliseconds a picture of each way, after comparing what they find."""
    random = np.random.default_rng(0)
    descriptors = random.normal(size=(*CELLS, cpu.DESCRIPTOR)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=2, keepdims=True)
    on_device = torch.from_numpy(descriptors).to(DEVICE)
    compiled = torch.compile(torch_search, backend="eager" if REHEARSED else "inductor")
    of_cpu = cpu.best_matches if cpu.available() else search_matches
    best, place = (array.ravel() for array in of_cpu(descriptors, NEAR))
    for search in (torch_search, compiled):
        found, found_place = (each.cpu().numpy() for each in search(on_device, NEAR))
        np.testing.assert_allclose(found, best, atol=1e-4)
        assert (found_place == place).mean() >= SAME_PLACES
    where = "CPU kernel, one thread" if cpu.available() else "NumPy"
    taken = milliseconds({
        "PyTorch": lambda: torch_search(on_device, NEAR),
        "torch.compile of it": lambda: compiled(on_device, NEAR),
        where: lambda: of_cpu(descriptors, NEAR),
    })  # fmt: skip
    return [Row(name, ms, "ms a picture") for name, ms in taken.items()]


def torch_search(descriptors_hwP: Tensor, near: int) -> tuple[Tensor, Tensor]:
    """Return what `engine.operator.cpu.best_matches` does, flattened to (Q,)."""
    height, width, cells = descriptors_hwP.shape
    queries_QP = descriptors_hwP[1::2, 1::2].reshape(-1, cells)
    correlation_QS = queries_QP @ descriptors_hwP.reshape(-1, cells).T
    rows, columns = (_near(size, near, descriptors_hwP.device) for size in (height, width))
    excluded = rows[:, None, :, None] & columns[None, :, None, :]
    best, place = correlation_QS.masked_fill(excluded.reshape(correlation_QS.shape), -2).max(1)
    return best, place


def _near(size: int, near: int, device: torch.device) -> Tensor:
    """Return which cells of an axis are near to which queries, (size // 2, size)."""
    cells = torch.arange(size, device=device)
    return (cells[1::2, None] - cells).abs() < near
