"""An engine on a GPU: while one batch computes, the next one travels there.

    submit    batch -> pinned memory -> (copy stream) -> device -> (compute stream) the network
    result    device -> (copy stream) -> pinned memory -> Detection

Two slots take turns, each with memory of its own, so that nothing is written while it is read. The
download of a batch is queued only when its result is asked for: behind the next batch's upload,
which it would otherwise delay. `Device` is a GPU and `Program` is the network on it: these are
`engine.runtimes.cuda_device` with `engine.runtimes.tensorrt`, or both of PyTorch
(`engine.runtimes.torch_cuda`).
The tests use a device that reorders everything whose order no stream and no event fixes.
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

SLOTS = 2


class Device(Protocol):
    """Memory, streams and events of one GPU; `buffer`, `stream` and `event` are its own things.

    All but `pinned`, `buffer`, `stream` and `synchronize` only queue, in the order of a stream.
    """

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Host memory that a copy can go on from by itself."""
        ...

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Device memory. Raises `DeviceFull`."""
        ...

    def stream(self) -> Any:
        """A new stream."""
        ...

    def upload(self, source: Array, target: Any, stream: Any) -> None:
        """Pinned to device memory."""
        ...

    def download(self, source: Any, target: Array, stream: Any) -> None:
        """Device to pinned memory."""
        ...

    def record(self, stream: Any) -> Any:
        """An event behind what the stream holds so far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What the stream gets from now on comes after the event."""
        ...

    def synchronize(self, event: Any) -> None:
        """Return when the event has come. Raises `InferError` when the device failed."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` queues, as one launch (a CUDA graph); it is not run yet."""
        ...


class Program(Protocol):
    """A network on a device.

    Attributes:
        name: as `Engine.name`.
        largest: images of a batch, at most.
    """

    name: str
    largest: int

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Any) -> None:
        """Queue one run. Always the same buffers for one slot and shape.

        Raises:
            InferError: it was not made for this shape.
            DeviceFull: the device has no room for it.
        """
        ...


@dataclass(slots=True)
class _Slot:
    """Memory for one batch of one shape, and the launch of its run once there is one."""

    host: dict[str, Array]
    device: dict[str, Any]
    runs: int = 0
    launch: Callable[[], None] | None = None
    taken: bool = False


class _PendingBatch:
    """A batch on the device. `download` waits for it and frees its slot, and so is called once."""

    def __init__(self, download: Callable[[], Detection]) -> None:
        self._download = download
        self._detection: Detection | None = None

    def result(self) -> Detection:
        """See `Pending`; the arrays are the caller's."""
        if self._detection is None:
            self._detection = self._download()
        return self._detection


class OverlappingEngine(Engine):
    """A program on a device, as a scan's engine.

    Args:
        graphs: launch what a slot has run twice before as one CUDA graph.

    Attributes:
        batch, depth: as in `engine.runtimes.protocol.Engine`.
    """

    depth = SLOTS

    def __init__(self, model: Model, device: Device, program: Program, graphs: bool = True) -> None:
        self.name = program.name
        self.batch = program.largest
        self._model, self._device, self._program, self._graphs = model, device, program, graphs
        self._copies, self._compute = device.stream(), device.stream()
        self._slots: dict[tuple[Shape, int], _Slot] = {}
        self._prompts: dict[str, Any] = {}
        self.load_prompts(model.prompts)

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on; those under way finish with theirs."""
        for name, tensor in graph_inputs(prompts, self._model.config).items():
            host = self._device.pinned(tensor.shape, "float32")
            np.copyto(host, tensor)
            if name not in self._prompts:
                self._prompts[name] = self._device.buffer(tensor.shape, "float32")
            # On the compute stream: behind the runs that still read the old ones.
            self._device.upload(host, self._prompts[name], self._compute)
            self._device.synchronize(self._device.record(self._compute))

    def submit(self, batch: Batch) -> Pending:
        """Start a batch; at most `depth` may be pending.

        Raises:
            InferError: the network was not made for this shape.
            DeviceFull: no room on the device for a batch of this size.
        """
        try:
            return self._submit(batch)
        except DeviceFull:
            self._release(len(batch.image))
            raise

    def _submit(self, batch: Batch) -> Pending:
        device, slot = self._device, self._slot(batch)
        np.copyto(slot.host["image"], batch.image)
        np.copyto(slot.host["qtable"], batch.qtable)
        for name in ("image", "qtable"):
            device.upload(slot.host[name], slot.device[name], self._copies)
        device.wait(self._compute, device.record(self._copies))
        self._run(slot, _shape(batch))
        slot.taken = True
        computed = device.record(self._compute)
        return _PendingBatch(lambda: self._download(slot, computed))

    def _download(self, slot: _Slot, computed: Any) -> Detection:
        """Wait for the event `computed`, and free the slot. Raises `InferError`."""
        device = self._device
        slot.taken = False
        device.wait(self._copies, computed)
        for name in ("mask_logits", "score_logit"):
            device.download(slot.device[name], slot.host[name], self._copies)
        device.synchronize(device.record(self._copies))
        return Detection(slot.host["mask_logits"].copy(), slot.host["score_logit"].copy())

    def _slot(self, batch: Batch) -> _Slot:
        for turn in range(SLOTS):
            key = (_shape(batch), turn)
            if key not in self._slots:
                self._slots[key] = self._allocate(batch)
            if not self._slots[key].taken:
                return self._slots[key]
        raise InferError(f"{self.name}: more than {SLOTS} batches pending")

    def _release(self, size: int) -> None:
        """Forget the memory of batches this large, but of those under way."""
        for key, slot in list(self._slots.items()):
            if key[0][0] >= size and not slot.taken:
                del self._slots[key]

    def _allocate(self, batch: Batch) -> _Slot:
        n, height, width = _shape(batch)
        tensors = {
            "image": ((n, height, width, 3), "uint8"),
            "qtable": ((n, 64), "float32"),
            "mask_logits": ((n, height // 4, width // 4), "float32"),
            "score_logit": ((n,), "float32"),
        }
        return _Slot(
            {name: self._device.pinned(*tensor) for name, tensor in tensors.items()},
            {name: self._device.buffer(*tensor) for name, tensor in tensors.items()},
        )

    def _run(self, slot: _Slot, shape: Shape) -> None:
        """Twice as it is, as libraries set themselves up in the first runs; then as a graph."""

        def enqueue() -> None:
            self._program.enqueue(shape, {**slot.device, **self._prompts}, self._compute)

        if self._graphs and slot.launch is None and slot.runs == 2:
            slot.launch = self._device.capture(self._compute, enqueue)
        (slot.launch or enqueue)()
        slot.runs += 1


def _shape(batch: Batch) -> Shape:
    n, height, width, _ = batch.image.shape
    return n, height, width
