"""TensorRT's real Python bindings and plugin registry, without its full libraries.

The bindings load three libraries that PyPI has only as placeholders. Stubs of a few lines replace
them: they link to the lean runtime, which PyPI has and which holds the plugin registry, and define
a builder and a parser that are null. `python -m tests.helpers.lean_tensorrt` then calls our plugin
as the builder would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

COMPILER = shutil.which("g++")
AVAILABLE = COMPILER is not None and find_spec("tensorrt_lean_libs") is not None
STUBS = {
    "nvinfer": """
        void* getPluginRegistry();
        void* getBuilderPluginRegistry(int) { return getPluginRegistry(); }
        void* createInferBuilder_INTERNAL(void*, int) { return 0; }
        void* createInferRefitter_INTERNAL(void*, void*, int) { return 0; }
    """,
    "nvinfer_plugin": "bool initLibNvInferPlugins(void*, char const*) { return true; }",
    "nvonnxparser": """
        void* createNvOnnxParser_INTERNAL(void*, void*, int) { return 0; }
        void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return 0; }
        int getNvOnnxParserVersion() { return 0; }
    """,
}


def run(folder: Path) -> str:
    """Compile the stubs into `folder`, run `python -m tests.helpers.lean_tensorrt` with them, and
    return the last line it prints (the lines before may be TensorRT's log)."""
    for name, source in STUBS.items():
        _compile(name, f'extern "C" {{ {source} }}', folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-m", "tests.helpers.lean_tensorrt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _compile(name: str, source: str, folder: Path) -> None:
    spec = find_spec("tensorrt_lean_libs")
    assert COMPILER
    assert spec
    assert spec.origin
    lean = next(Path(spec.origin).parent.glob("libnvinfer_lean.so.*"))
    library = f"lib{name}{lean.suffixes[0]}{lean.suffixes[1]}"
    flags = ["-shared", "-fPIC", "-x", "c++", "-", "-x", "none", f"-Wl,-soname,{library}"]
    link = ["-Wl,--no-as-needed", lean, f"-Wl,-rpath,{lean.parent}", "-o", folder / library]
    subprocess.run([COMPILER, *flags, *link], input=source, text=True, check=True)
