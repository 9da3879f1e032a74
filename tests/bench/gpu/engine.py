"""The PyTorch engine: parity with the reference on the CPU, and its rates."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.operator import cuda
from prompt_iml.engine.runtimes.overlap import Buffers, OverlappingEngine, Program, Shape
from prompt_iml.engine.runtimes.parity import TOLERANCES, Case, compare, missed_prompts, noise
from prompt_iml.engine.runtimes.protocol import Batch
from prompt_iml.engine.runtimes.torch_cpu import TorchEngine
from prompt_iml.engine.runtimes.torch_cuda import TorchDevice, TorchProgram
from tests.bench.gpu.device import DEVICE, REHEARSED, Row
from tests.bench.gpu.files import FOUND
from tests.helpers.null_device import NullDevice

MODEL = "prompt-iml-micro"
SIDES = (256,) if REHEARSED else (256, 512)
BATCHES = (1, 2) if REHEARSED else (1, 16)
SECONDS = 0.1 if REHEARSED else 4.0  # of each rate
MISSED = 0.5  # largest share of the prompts' effect that may be missing: all of it, if ignored
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parity() -> list[Row]:
    """Return the largest error of each precision, on photographs and on noise.

    Raises:
        RuntimeError: an error is above the tolerance of its precision.
    """
    torch.backends.cudnn.allow_tf32 = False
    model, (what, cases) = load_model(MODEL), _photographs()
    cases = [*cases, *noise([(side, side) for side in SIDES], BATCHES), *noise([(256, 512)], [2])]
    reference, rows = TorchEngine(model), list[Row]()
    for precision in ("float32", "bfloat16") if REHEARSED else DTYPES:
        engine = _engine(model, precision)
        found = compare(engine, reference, cases, TOLERANCES[precision])
        missed = missed_prompts(engine, reference, model.prompts, cases[0])
        note = f"at most {found.tolerance}; {found.worst}; photographs: {what}"
        rows.append(Row(f"{engine.name}, largest error", found.worst.error, "of a logit", note))
        rows.append(Row(f"{engine.name}, prompts missed", missed, "of 1", f"at most {MISSED}"))
        if not found.passed or missed > MISSED:
            raise RuntimeError(f"{engine.name}: {found.worst}; prompts missed {missed:.2f}")
    return rows


def rates() -> list[Row]:
    """Return images a second in bfloat16, with CUDA graphs and without."""
    kernel = f"no kernel: {cuda.unavailable()}" if cuda.unavailable() else "our kernel"
    model = load_model(MODEL)
    return [
        Row(f"{_shape(side, n)}, {'with' if graphs else 'without'} CUDA graphs", rate, "images/s",
            kernel)
        for graphs in (True, False)
        for engine in [_engine(model, "bfloat16", graphs)]
        for side, n in itertools.product(SIDES, BATCHES)
        for rate in [_rate(engine, _noise(side, n))]
    ]  # fmt: skip


def compiled() -> list[Row]:
    """Return images a second of `torch.compile`, which writes the operator as `grid_sample`."""
    model = load_model(MODEL)
    engine = _engine(model, "bfloat16", graphs=True, compiles=True)
    side, n = SIDES[-1], BATCHES[-1]
    rate = _rate(engine, _noise(side, n))
    return [Row(f"{_shape(side, n)}, torch.compile, CUDA graphs", rate, "images/s", "grid_sample")]


def _engine(
    model: Model, precision: str, graphs: bool = True, compiles: bool = False
) -> OverlappingEngine:
    """Open the engine; in a rehearsal, on the device without a GPU."""
    program = TorchProgram(model, DEVICE, DTYPES[precision])
    if compiles:
        backend = "eager" if REHEARSED else "inductor"
        program._network = torch.compile(program._network, backend=backend)
    if REHEARSED:
        return OverlappingEngine(model, NullDevice(), _Rehearsed(program), graphs)
    return OverlappingEngine(model, TorchDevice(DEVICE), program, graphs)


class _Rehearsed(Program):
    """PyTorch's program on the CPU, which runs when the device without a GPU reaches its work."""

    def __init__(self, program: TorchProgram) -> None:
        self.name, self.largest, self._program = program.name, program.largest, program

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Any) -> None:
        """See `Program`."""
        tensors = {name: torch.from_numpy(array) for name, array in buffers.items()}
        stream.put(lambda: self._program.enqueue(shape, tensors, None))


def _rate(engine: OverlappingEngine, batch: Batch) -> float:
    """Return images a second, with as many batches in flight as the engine takes."""
    for _ in range(1 if REHEARSED else 3 * engine.depth):  # two runs on each buffer, then a graph
        engine.run(batch)
    images, pending, started = 0, deque([engine.submit(batch)]), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        pending.append(engine.submit(batch))
        pending.popleft().result()
        images += len(batch.image)
    seconds = time.perf_counter() - started
    pending.pop().result()
    return images / seconds


def _noise(side: int, n: int) -> Batch:
    (case,) = noise([(side, side)], [n])
    return case.batch


def _photographs() -> tuple[str, list[Case]]:
    """Return crops of photographs, each with its context, and where they come from."""
    what, pictures = _pictures()
    random, cases = np.random.default_rng(0), list[Case]()
    for side, n in itertools.product(SIDES, BATCHES):
        crops = [_crop(picture, side, random) for picture, _ in zip(
            itertools.cycle(pictures), range(n), strict=False)]  # fmt: skip
        batch = whole_pictures(np.stack(crops), np.ones((n, 64), np.float32))
        cases.append(Case("photographs", batch))
    return what, cases


def _pictures() -> tuple[str, list[NDArray[np.uint8]]]:
    """Return scikit-image's photographs, or else the picture of the README, which shows some."""
    try:
        from skimage import data
    except ImportError:
        return "README's picture", [np.asarray(Image.open(FOUND).convert("RGB"))]
    return "scikit-image", [data.astronaut(), data.coffee(), data.rocket()]


def _crop(picture: NDArray[np.uint8], side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random crop; a picture that is smaller is mirrored at its edges."""
    missing = [(0, max(0, side - size)) for size in picture.shape[:2]]
    padded = np.pad(picture, [*missing, (0, 0)], mode="symmetric")
    top, left = (int(random.integers(size - side + 1)) for size in padded.shape[:2])
    return padded[top : top + side, left : left + side]


def _shape(side: int, n: int) -> str:
    return f"{side}x{side}, batch {n}"
