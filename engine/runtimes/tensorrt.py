"""Run TensorRT plans: one for each tile size, with a profile for each batch size.

The module needs TensorRT's runtime and the CUDA bindings, but neither plugin nor builder: the plan
contains the kernel. `engine.runtimes.plans` holds only plans that passed the comparison.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from prompt_iml.engine.errors import DamagedModel, DeviceFull, InferError, MissingDependency
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.blob_cache import PLAN, BlobCache
from prompt_iml.engine.runtimes.cuda_device import CudaDevice
from prompt_iml.engine.runtimes.overlap import Buffers, OverlappingEngine, Shape
from prompt_iml.engine.runtimes.plans import current
from prompt_iml.engine.runtimes.protocol import PACKAGES, Batch


class TensorRtProgram:
    """TensorRT plans as a program (`engine.runtimes.overlap.Program`).

    Args:
        trt: the module `tensorrt`.
        plans: serialised plans by (height, width) of the tiles.
        precision: as `Recipe.short_precision`: `f16`.

    Raises:
        DamagedModel: a plan was built by another TensorRT version or for another GPU.
    """

    def __init__(self, trt: Any, plans: Mapping[tuple[int, int], bytes], precision: str) -> None:
        self.name = f"tensorrt-{trt.__version__}/{precision}/cuda"
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engines = {tile: self._deserialized(plan) for tile, plan in plans.items()}
        sizes = [set(_profiles(engine)) for engine in self._engines.values()]
        self.largest = max(set.intersection(*sizes))
        self._contexts: dict[Shape, Any] = {}

    def enqueue(self, shape: Shape, buffers: Buffers, stream: Any) -> None:
        """See `Program`."""
        context = self._context(shape, stream)
        for name in _tensors(context.engine):
            context.set_tensor_address(name, buffers[name].address)
        if not context.execute_async_v3(int(stream)):
            raise InferError(f"{self.name}: TensorRT did not run {shape}")

    def _deserialized(self, plan: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DamagedModel(f"{self.name} cannot load a plan: run prompt-iml build here again")
        return engine

    def _context(self, shape: Shape, stream: Any) -> Any:
        """Return the context for batches of exactly this shape."""
        if shape not in self._contexts:
            size, *tile = shape
            engine = self._engines.get((tile[0], tile[1]))
            profiles = {} if engine is None else _profiles(engine)
            if engine is None or size not in profiles:
                raise InferError(f"{self.name}: no plan was built for batches of {shape}")
            context = engine.create_execution_context()
            if context is None:
                raise DeviceFull(f"{self.name}: no room for a batch of {size}")
            context.set_optimization_profile_async(profiles[size], int(stream))
            for name in _tensors(engine):
                if name in Batch.__slots__:
                    context.set_input_shape(name, (size, *engine.get_tensor_shape(name)[1:]))
            self._contexts[shape] = context
        return self._contexts[shape]


def import_tensorrt() -> Any:
    """Import `tensorrt`. Raises `MissingDependency` with the command that installs it."""
    try:
        import tensorrt
    except ImportError as error:
        packages = PACKAGES["tensorrt"]
        raise MissingDependency(f"TensorRT is not installed: pip install {packages}") from error
    return tensorrt


def machine(trt: Any, device: CudaDevice) -> list[str]:
    """Return what plans depend on: TensorRT's version, the GPU's name and its capability."""
    return [trt.__version__, device.name, "{}.{}".format(*device.capability)]


def open_tensorrt(model: Model) -> OverlappingEngine:
    """Open the engine that `prompt-iml build` built for this model and this GPU.

    Raises:
        MissingDependency: there is no TensorRT, no GPU, or no built engine.
    """
    trt, device = import_tensorrt(), CudaDevice()
    built = current(BlobCache(kind=PLAN), model, machine(trt, device))
    if built is None:
        raise MissingDependency(
            f"no engine was built of {model.id} for {device.name}: "
            f"prompt-iml build --model {shlex.quote(str(model.folder))}"
        )
    return OverlappingEngine(model, device, TensorRtProgram(trt, built.plans, built.precision))


def _profiles(engine: Any) -> dict[int, int]:
    """Return the profile numbers by batch size."""
    profiles = range(engine.num_optimization_profiles)
    return {engine.get_tensor_profile_shape("image", index)[2][0]: index for index in profiles}


def _tensors(engine: Any) -> list[str]:
    """Return the names of inputs and outputs."""
    return [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
