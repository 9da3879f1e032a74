"""The CUDA kernels as PTX, which the driver compiles for any GPU since Turing (sm_75).

The package holds the PTX, so that a machine with a GPU needs no compiler and runs what the tests
checked. After a change of `ms_deform_attn.cu`, compile it again:

    python -m prompt_iml.engine.operator.ptx

This needs NVRTC 13.0. A compiler names its own version of PTX, and older drivers refuse that; the
kernels use nothing that PTX 8.0 lacks (a test assembles them as such), so they are named that, for
drivers of CUDA 12.0 and later.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("ms_deform_attn.cu")
PACKAGED = Path(__file__).with_name("ms_deform_attn.ptx")
ARCHITECTURE = "compute_75"
VERSION = "8.0"  # of PTX
ENTRY = ".visible .entry "


@cache
def packaged() -> str:
    """Return the packaged PTX of all kernels."""
    return PACKAGED.read_text()


def of_kernel(name: str) -> str:
    """Return the PTX of one kernel; TensorRT stores it with every node of the operator."""
    head, *entries = re.split(rf"^(?={re.escape(ENTRY)})", packaged(), flags=re.MULTILINE)
    (entry,) = (entry for entry in entries if entry.startswith(f"{ENTRY}{name}("))
    preamble = [line for line in head.splitlines() if line.startswith(".")]
    return "\n".join([*preamble, entry[: entry.rindex("}") + 1], ""])


def compile_source(architecture: str, source: Path = SOURCE) -> str:
    """Compile a source to PTX of `VERSION` (`compute_75`); a real architecture (`sm_90`) also
    assembles it, and keeps the compiler's version.

    Raises:
        RuntimeError: the source does not compile; with the compiler's log.
    """
    from cuda.bindings import nvrtc

    def checked(answer: tuple[Any, ...]) -> Any:
        if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(answer[0].name)
        return answer[1] if len(answer) > 1 else None

    name = source.name.encode()
    program = checked(nvrtc.nvrtcCreateProgram(source.read_bytes(), name, 0, [], []))
    options = [f"-arch={architecture}", "-std=c++17", "-restrict", f"-I{SOURCE.parent}"]
    encoded = [option.encode() for option in options]
    if nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)[0]:
        log = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program)))
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(log.decode())
    text = bytes(checked(nvrtc.nvrtcGetPTXSize(program)))
    checked(nvrtc.nvrtcGetPTX(program, text))
    written = text.rstrip(b"\0").decode()
    if architecture != ARCHITECTURE:
        return written
    return re.sub(r"^\.version .*$", f".version {VERSION}", written, flags=re.MULTILINE)


if __name__ == "__main__":
    PACKAGED.write_text(compile_source(ARCHITECTURE))
