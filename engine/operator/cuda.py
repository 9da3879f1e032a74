"""The operator on an NVIDIA GPU: the packaged PTX, launched through the CUDA driver.

Callers check `unavailable()`, and compute the operator another way without the kernel. A launch
takes addresses of GPU memory and a stream, and needs no PyTorch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.operator import ptx
from prompt_iml.engine.operator.launch import Launch


@cache
def unavailable() -> str | None:
    """Return why the kernels cannot run here, in one line with the fix; None if they can."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return "the CUDA kernel needs cuda-bindings: pip install 'prompt-iml[gpu]'"
    try:
        (error,) = driver.cuInit(0)
    except RuntimeError:  # no libcuda
        return "no NVIDIA driver is installed: install version 525 or later"
    if error:
        return f"the NVIDIA driver finds no GPU ({error.name}): see nvidia-smi"
    _, version = driver.cuDriverGetVersion()
    if version < 12000:
        return (
            f"the NVIDIA driver knows CUDA {version // 1000} and the kernel needs 12: "
            "install version 525 or later"
        )
    return None


def run(
    launch: Launch,
    inputs: Sequence[int],
    outputs: Sequence[int],
    device: int,
    stream: int,
    text: str | None = None,
) -> None:
    """Queue a launch on a stream and return.

    Args:
        launch: from `engine.operator.launch`.
        inputs, outputs: addresses in the GPU's memory, in the order of `launch`.
        device: the GPU's number in the CUDA runtime.
        stream: a CUstream of that GPU, as an int.
        text: PTX that holds the kernel; None: the packaged one.

    Raises:
        MissingDependency: see `unavailable`.
        RuntimeError: the driver refused the launch.
    """
    if reason := unavailable():
        raise MissingDependency(reason)
    from cuda.bindings import driver

    numbers = launch.numbers
    values = (*inputs, *numbers, *outputs)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    types = (pointer,) * len(inputs) + (number,) * len(numbers) + (pointer,) * len(outputs)
    _checked(driver.cuCtxSetCurrent(_context(device)))  # autograd's threads may have none yet
    _checked(
        driver.cuLaunchKernel(
            driver.CUfunction(int(_kernel(launch.kernel, text or ptx.packaged()))),
            *(*launch.grid, 1),
            *(*launch.block, 1),
            0,
            driver.CUstream(stream),
            (values, types),
            0,
        )
    )


@cache
def _kernel(name: str, text: str) -> Any:
    """Load a kernel, for the context that is current when it is launched."""
    from cuda.bindings import driver

    library = _checked(driver.cuLibraryLoadData(text.encode() + b"\0", [], [], 0, [], [], 0))
    return _checked(driver.cuLibraryGetKernel(library, name.encode()))


@cache
def _context(device: int) -> Any:
    """Return the primary context of a GPU, which the CUDA runtime and PyTorch use."""
    from cuda.bindings import driver

    return _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device))))


def _checked(answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    if error:
        raise RuntimeError(f"CUDA driver: {error.name}")
    return values[0] if values else None
