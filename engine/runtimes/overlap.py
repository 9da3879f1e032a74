"""An engine on a GPU that uploads one batch while the previous one computes.

    submit    batch -> pinned memory -> (copy stream) -> device -> (compute stream) the network
    result    device -> (copy stream) -> pinned memory -> Detection

Two sets of buffers take turns, so that no buffer is written while it is read. The download of a
batch is queued only when its result is requested: behind the next batch's upload, which it would
otherwise delay. `Device` is a GPU and `Program` the network on it, from
`engine.runtimes.cuda_device` and `engine.runtimes.tensorrt`, or both from
`engine.runtimes.torch_cuda`. The tests use a device that reorders all work that no stream and no
event orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.errors import DeviceFull, InferError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.prompts import PromptSet, graph_inputs
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Engine, Pending

Array = NDArray[Any]
Shape = tuple[int, int, int]  # of a batch: images, height, width
Buffers = Mapping[str, Any]  # device memory by the name of the graph's input or output

BUFFER_SETS = 2


class Device(Protocol):
    """Memory, streams and events of one GPU. Buffers, streams and events are of its own types.

    All methods but `pinned`, `buffer`, `stream` and `synchronize` only queue work on a stream,
    which runs its work in order.
    """

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Allocate pinned host memory, from which copies run asynchronously."""
        ...

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Allocate device memory. Raises `DeviceFull`."""
        ...

    def stream(self) -> Any:
        """Create a stream."""
        ...

    def upload(self, source: Array, target: Any, stream: Any) -> None:
        """Copy from pinned to device memory."""
        ...

    def download(self, source: Any, target: Array, stream: Any) -> None:
        """Copy from device to pinned memory."""
        ...

    def record(self, stream: Any) -> Any:
        """Queue an event after all work of the stream so far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Make later work of the stream wait for the event."""
        ...

    def synchronize(self, event: Any) -> None:
        """Block until the event has happened. Raises `InferError` when the device failed."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues as one launch (a CUDA graph), without running it."""
        ...


class Program(Protocol):
    """A network on a device.

    Attributes:
        name: see `Engine.name`.
        largest: most images in a batch.
    """

    name: str
    largest: int

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Any) -> None:
        """Queue one run. The buffers of a batch are always one of the same few sets.

        Raises:
            InferError: the program was not built for this shape.
            DeviceFull: the device has no room for the run.
        """
        ...


@dataclass(slots=True)
class _BatchBuffers:
    """Memory for one batch of one shape.

    Attributes:
        host, device: pinned and device memory by the name of the graph's input or output.
        runs: how often the network ran on it.
        launch: the captured CUDA graph of a run, if there is one.
        in_use: whether a pending batch uses it.
    """

    host: dict[str, Array]
    device: dict[str, Any]
    runs: int = 0
    launch: Callable[[], None] | None = None
    in_use: bool = False


class _PendingBatch:
    """A batch on the device. `download` waits for it and frees its buffers: it is called once."""

    def __init__(self, download: Callable[[], Detection]) -> None:
        self._download = download
        self._detection: Detection | None = None

    def result(self) -> Detection:
        """See `Pending`; later batches do not overwrite the arrays."""
        if self._detection is None:
            self._detection = self._download()
        return self._detection


class OverlappingEngine(Engine):
    """An engine that runs a program on a device.

    Args:
        graphs: launch a run as one CUDA graph, from the third run on the same buffers on.
    """

    depth = BUFFER_SETS

    def __init__(self, model: Model, device: Device, program: Program, graphs: bool = True) -> None:
        self.name = program.name
        self.batch = program.largest
        self._model, self._device, self._program, self._graphs = model, device, program, graphs
        self._copies, self._compute = device.stream(), device.stream()
        self._buffers: dict[tuple[Shape, int], _BatchBuffers] = {}
        self._prompts: dict[str, Any] = {}
        self.load_prompts(model.prompts)

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on; pending batches keep theirs."""
        for name, tensor in graph_inputs(prompts, self._model.config).items():
            host = self._device.pinned(tensor.shape, "float32")
            np.copyto(host, tensor)
            if name not in self._prompts:
                self._prompts[name] = self._device.buffer(tensor.shape, "float32")
            # On the compute stream, after the runs that still read the old prompts.
            self._device.upload(host, self._prompts[name], self._compute)
            self._device.synchronize(self._device.record(self._compute))

    def submit(self, batch: Batch) -> Pending:
        """Start a batch; at most `depth` may be pending.

        Raises:
            InferError: the network was not built for this shape.
            DeviceFull: no room on the device for a batch of this size.
        """
        try:
            return self._submit(batch)
        except DeviceFull:
            self._release(len(batch.image))
            raise

    def _submit(self, batch: Batch) -> Pending:
        device, buffers = self._device, self._free_buffers(batch)
        for name, array in batch.inputs(self._model.config).items():
            np.copyto(buffers.host[name], array)
            device.upload(buffers.host[name], buffers.device[name], self._copies)
        device.wait(self._compute, device.record(self._copies))
        self._run(buffers, _shape(batch))
        buffers.in_use = True
        computed = device.record(self._compute)
        return _PendingBatch(lambda: self._download(buffers, computed))

    def _download(self, buffers: _BatchBuffers, computed: Any) -> Detection:
        """Wait for the event `computed`, and free the buffers. Raises `InferError`."""
        device = self._device
        buffers.in_use = False
        device.wait(self._copies, computed)
        for name in ("mask_logits", "score_logit"):
            device.download(buffers.device[name], buffers.host[name], self._copies)
        device.synchronize(device.record(self._copies))
        host = buffers.host
        return Detection(host["mask_logits"].copy(), host["score_logit"].copy())

    def _free_buffers(self, batch: Batch) -> _BatchBuffers:
        for number in range(BUFFER_SETS):
            key = (_shape(batch), number)
            if key not in self._buffers:
                self._buffers[key] = self._allocate(batch)
            if not self._buffers[key].in_use:
                return self._buffers[key]
        raise InferError(f"{self.name}: more than {BUFFER_SETS} batches pending")

    def _release(self, size: int) -> None:
        """Free the buffers of batches of at least this size that are not pending."""
        for key, buffers in list(self._buffers.items()):
            if key[0][0] >= size and not buffers.in_use:
                del self._buffers[key]

    def _allocate(self, batch: Batch) -> _BatchBuffers:
        n, height, width = _shape(batch)
        tensors = {
            **{
                name: (array.shape, array.dtype.name)
                for name, array in batch.inputs(self._model.config).items()
            },
            "mask_logits": ((n, height // 4, width // 4), "float32"),
            "score_logit": ((n,), "float32"),
        }
        return _BatchBuffers(
            {name: self._device.pinned(*tensor) for name, tensor in tensors.items()},
            {name: self._device.buffer(*tensor) for name, tensor in tensors.items()},
        )

    def _run(self, buffers: _BatchBuffers, shape: Shape) -> None:
        """Queue a run: the first two directly, since libraries initialise in them; then a graph."""

        def enqueue() -> None:
            self._program.enqueue(shape, {**buffers.device, **self._prompts}, self._compute)

        if self._graphs and buffers.launch is None and buffers.runs == 2:
            buffers.launch = self._device.capture(self._compute, enqueue)
        (buffers.launch or enqueue)()
        buffers.runs += 1


def _shape(batch: Batch) -> Shape:
    n, height, width, _ = batch.image.shape
    return n, height, width
