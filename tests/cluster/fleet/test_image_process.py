"""A process that dies of an image, and what the next image meets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from prompt_iml.cluster.fleet.image_process import ImageProcess, blank_png
from prompt_iml.cluster.fleet.serve import endpoint_spec
from prompt_iml.cluster.settings import EndpointSettings
from prompt_iml.engine.errors import Crashed
from tests.helpers.processes import kill_first_two, processes_below

ROOT = Path(__file__).parents[3]
SPEC = replace(endpoint_spec(EndpointSettings()), image_timeout=10, max_pixels=10**6)


@pytest.fixture(scope="module")
def process() -> Iterator[ImageProcess]:
    """One with poison planted in its decoder."""
    with pytest.MonkeyPatch.context() as environment, ThreadPoolExecutor(1) as thread:
        environment.setenv("PYTHONPATH", f"{ROOT}/tests/chaos/plant:{ROOT}")
        made = thread.submit(ImageProcess, SPEC).result()
        yield made
        made.close()


@pytest.mark.parametrize(
    ("poison", "code"),
    [(b"segfault", "crashed"), (b"loop", "timeout"), (b"allocate", "out_of_memory")],
)
def test_an_image_that_ends_the_process_costs_its_own_row(
    poison: bytes, code: str, process: ImageProcess
) -> None:
    row = process.row(blank_png() + b"POISON:" + poison)
    assert (row["status"], row["error_stage"], row["error_code"]) == ("failed", "decode", code)
    assert row["size_bytes"] == len(blank_png()) + len(b"POISON:") + len(poison)
    assert process.row(blank_png())["status"] == "ok"


def test_a_process_that_died_idle_costs_no_image(process: ImageProcess) -> None:
    process.row(blank_png())
    (child,) = processes_below(os.getpid(), "fleet.image_process")
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process.row(blank_png())["status"] == "ok"


def test_a_process_killed_while_it_loads_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = kill_first_two(monkeypatch)
    made = ImageProcess(SPEC)
    assert made.row(blank_png())["status"] == "ok"
    assert killed == [-signal.SIGKILL] * 2
    made.close()


def test_a_process_that_cannot_load_the_engine_says_why() -> None:
    with pytest.raises(Crashed, match="are those of the run"):
        ImageProcess(replace(SPEC, model_digest="0" * 64))
