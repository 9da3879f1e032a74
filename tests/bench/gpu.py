"""The operator on a GPU: our kernel against what people use, and against the memory's own speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prompt_iml.engine.operator import cuda, ptx
from prompt_iml.engine.operator.launch import Launch
from prompt_iml.engine.operator.torch_op import ms_deform_attn, reference

BASELINE = Path(__file__).with_name("one_thread_a_channel.cu")
LEVELS = ((128, 128), (64, 64), (32, 32), (16, 16))  # 21,760 queries: each cell asks
IMAGES, HEADS, DEPTH, POINTS = 16, 8, 32, 4
ROUNDS, CALLS = 7, 10
COPIED = 1 << 30  # bytes
BASELINE_THREADS = 256


@dataclass(frozen=True, slots=True)
class Case:
    """Tensors of one call, on the GPU. Points lie some four cells from their query's own place."""

    value: Tensor
    locations: Tensor
    weights: Tensor

    @property
    def least_bytes(self) -> int:
        """What must be read and written once."""
        read = (self.value, self.locations, self.weights)
        return sum(x.nbytes for x in read) + self.locations.shape[1] * self.value[:, 0].nbytes


def unavailable() -> str | None:
    """Why there is nothing to measure here."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return cuda.unavailable()


def name() -> str:
    """The GPU, and whose build of PyTorch."""
    return (
        f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__} (CUDA {torch.version.cuda})"
    )


def milliseconds() -> dict[str, tuple[float, int]]:
    """For each way: of one call, the median of rounds in which all take turns; and least bytes."""
    cases = {
        name: _random_case(getattr(torch, name)) for name in ("float32", "float16", "bfloat16")
    }
    half = cases["float16"]
    compiled = torch.compile(reference)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        f"ours, {name}": (_call(ms_deform_attn, case), case.least_bytes)
        for name, case in cases.items()
    }
    for name in ("float32", "float16"):
        ways[f"one thread a channel, {name}"] = (_baseline(cases[name]), cases[name].least_bytes)
    ways["grid_sample, float16"] = (_call(reference, half), half.least_bytes)
    ways["torch.compile of it, float16"] = (_call(compiled, half), half.least_bytes)
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ways["copy"] = (lambda: target.copy_(source), 2 * COPIED)
    _compare(cases["float32"], half)
    taken = _in_turns({name: way for name, (way, _) in ways.items()})
    return {name: (taken[name], least) for name, (_, least) in ways.items()}


def _random_case(dtype: torch.dtype) -> Case:
    generator = torch.Generator("cuda").manual_seed(0)
    cells = sum(h * w for h, w in LEVELS)
    samples = (IMAGES, cells, HEADS, len(LEVELS), POINTS)
    normal = {"generator": generator, "device": "cuda"}
    value = torch.randn(IMAGES, cells, HEADS, DEPTH, **normal).to(dtype)
    own = torch.cat([_centres(h, w) for h, w in LEVELS])[None, :, None, None, None]
    sizes = torch.tensor([(w, h) for h, w in LEVELS], device="cuda")[:, None]
    locations = own + 4 * torch.randn(*samples, 2, **normal) / sizes
    logits = torch.randn(*samples[:3], len(LEVELS) * POINTS, **normal)
    return Case(value, locations, logits.softmax(-1).reshape(samples))


def _centres(height: int, width: int) -> Tensor:
    """(H*W, 2): x and y of each cell, 0..1."""
    y, x = ((torch.arange(side, device="cuda") + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def _call(way: Callable[..., Tensor], case: Case) -> Callable[[], Tensor]:
    return lambda: way(case.value, LEVELS, case.locations, case.weights)


def _baseline(case: Case) -> Callable[[], Tensor]:
    n, s, m, d = case.value.shape
    q = case.locations.shape[1]
    blocks = -(-q * m * d // BASELINE_THREADS)
    name = f"baseline_{str(case.value.dtype).removeprefix('torch.')}"
    numbers = (s, m, d, q, len(LEVELS), POINTS)
    plan = Launch(name, (blocks, n), (BASELINE_THREADS, 1), numbers)
    text = ptx.compile_source(ptx.ARCHITECTURE, BASELINE)
    inputs = [case.value, torch.tensor(LEVELS, device="cuda"), case.locations, case.weights]
    out = torch.empty(n, q, m * d, dtype=case.value.dtype, device="cuda")

    def call() -> Tensor:
        addresses = [tensor.data_ptr() for tensor in inputs]
        stream = torch.cuda.current_stream().cuda_stream
        cuda.run(plan, addresses, [out.data_ptr()], torch.cuda.current_device(), stream, text)
        return out

    return call


def _compare(single: Case, half: Case) -> None:
    """A number of a kernel that computes something else is worth nothing."""
    for case, tolerance in ((single, 1e-4), (half, 2e-2)):
        expected = _call(reference, single)()
        for way in (_call(ms_deform_attn, case), _baseline(case)):
            torch.testing.assert_close(way().float(), expected, rtol=tolerance, atol=tolerance)


def _in_turns(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    for way in ways.values():  # compiles, allocates
        way()
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(CALLS):
                way()
            end.record()
            end.synchronize()
            taken[name].append(begin.elapsed_time(end) / CALLS)
    return {name: sorted(each)[ROUNDS // 2] for name, each in taken.items()}
