"""Build a plan with TensorRT-RTX on a CPU.

    python -m tests.helpers.rtx_build MODEL PRECISION TILE BATCH...

Runs in a process of its own, because the parser ends the process on an unknown operator. Prints the
builder's log and the sizes of plan and timing cache as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

AVAILABLE = find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not AVAILABLE, reason="tensorrt-rtx is not installed")


def build(model: str, precision: str, tile: int, *batches: int) -> dict[str, Any]:
    """Build in another process and return what it prints."""
    command = [sys.executable, "-m", "tests.helpers.rtx_build", model, precision, str(tile)]
    done = subprocess.run(
        [*command, *map(str, batches)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(name: str, precision: Any, tile: str, *batches: str) -> None:
    """Build a plan and print the builder's log and the sizes as JSON."""
    import tensorrt_rtx as trt

    from prompt_iml.engine.build.builder import build_plan, graph_for
    from prompt_iml.engine.model.folder import load_model
    from prompt_iml.engine.runtimes.plans import Recipe

    model, lines = load_model(name), list[str]()
    size = (int(tile), int(tile))
    recipe = Recipe((size,), tuple(map(int, batches)), precision, "none")
    graph = graph_for(model, recipe, size)
    plan, cache = build_plan(trt, graph, recipe.batches, log=lines.append)
    found = {"log": lines, "plan": len(plan), "timing_cache": len(cache)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
