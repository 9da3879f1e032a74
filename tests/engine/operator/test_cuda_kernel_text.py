"""The CUDA kernels without a GPU: launch parameters, PTX, and reasons why they cannot run."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.operator import cuda, launch, ptx
from tests.bench.gpu.operator import BASELINE

PTXAS = shutil.which("ptxas")
compiler = pytest.mark.skipif(find_spec("cuda") is None, reason="no NVRTC: not on Linux")
KERNELS = re.findall(r"\.visible \.entry (\w+)\(", ptx.packaged())
VALUE, LOCATIONS = (16, 21_760, 8, 32), (16, 21_760, 8, 4, 4, 2)


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 8), ("float16", 4), ("bfloat16", 4)])
def test_a_lane_has_sixteen_bytes_of_channels_and_a_block_a_square_of_queries(
    dtype: str, lanes: int
) -> None:
    plan = launch.forward(dtype, VALUE, LOCATIONS)
    assert plan.kernel == f"promptiml_forward_{dtype}"
    assert plan.block == (lanes, 256 // lanes)
    assert plan.grid == (21_760 * lanes // 256 * 8, 16)
    assert plan.numbers == (21_760, 8, 32, 21_760, 4, 4)


@pytest.mark.parametrize(
    ("d", "kernel", "lanes"),
    [(8, "float16", 1), (24, "float16", 4), (7, "float16_scalar", 8), (300, "float16_scalar", 32)],
)
def test_any_depth_has_a_kernel(d: int, kernel: str, lanes: int) -> None:
    plan = launch.forward("float16", (1, 9, 2, d), (1, 5, 2, 1, 4, 2))
    assert (plan.kernel, plan.block[0]) == (f"promptiml_forward_{kernel}", lanes)
    assert plan.grid == (2, 1)


def test_every_planned_kernel_is_in_the_ptx() -> None:
    plans = [launch.forward(dtype, (1, 9, 2, d), LOCATIONS) for dtype in launch.ITEM_BYTES
             for d in (8, 7)]  # fmt: skip
    plans += [launch.backward((1, 9, 2, d), LOCATIONS) for d in (8, 7)]
    assert sorted(plan.kernel for plan in plans) == sorted(KERNELS)


@pytest.mark.parametrize(("value", "sizes", "locations", "weights"), [
    ((1, 9, 2, 8), [(3, 3)], (1, 5, 2, 1, 4, 2), (1, 5, 2, 1, 3)),
    ((1, 9, 2, 8), [(3, 3)], (2, 5, 2, 1, 4, 2), (2, 5, 2, 1, 4)),
    ((1, 9, 2, 8), [(3, 2)], (1, 5, 2, 1, 4, 2), (1, 5, 2, 1, 4)),
    ((1, 9, 2, 8), [(-3, -3)], (1, 5, 2, 1, 4, 2), (1, 5, 2, 1, 4)),
    ((1, 2**20, 16, 128), [(2**10, 2**10)], (1, 5, 16, 1, 4, 2), (1, 5, 16, 1, 4)),
    ((2**16, 9, 2, 8), [(3, 3)], (2**16, 5, 2, 1, 4, 2), (2**16, 5, 2, 1, 4)),
])  # fmt: skip
def test_shapes_the_kernel_cannot_run_on_are_named(
    value: tuple[int, ...],
    sizes: list[tuple[int, int]],
    locations: tuple[int, ...],
    weights: tuple[int, ...],
) -> None:
    assert launch.problem(value, sizes, locations, weights)


def test_shapes_that_fit_are_no_problem() -> None:
    sizes = [(128, 128), (64, 64), (32, 32), (16, 16)]
    assert launch.problem(VALUE, sizes, LOCATIONS, LOCATIONS[:-1]) is None


@compiler
def test_the_packaged_ptx_is_that_of_the_source() -> None:
    assert ptx.compile_source(ptx.ARCHITECTURE) == ptx.packaged()


@compiler
def test_the_kernel_it_is_compared_with_compiles() -> None:
    assert "baseline_float16(" in ptx.compile_source("sm_90", BASELINE)


@compiler
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_source_compiles_and_assembles_for(architecture: str) -> None:
    text = ptx.compile_source(architecture)
    assert f".target {architecture}" in text
    assert ".version 9.0" in text


@pytest.mark.skipif(PTXAS is None, reason="no ptxas on the path (CUDA 13)")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_each_kernel_alone_assembles(architecture: str, tmp_path: Path) -> None:
    for kernel in KERNELS:
        text, code = tmp_path / f"{kernel}.ptx", tmp_path / f"{kernel}.cubin"
        text.write_text(ptx.of_kernel(kernel))
        command = [str(PTXAS), "--verbose", f"--gpu-name={architecture}", text, "-o", code]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        assert kernel.endswith("_scalar") or " 0 bytes spill stores" in said, kernel


@pytest.mark.parametrize("dtype", launch.ITEM_BYTES)
def test_channels_are_read_and_written_sixteen_bytes_at_a_time(dtype: str) -> None:
    text = ptx.of_kernel(f"promptiml_forward_{dtype}")
    assert set(re.findall(r"ld\.global\.nc\.\S+", text)) == {"ld.global.nc.v4.s32"}
    assert set(re.findall(r"st\.global\.\S+", text)) == {"st.global.cs.v4.s32"}
    assert ".local" not in text


@pytest.mark.skipif(cuda.unavailable() is None, reason="a GPU is here")
def test_a_machine_without_a_gpu_says_what_to_do() -> None:
    plan = launch.forward("float32", (1, 9, 2, 8), (1, 5, 2, 1, 4, 2))
    with pytest.raises(MissingDependency, match=r"525|pip install|nvidia-smi"):
        cuda.run(plan, [0] * 4, [0], device=0, stream=0)
