"""`prompt-iml doctor`: report what this machine can run, what is missing, and how to install it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.runtimes.blob_cache import BlobCache, default_folder
from prompt_iml.engine.runtimes.open import DEFAULT, check_engine
from prompt_iml.engine.runtimes.plans import current
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import DoctorSettings

State = Literal["ok", "missing", "optional"]
COMPILE = "install a C++ compiler, then prompt-iml again: pip install --force-reinstall --no-deps ."


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check.

    Attributes:
        name: the component.
        state: `ok`; `missing`: no scan runs without it; `optional`: scans would be faster with it.
        found: what was found.
        fix: the command that installs it; empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f": {self.fix}" if self.fix else ""
        return f"{self.state:8}  {self.name:20}  {self.found}{fix}"


def doctor(settings: DoctorSettings) -> Json:
    """Run all checks and report them.

    Returns:
        `checks`, and `engines`: the values of `--engine` that run here, the default first.

    Raises:
        UsageError: the model cannot be opened.
    """
    model = load_model(settings.model)
    checks = [
        Check("model", "ok", f"{model.id}, digest {model.digest[:12]}"),
        *(_engine(kind) for kind in ("openvino", "onnxruntime", "torch")),
        _kernel(),
        *_gpu(model),
    ]
    for check in checks:
        log(str(check))
    ready = [c.name.removeprefix("engine ") for c in checks if c.name.startswith("engine ")
             and c.state == "ok"]  # fmt: skip
    return {"checks": [asdict(check) for check in checks], "engines": ready}


def _engine(kind: str) -> Check:
    name = f"engine {kind}"
    try:
        check_engine(kind)
    except MissingDependency as error:
        state: State = "missing" if kind == DEFAULT else "optional"
        return Check(name, state, "not installed", str(error).rpartition(": ")[2])
    return Check(name, "ok", _version(kind))


def _kernel() -> Check:
    name = "CPU kernel"
    if cpu.available():
        return Check(name, "ok", "compiled")
    return Check(name, "optional", "not compiled: the default engine is slower", COMPILE)


def _gpu(model: Model) -> list[Check]:
    """Check the GPU, then TensorRT, then the built engine; stop at the first that is missing."""
    from prompt_iml.engine.runtimes.cuda_device import CudaDevice
    from prompt_iml.engine.runtimes.tensorrt import import_tensorrt, machine

    try:
        device = CudaDevice()
    except MissingDependency as error:
        return [_unmet("GPU", error)]
    checks = [Check("GPU", "ok", f"{device.name}, compute capability {device.capability}")]
    try:
        trt = import_tensorrt()
    except MissingDependency as error:
        return [*checks, _unmet("TensorRT", error)]
    checks.append(Check("TensorRT", "ok", trt.__version__))
    built = current(BlobCache(), model, machine(trt, device))
    if built is None:
        fix = f"prompt-iml build --model {model.folder}"
        return [*checks, Check("engine tensorrt", "optional", "not built", fix)]
    found = f"{built.precision}, in {default_folder()}; {built.about['parity']['worst']}"
    return [*checks, Check("engine tensorrt", "ok", found)]


def _unmet(name: str, error: MissingDependency) -> Check:
    found, _, fix = str(error).partition(": ")
    return Check(name, "optional", found, fix)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"
