"""The operator: our kernel against what people use, and against the memory's own speed.

16 images, 21,760 queries, 256 channels, 8 heads, 4 levels, 4 points; small in a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_iml.engine.operator import cuda, ptx, torch_op
from prompt_iml.engine.operator.launch import Launch
from prompt_iml.engine.operator.torch_op import CudaKernel, reference
from tests.bench.gpu.device import DEVICE, REHEARSED, Row, milliseconds

BASELINE = Path(__file__).with_name("one_thread_a_channel.cu")
LEVELS = ((8, 8), (4, 4)) if REHEARSED else ((128, 128), (64, 64), (32, 32), (16, 16))
IMAGES, HEADS, DEPTH, POINTS = 1 if REHEARSED else 16, 8, 32, 4
COPIED = 1 << 20 if REHEARSED else 1 << 30  # bytes
BASELINE_THREADS = 256
GOAL_MS, GOAL_RATIO = 0.6, 2  # on an H200, in float16

Way = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """Tensors of one call. Points lie some four cells from their query's own place."""

    value: Tensor
    locations: Tensor
    weights: Tensor

    @property
    def least_bytes(self) -> int:
        """Bytes that a call must read and write at least."""
        read = (self.value, self.locations, self.weights)
        return sum(x.nbytes for x in read) + self.locations.shape[1] * self.value[:, 0].nbytes


def measure() -> list[Row]:
    """Return milliseconds and bandwidth of each way, after comparing what they compute.

    Raises:
        RuntimeError: the kernel cannot run here.
    """
    if reason := cuda.unavailable():
        raise RuntimeError(reason)
    cases = {name: _random_case(getattr(torch, name)) for name in ("float32", "float16")}
    halves = {"bfloat16": _random_case(torch.bfloat16)}
    ways = {f"ours, {name}": _call(_kernel, case) for name, case in (cases | halves).items()}
    least = {f"ours, {name}": case.least_bytes for name, case in (cases | halves).items()}
    skipped: list[Row] = []
    for name, case in cases.items():
        what = f"one thread a channel, {name}"
        try:
            ways[what], least[what] = _baseline(case), case.least_bytes
        except (ImportError, RuntimeError) as error:
            skipped.append(Row(what, None, "ms", f"not measured: {error}"))
    half = cases["float16"]
    compiled = torch.compile(reference, backend="eager" if REHEARSED else "inductor")
    for what, way in (("grid_sample", reference), ("torch.compile of it", compiled)):
        ways[f"{what}, float16"], least[f"{what}, float16"] = _call(way, half), half.least_bytes
    _compare(cases["float32"], half, ways)
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ways["copy"], least["copy"] = lambda: target.copy_(source), 2 * COPIED
    return _rows(milliseconds(ways), least) + skipped


def _rows(taken: dict[str, float], least: dict[str, int]) -> list[Row]:
    rates = {name: least[name] / ms / 1e6 for name, ms in taken.items()}
    rows = [
        Row(name, ms, "ms", f"{rates[name]:.0f} GB/s, {rates[name] / rates['copy']:.2f} of a copy")
        for name, ms in taken.items()
    ]
    ours = "ours, float16"
    rows.append(Row(f"{ours}: goal", GOAL_MS / taken[ours], "of it", f"{GOAL_MS} ms on an H200"))
    if other := taken.get("one thread a channel, float16"):
        ratio = other / taken[ours]
        rows.append(Row("one thread a channel / ours, float16", ratio, "x", f"goal {GOAL_RATIO}"))
    return rows


def _random_case(dtype: torch.dtype) -> Case:
    generator = torch.Generator(DEVICE).manual_seed(0)
    cells = sum(h * w for h, w in LEVELS)
    samples = (IMAGES, cells, HEADS, len(LEVELS), POINTS)
    normal: dict[str, Any] = {"generator": generator, "device": DEVICE}
    value = torch.randn(IMAGES, cells, HEADS, DEPTH, **normal).to(dtype)
    own = torch.cat([_centres(h, w) for h, w in LEVELS])[None, :, None, None, None]
    sizes = torch.tensor([(w, h) for h, w in LEVELS], device=DEVICE)[:, None]
    locations = own + 4 * torch.randn(*samples, 2, **normal) / sizes
    logits = torch.randn(*samples[:3], len(LEVELS) * POINTS, **normal)
    return Case(value, locations, logits.softmax(-1).reshape(samples))


def _centres(height: int, width: int) -> Tensor:
    """Return x and y of each cell, 0..1: (H*W, 2)."""
    y, x = ((torch.arange(side, device=DEVICE) + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def _call(way: Callable[..., Tensor], case: Case) -> Way:
    return lambda: way(case.value, LEVELS, case.locations, case.weights)


def _kernel(*inputs: Any) -> Tensor:
    out: Tensor = CudaKernel.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


def _baseline(case: Case) -> Way:
    if REHEARSED:
        raise RuntimeError("the emulator has our kernels alone")
    n, s, m, d = case.value.shape
    q = case.locations.shape[1]
    blocks = -(-q * m * d // BASELINE_THREADS)
    name = f"baseline_{str(case.value.dtype).removeprefix('torch.')}"
    numbers = (s, m, d, q, len(LEVELS), POINTS)
    plan = Launch(name, (blocks, n), (BASELINE_THREADS, 1), numbers)
    text = ptx.compile_source(ptx.ARCHITECTURE, BASELINE)
    inputs = [case.value, torch.tensor(LEVELS, device=DEVICE), case.locations, case.weights]
    out = torch.empty(n, q, m * d, dtype=case.value.dtype, device=DEVICE)

    def call() -> Tensor:
        addresses = [tensor.data_ptr() for tensor in inputs]
        stream = torch.cuda.current_stream().cuda_stream
        cuda.run(plan, addresses, [out.data_ptr()], torch.cuda.current_device(), stream, text)
        return out

    return call


def _compare(single: Case, half: Case, ways: dict[str, Way]) -> None:
    """Check what is measured: the time of a kernel that computes something else is no result."""
    expected = reference(single.value, LEVELS, single.locations, single.weights)
    for name, way in ways.items():
        tolerance = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[name.split(", ")[-1]]
        torch.testing.assert_close(way().float(), expected, rtol=tolerance, atol=tolerance)


def emulate() -> None:
    """Launch on the CPU's memory, where the driver is the emulator."""

    def launch(plan: Launch, *tensors: Any) -> None:
        read, written = ([x.data_ptr() for x in each] for each in tensors)
        cuda.run(plan, read, written, device=0, stream=0)

    torch_op._launch = launch


if REHEARSED:
    emulate()
