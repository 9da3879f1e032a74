"""The CUDA kernels as PTX, which the driver of any GPU since Turing (sm_75) makes its code from.

The package holds the text, so that a GPU's machine needs no compiler, and what the tests saw is
what runs. Whoever changes `ms_deform_attn.cu` compiles it anew:

    python -m prompt_iml.engine.operator.ptx

NVRTC 13.0 it must be: it writes PTX 9.0, which the driver of CUDA 13.0 and every later one read;
later compilers write later PTX, which older drivers refuse.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("ms_deform_attn.cu")
PACKAGED = Path(__file__).with_name("ms_deform_attn.ptx")
ARCHITECTURE = "compute_75"
ENTRY = ".visible .entry "


@cache
def packaged() -> str:
    """All kernels."""
    return PACKAGED.read_text()


def of_kernel(name: str) -> str:
    """One kernel alone: TensorRT stores the text with every node of the operator."""
    head, *entries = re.split(rf"^(?={re.escape(ENTRY)})", packaged(), flags=re.MULTILINE)
    (entry,) = (entry for entry in entries if entry.startswith(f"{ENTRY}{name}("))
    preamble = [line for line in head.splitlines() if line.startswith(".")]
    return "\n".join([*preamble, entry[: entry.rindex("}") + 1], ""])


def compile_source(architecture: str, source: Path = SOURCE) -> str:
    """PTX of a source (`compute_75`); of a real architecture (`sm_90`), which also assembles it.

    Raises:
        RuntimeError: it does not compile; what the compiler says.
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
    return text.rstrip(b"\0").decode()


if __name__ == "__main__":
    PACKAGED.write_text(compile_source(ARCHITECTURE))
