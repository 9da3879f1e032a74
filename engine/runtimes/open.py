"""Which runtime runs a model."""

from __future__ import annotations

from importlib.util import find_spec

from prompt_iml.engine.errors import MissingDependency, UsageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.protocol import Engine

DEFAULT = "openvino"  # measured: the fastest here, see the README
_PACKAGES = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "tensorrt": "tensorrt",
}
TENSORRT = "tensorrt-cu13 'prompt-iml[gpu]' --extra-index-url https://pypi.nvidia.com"


def check_engine(kind: str) -> None:
    """Whether this machine can run the engine, without loading anything.

    Raises:
        UsageError: no engine of this kind in this version.
        MissingDependency: its package is not installed.
    """
    kind = _resolve(kind)
    if kind not in _PACKAGES:
        raise UsageError(f"no engine {kind}: use one of auto, {', '.join(_PACKAGES)}")
    if find_spec(_PACKAGES[kind]) is None:
        package = TENSORRT if kind == "tensorrt" else _PACKAGES[kind]
        raise MissingDependency(
            f"engine {kind} needs a package that is not installed: pip install {package}"
        )


def open_engine(model: Model, kind: str = "auto", threads: int | None = None) -> Engine:
    """Load a model into a runtime.

    Args:
        model: from `load_model`.
        kind: `auto`, `openvino`, `onnxruntime`, `torch` (on a GPU if it sees one) or `tensorrt`.
        threads: of the CPU; None: as many as the machine has cores.

    Raises:
        UsageError, MissingDependency: as `check_engine`.
        DamagedModel: the graph cannot be read, or was exported for other weights.
    """
    check_engine(kind)
    # Imported here, each alone: scanning on the default must not load torch.
    match _resolve(kind):
        case "tensorrt":
            from prompt_iml.engine.runtimes.tensorrt import open_tensorrt

            return open_tensorrt(model)
        case "torch":
            from prompt_iml.engine.runtimes.torch_cpu import open_torch

            return open_torch(model, threads)
        case "onnxruntime":
            from prompt_iml.engine.runtimes.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(model, threads)
        case _:
            from prompt_iml.engine.runtimes.openvino import OpenVinoEngine

            return OpenVinoEngine(model, threads)


def _resolve(kind: str) -> str:
    return DEFAULT if kind == "auto" else kind
