"""A training step: network, loss, gradients and optimiser, in bfloat16, without Ray."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from prompt_iml.cluster.training.losses import training_loss
from prompt_iml.cluster.training.schedule import precision, weight_decay_groups
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.operator import torch_op
from prompt_iml.engine.runtimes.torch_cpu import load_network
from tests.bench.gpu.device import DEVICE, REHEARSED, Row, milliseconds
from tests.bench.gpu.engine import MODEL, _noise

SIDE, BATCHES = 256, (2,) if REHEARSED else (16, 64)
RATE, DECAY, CLIP = 1e-5, 0.02, 2.0


def measure() -> list[Row]:
    """Return examples a second, with our kernel and with `grid_sample` in its place."""
    network = load_network(load_model(MODEL)).to(DEVICE).train()
    rows = []
    for size in BATCHES:
        step = _step(network, size)
        kernel = milliseconds({"our kernel": step})
        fits, torch_op._cuda_kernel_fits = torch_op._cuda_kernel_fits, lambda *_: False
        taken = kernel if REHEARSED else kernel | milliseconds({"grid_sample": step})
        torch_op._cuda_kernel_fits = fits
        rows += [
            Row(f"batch {size} of {SIDE}x{SIDE}, {name}", 1e3 * size / ms, "examples/s",
                f"{ms:.1f} ms a step")
            for name, ms in taken.items()
        ]  # fmt: skip
    return rows


def _step(network: PromptIML, size: int) -> Callable[[], None]:
    """Return one step on the same batch again and again. Raises RuntimeError: the loss is not
    finite."""
    batch = _noise(SIDE, size)
    inputs = [
        torch.from_numpy(array).to(DEVICE)
        for array in (batch.image, batch.qtable, batch.histogram, batch.matches)
    ]
    mask = torch.rand(size, SIDE, SIDE, device=DEVICE) > 0.9
    groups = [group for group in weight_decay_groups(network, DECAY) if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=RATE, fused=True)
    parameters = [p for group in groups for p in group["params"]]

    def step() -> None:
        with precision("cpu" if REHEARSED else "cuda"):
            loss = training_loss(*network.localize(network.extract(*inputs)), mask)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        if not loss.isfinite():
            raise RuntimeError("the loss of a training step is not finite")

    return step
