"""`engine.runtimes.overlap.Device` through the CUDA runtime's bindings, without PyTorch."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.errors import DeviceFull, InferError, MissingDependency
from prompt_iml.engine.operator import cuda

try:
    from cuda.bindings import runtime as cudart
except ImportError:
    cudart = None  # `cuda.unavailable` names the fix

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Buffer:
    """Memory of the GPU from `address` on; freed with the last reference."""

    address: int


class CudaDevice:
    """One GPU, by the CUDA runtime's number. See `engine.runtimes.overlap.Device`.

    Attributes:
        name: the GPU's name, from the driver.
        capability: its compute capability, (major, minor).

    Raises:
        MissingDependency: no bindings, no driver or no GPU; the message names what to install.
    """

    def __init__(self, number: int = 0) -> None:
        if reason := cuda.unavailable():
            raise MissingDependency(reason)
        if number >= _check(cudart.cudaGetDeviceCount()):
            raise MissingDependency(f"this machine has no GPU {number}: see nvidia-smi")
        _check(cudart.cudaSetDevice(number))
        properties = _check(cudart.cudaGetDeviceProperties(number))
        self.name = properties.name.rstrip(b"\0").decode()
        self.capability = (int(properties.major), int(properties.minor))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Device`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(_check(cudart.cudaHostAlloc(size, 0)))
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, cudart.cudaFreeHost, address)  # the array keeps it alive
        array: Array = np.ctypeslib.as_array(memory).view(dtype)
        return array[: math.prod(shape)].reshape(shape)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """See `Device`."""
        address = int(_check(cudart.cudaMalloc(math.prod(shape) * np.dtype(dtype).itemsize)))
        buffer = Buffer(address)
        weakref.finalize(buffer, cudart.cudaFree, address)
        return buffer

    def stream(self) -> Any:
        """See `Device`."""
        return _check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    def upload(self, source: Array, target: Buffer, stream: Any) -> None:
        """See `Device`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _copy(target.address, source.ctypes.data, source.nbytes, kind, stream)

    def download(self, source: Buffer, target: Array, stream: Any) -> None:
        """See `Device`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _copy(target.ctypes.data, source.address, target.nbytes, kind, stream)

    def record(self, stream: Any) -> Any:
        """See `Device`."""
        event = _check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming))
        weakref.finalize(event, cudart.cudaEventDestroy, int(event))
        _check(cudart.cudaEventRecord(event, stream))
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """See `Device`."""
        _check(cudart.cudaStreamWaitEvent(stream, event, 0))

    def synchronize(self, event: Any) -> None:
        """See `Device`."""
        _check(cudart.cudaEventSynchronize(event))

    def capture(self, stream: Any, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device`."""
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(cudart.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        finally:
            graph = _check(cudart.cudaStreamEndCapture(stream))
        launchable = _check(cudart.cudaGraphInstantiate(graph, 0))
        return lambda: _check(cudart.cudaGraphLaunch(launchable, stream))


def _copy(target: int, source: int, size: int, kind: Any, stream: Any) -> None:
    _check(cudart.cudaMemcpyAsync(target, source, size, kind, stream))


def _check(result: tuple[Any, ...]) -> Any:
    """Return the value of a call of the CUDA runtime; raise its error as one of ours."""
    error, *values = result
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        cudart.cudaGetLastError()  # or the next call would report it again
        raise DeviceFull("the GPU's memory is full")
    if error:
        raise InferError(f"CUDA: {error.name}")
    return values[0] if values else None
