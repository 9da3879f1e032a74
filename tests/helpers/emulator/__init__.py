"""The source of the CUDA kernels, compiled by g++ through a shim and run on the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.operator.launch import Launch

SOURCE = Path(__file__).with_name("ms_deform_attn.cpp")
KERNELS = Path(__file__).parents[3] / "engine" / "operator"
DRIVER = "libcuda.so.1"
COMPILER = shutil.which("g++")


@dataclass(frozen=True, slots=True)
class Emulator:
    """The compiled kernels, launched with the parameters that a driver would pass."""

    library: ctypes.CDLL

    def launch(
        self,
        launch: Launch,
        inputs: Sequence[NDArray[np.generic]],
        outputs: Sequence[NDArray[np.generic]],
        backwards: bool = False,
    ) -> None:
        """Run every thread of a launch; `backwards` starts with the last thread of each warp."""
        values = [
            *(ctypes.c_void_p(array.ctypes.data) for array in inputs),
            *(ctypes.c_int(number) for number in launch.numbers),
            *(ctypes.c_void_p(array.ctypes.data) for array in outputs),
        ]
        addresses = [ctypes.addressof(value) for value in values]
        self.library.emulate(
            launch.kernel.encode(),
            (ctypes.c_uint * 2)(*launch.grid),
            (ctypes.c_uint * 2)(*launch.block),
            ctypes.c_bool(backwards),
            (ctypes.c_void_p * len(values))(*addresses),
        )


def compile_emulator(folder: Path) -> Emulator:
    """Compile the kernels into a library in `folder`, named as the CUDA driver's; two seconds."""
    assert COMPILER is not None
    library = folder / DRIVER
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{KERNELS}"]
    subprocess.run([COMPILER, *flags, SOURCE, "-o", library], check=True)
    return Emulator(ctypes.CDLL(str(library)))
