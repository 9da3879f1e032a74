"""PyTorch on a GPU, in bfloat16 with our kernel, as an `engine.runtimes.overlap.OverlappingEngine`.

PyTorch implements both the device (streams, events, pinned memory, CUDA graphs) and the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_iml.engine.errors import DeviceFull, InferError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.overlap import Buffers, OverlappingEngine, Shape
from prompt_iml.engine.runtimes.torch_cpu import load_network

BATCH = 16  # tiles; a scan halves it where they do not fit

Array = NDArray[Any]


class TorchDevice:
    """A GPU through PyTorch. See `engine.runtimes.overlap.Device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Device`."""
        array: Array = torch.empty(shape, dtype=_dtype(dtype), pin_memory=True).numpy()
        return array

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """See `Device`."""
        try:
            return torch.empty(shape, dtype=_dtype(dtype), device=self._device)
        except torch.OutOfMemoryError as error:
            raise DeviceFull("the GPU's memory is full") from error

    def stream(self) -> Any:
        """See `Device`."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def upload(self, source: Array, target: Tensor, stream: Any) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            target.copy_(torch.from_numpy(source), non_blocking=True)

    def download(self, source: Tensor, target: Array, stream: Any) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            torch.from_numpy(target).copy_(source, non_blocking=True)

    def record(self, stream: Any) -> Any:
        """See `Device`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """See `Device`."""
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """See `Device`."""
        try:
            event.synchronize()
        except RuntimeError as error:
            raise InferError(f"CUDA: {error}") from error

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()

        def launch() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return launch


class TorchProgram:
    """The network in PyTorch. See `engine.runtimes.overlap.Program`.

    Args:
        model: the model to run.
        device: a GPU, or in tests the CPU.
        dtype: type of all operators that autocast does not keep in float32.
    """

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        short = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[dtype]
        self.name = f"torch-{torch.__version__}/{short}/{device.type}"
        self.largest = BATCH
        self._prompts = [f"prompts_{i}" for i in range(len(model.prompts.tensors))]
        network = load_network(model).to(device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Any) -> None:
        """See `Program`."""
        prompts = [buffers[name] for name in self._prompts]
        inputs = [buffers.get(name) for name in ("image", "qtable", "histogram", "matches")]
        try:
            with torch.inference_mode(), self._autocast, torch.cuda.stream(stream):
                mask, score = self._network(*inputs, prompts)
                buffers["mask_logits"].copy_(mask)
                buffers["score_logit"].copy_(score)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceFull(f"{self.name}: no room for {shape}") from error
        except RuntimeError as error:
            raise InferError(f"{self.name}: {error}") from error


def available() -> bool:
    """Return whether PyTorch finds a GPU."""
    return torch.cuda.is_available()


def open_torch_cuda(model: Model) -> OverlappingEngine:
    """Open the network on PyTorch's first GPU, in bfloat16 if the GPU has it, or else float16."""
    device = torch.device("cuda")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return OverlappingEngine(model, TorchDevice(device), TorchProgram(model, device, dtype))


def _dtype(name: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, name)).dtype
