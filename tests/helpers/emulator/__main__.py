"""Launch a kernel through `engine.operator.cuda` and NVIDIA's bindings, and print its output.

The caller's LD_LIBRARY_PATH must name the folder of the emulator's library, which then is the
driver.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from prompt_iml.engine.operator import cuda, launch
from prompt_iml.engine.operator.launch import Launch


def case() -> tuple[Launch, list[NDArray[np.generic]], NDArray[np.float32]]:
    """Return a launch, its inputs, and NaNs in place of its output; always the same."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 19, 3, 16)).astype(np.float32)
    sizes = np.array([(5, 3), (2, 2)])
    locations, weights = (
        rng.random((2, 7, 3, 2, 4, *last)).astype(np.float32) for last in ((2,), ())
    )
    plan = launch.forward("float32", value.shape, locations.shape)
    return plan, [value, sizes, locations, weights], np.full((2, 7, 48), np.nan, np.float32)


if __name__ == "__main__":
    plan, inputs, out = case()
    addresses = [array.ctypes.data for array in inputs]
    cuda.run(plan, addresses, [out.ctypes.data], device=0, stream=0)
    print(json.dumps(out.tolist()))
