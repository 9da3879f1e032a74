"""`prompt-iml doctor`: report what this machine can run, what is missing, and how to install it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.runtimes.blob_cache import PLAN, BlobCache, default_folder
from prompt_iml.engine.runtimes.open import DEFAULT, check_engine
from prompt_iml.engine.runtimes.plans import current
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import DoctorSettings

State = Literal["ok", "missing", "optional"]
COMMANDS = ("pip", "prompt-iml", "nvidia-smi")
NO_KERNEL = (
    "not compiled, so the default engine is slower; install g++ or clang++, then prompt-iml again "
    "from its sources"
)


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check.

    Attributes:
        name: the component.
        state: `ok`; `missing`: no scan runs without it; `optional`: scans would be faster with it.
        found: what was found.
        fix: the command that installs it; empty if there is nothing to do, or no command for it.
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
        return Check(name, state, "not installed", pip(str(error).rpartition(": ")[2]))
    return Check(name, "ok", _version(kind))


def _kernel() -> Check:
    name = "CPU kernel"
    if cpu.available():
        return Check(name, "ok", "compiled")
    return Check(name, "optional", NO_KERNEL, _from_sources())


def _gpu(model: Model) -> list[Check]:
    """Check the GPU, then TensorRT, then the built engine; stop at the first that is missing."""
    from prompt_iml.engine.runtimes.cuda_device import CudaDevice
    from prompt_iml.engine.runtimes.tensorrt import import_tensorrt, machine

    try:
        device = CudaDevice()
    except MissingDependency as error:
        return [unmet("GPU", error)]
    checks = [Check("GPU", "ok", f"{device.name}, compute capability {device.capability}")]
    try:
        trt = import_tensorrt()
    except MissingDependency as error:
        return [*checks, unmet("TensorRT", error)]
    checks.append(Check("TensorRT", "ok", trt.__version__))
    built = current(BlobCache(kind=PLAN), model, machine(trt, device))
    if built is None:
        fix = build_command(model.folder)
        return [*checks, Check("engine tensorrt", "optional", "not built", fix)]
    found = f"{built.precision}, in {default_folder()}; {built.about['parity']['worst']}"
    return [*checks, Check("engine tensorrt", "ok", found)]


def build_command(folder: Path) -> str:
    """Return the command that builds the engine of a model folder."""
    return f"prompt-iml build --model {shlex.quote(str(folder))}"


def unmet(name: str, error: MissingDependency) -> Check:
    """Return what is missing, with the command that the message ends with, if it is one."""
    found, _, advice = str(error).partition(": ")
    command = advice.removeprefix("see ")
    if command.partition(" ")[0] in COMMANDS:
        return Check(name, "optional", found, pip(command))
    return Check(name, "optional", str(error))


def pip(command: str) -> str:
    """Return a command whose `pip` is that of this Python, also where its bin/ is not in PATH."""
    in_path = shutil.which("pip") == str(Path(sys.executable).with_name("pip"))
    if in_path or not command.startswith("pip "):
        return command
    return f"{shlex.quote(sys.executable)} -m {command}"


def _from_sources() -> str:
    """Return the command that installs prompt-iml again from its folder; empty if it is unknown."""
    # The folder of the sources, where one may stand, has metadata too, which names no origin.
    found = [each.read_text("direct_url.json") for each in distributions(name="prompt-iml")]
    origin = json.loads(next(filter(None, found), "{}"))
    if "dir_info" not in origin:
        return ""
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    folder = shlex.quote(unquote(urlparse(origin["url"]).path))
    return pip(f"pip install --force-reinstall --no-deps {editable}{folder}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"
