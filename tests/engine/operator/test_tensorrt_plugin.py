"""The plugin under TensorRT's real bindings and registry, called as the builder does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prompt_iml.engine.operator import launch, ptx
from tests.helpers import lean_tensorrt

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not lean_tensorrt.AVAILABLE:
        pytest.skip("TensorRT's bindings and lean library, and g++, are for Linux")
    printed = lean_tensorrt.run(tmp_path_factory.mktemp("stubs"))
    return dict(zip(DTYPES, json.loads(printed), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_gets_the_launch_that_pytorch_gets(answers: dict[str, Any], dtype: str) -> None:
    answer = answers[dtype]
    plan = launch.forward(dtype, (16, 21_760, 8, 32), (16, 21_760, 8, 4, 4, 2))
    assert answer["kernel"] == plan.kernel
    assert tuple(answer["numbers"]) == plan.numbers
    dimensions = zip("xyz", (*plan.grid, 1), (*plan.block, 1), strict=True)
    assert answer["launch"] == {"shared_mem": 0} | {
        f"{what}_{axis}": number
        for axis, grid, block in dimensions
        for what, number in (("grid", grid), ("block", block))
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_gets_that_kernel_s_ptx_alone(answers: dict[str, Any], dtype: str) -> None:
    text = answers[dtype]["ptx"]
    assert text == ptx.of_kernel(f"promptiml_forward_{dtype}")
    assert text.count(ptx.ENTRY) == 1


def test_out_has_the_value_s_type_and_each_type_is_offered(answers: dict[str, Any]) -> None:
    names = ["FLOAT", "HALF", "BF16"]
    assert [a["out"] for a in answers.values()] == [[name, [16, 21_760, 256]] for name in names]
    offered = [[name, "INT64", "FLOAT", "FLOAT", name] for name in names]
    assert all(a["offered"] == offered for a in answers.values())
