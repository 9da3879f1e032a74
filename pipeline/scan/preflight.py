"""Check before the first unit that the cluster has room and its nodes can scan."""

from __future__ import annotations

import time

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, WorkerCrashedError

from prompt_iml.engine.errors import PromptImlError, UsageError
from prompt_iml.pipeline.logs import log, one_line
from prompt_iml.pipeline.scan.scanner import RowMaker, ScanSpec
from prompt_iml.pipeline.storage import storage

FREE_SECONDS = 300.0  # includes fetching the model
NODE_SECONDS = 1800.0  # includes starting a node, pulling its image, building its engine
QUIET_SECONDS = 20.0


def check_node(spec: ScanSpec, gpus: float = 0.0, seconds: float = FREE_SECONDS) -> None:
    """Load the engine and read the plan on one node of the cluster, where a scan actor would.

    The actors on other nodes check their model themselves. The request makes an autoscaler add a
    node where there is none.

    Raises:
        UsageError: the node cannot scan, or does not respond in time: no CPU (or GPU, if actors
            need one) became free, or the engine took too long to load.
    """
    deadline = time.monotonic() + seconds
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_node_error).remote(spec)
    lacking = "GPU" if gpus else "CPU"
    if seconds > QUIET_SECONDS and not ray.wait([task], timeout=QUIET_SECONDS)[0]:
        log(f"waiting up to {seconds / 60:.0f} min for a free {lacking} and an engine on it")
    try:
        fault = ray.get(task, timeout=max(0.0, deadline - time.monotonic()))
    except GetTimeoutError:
        ray.cancel(task)
        raise UsageError(
            f"no engine in {seconds:.0f} s: either no {lacking} of the cluster became free "
            "(`ray status` shows what holds them), or loading the engine takes longer"
        ) from None
    except RayTaskError as error:  # raised before this package's code began
        fault = error_line(error.cause)
    except WorkerCrashedError:
        fault = "a process that loads the engine crashes each time"
    except RayError:  # a node was lost: the scan may use others
        fault = ""
    if fault:
        raise UsageError(f"the cluster's nodes cannot scan: {fault}")


def _node_error(spec: ScanSpec) -> str:
    """Return the error that keeps this node from scanning; empty if it can scan."""
    try:
        RowMaker(spec.rows)
        if not storage.exists(spec.run.plan_uri):  # as where --output is a folder of the driver's
            return (
                f"{storage.display_name(spec.run.plan_uri)} is not there: choose an --output that "
                "every node reaches"
            )
    except PromptImlError as error:
        return one_line(error)
    except Exception as error:  # every actor would fail in the same way
        return error_line(error)
    return ""


def error_line(error: BaseException) -> str:
    """Return an error's type and message in one line; of a traceback in it, only the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Traceback (most recent call last)" in line for line in lines):
        return lines[-1]
    return " ".join([f"{type(error).__name__}:", *lines]) if lines else type(error).__name__
