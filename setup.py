"""The compiled kernels, and a wheel that serves every Python.

The kernel is plain C++ behind a C interface, loaded by ctypes, so its file bears no Python version
and the wheel is `py3-none-<platform>`. All other settings are in pyproject.toml.
"""

from pathlib import PurePath

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernel(build_ext):
    """Compile to `_cpu.so`, whatever the Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path of the compiled file below the build folder."""
        return str(PurePath(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return none: the kernel is no Python module and has no `PyInit`."""
        return list(ext.export_symbols)


class AnyPython(bdist_wheel):
    """Tag the wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


FOLDER = "engine/operator"

setup(
    ext_modules=[
        Extension(
            "prompt_iml.engine.operator._cpu",
            sources=[f"{FOLDER}/ms_deform_attn_cpu.cpp", f"{FOLDER}/matches_cpu.cpp"],
            depends=[
                f"{FOLDER}/{name}.h" for name in ("ms_deform_attn", "clones", "matches_compare")
            ],
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler the package works, slower
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": AnyPython},
)
