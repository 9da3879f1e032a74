"""Choose and open the runtime of a model."""

from __future__ import annotations

from importlib.util import find_spec

from prompt_iml.engine.errors import MissingDependency, UsageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.runtimes.protocol import PACKAGES, Engine

PRECISIONS = ("auto", "float32", "bfloat16")
DEFAULT = "openvino"  # the fastest on a CPU, by measurement


def check_engine(kind: str, precision: str = "auto") -> None:
    """Check that the packages of an engine are installed, without loading them.

    Raises:
        UsageError: no engine of this kind in this version, or none of it in this precision.
        MissingDependency: its package is not installed.
    """
    kind = _resolve(kind)
    if kind not in PACKAGES:
        raise UsageError(f"no engine {kind}: use one of auto, {', '.join(PACKAGES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision}: use one of {', '.join(PRECISIONS)}")
    if precision != "auto" and kind != "openvino":
        raise UsageError(f"precision {precision} can be chosen for engine openvino, not for {kind}")
    if find_spec(kind) is None:
        raise MissingDependency(
            f"engine {kind} needs a package that is not installed: pip install {PACKAGES[kind]}"
        )


def open_engine(
    model: Model, kind: str = "auto", threads: int | None = None, precision: str = "auto"
) -> Engine:
    """Load a model into a runtime.

    Args:
        model: from `load_model`.
        kind: `auto`, `openvino`, `onnxruntime`, `torch` (on the first GPU, or else on the CPU) or
            `tensorrt`.
        threads: CPU threads; None: one for each core.
        precision: that of `openvino`: `float32`, which `auto` is, or `bfloat16`. The others have
            theirs.

    Raises:
        UsageError, MissingDependency: as `check_engine`; also for a processor without bfloat16.
        DamagedModel: the runtime cannot read the graph.
    """
    check_engine(kind, precision)
    # Each branch imports its runtime: a scan with the default engine must not load torch.
    match _resolve(kind):
        case "tensorrt":
            from prompt_iml.engine.runtimes.tensorrt import open_tensorrt

            return open_tensorrt(model)
        case "torch":
            from prompt_iml.engine.runtimes.torch_cpu import TorchEngine
            from prompt_iml.engine.runtimes.torch_cuda import available, open_torch_cuda

            return open_torch_cuda(model) if available() else TorchEngine(model, threads)
        case "onnxruntime":
            from prompt_iml.engine.runtimes.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(model, threads)
        case _:
            from prompt_iml.engine.runtimes.openvino import OpenVinoEngine

            return OpenVinoEngine(model, threads, precision=precision)


def _resolve(kind: str) -> str:
    return DEFAULT if kind == "auto" else kind
