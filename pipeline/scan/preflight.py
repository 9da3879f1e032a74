"""Before the first unit: refuse in one line what Ray would wait for, or what every node dies of."""

from __future__ import annotations

import time

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, WorkerCrashedError

from prompt_iml.engine.errors import PromptImlError, UsageError
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.scan.scanner import RowMaker, ScanSpec
from prompt_iml.pipeline.storage import storage

FREE_SECONDS = 300.0  # the model may have to be fetched
NODE_SECONDS = 1800.0  # a node may have to start, to pull its image, to build its engine
QUIET_SECONDS = 20.0


def check_node(spec: ScanSpec, gpus: float = 0.0, seconds: float = FREE_SECONDS) -> None:
    """Load the engine, and reach the results, from a scan actor's place on the cluster.

    One node speaks for all; the actors of the others check their model themselves. A cluster that
    has shrunk to nothing grows by it.

    Raises:
        UsageError: that fails, or is not done in time: no CPU (or GPU, where one is asked for) came
            free, or the engine took too long.
    """
    deadline = time.monotonic() + seconds
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_complaint).remote(spec)
    lacking = "GPU" if gpus else "CPU"
    if seconds > QUIET_SECONDS and not ray.wait([task], timeout=QUIET_SECONDS)[0]:
        log(f"waiting up to {seconds / 60:.0f} min for a free {lacking} and an engine on it")
    try:
        complaint = ray.get(task, timeout=max(0.0, deadline - time.monotonic()))
    except GetTimeoutError:
        ray.cancel(task)
        raise UsageError(
            f"no engine in {seconds:.0f} s: either no {lacking} of the cluster came free "
            "(`ray status` tells who holds them), or loading takes so long"
        ) from None
    except RayTaskError as error:  # before our code began
        complaint = f"{type(error.cause).__name__}: {error.cause}"
    except WorkerCrashedError:
        complaint = "a process that loads the engine dies of it, again and again"
    except RayError:  # a node went away: others will do
        complaint = ""
    if complaint:
        raise UsageError(f"the cluster's nodes cannot scan: {' '.join(complaint.split())}")


def _complaint(spec: ScanSpec) -> str:
    """Why this node cannot scan; empty: it can."""
    try:
        RowMaker(spec.rows)
        storage.exists(spec.run.plan_uri)
    except PromptImlError as error:
        return str(error)
    except Exception as error:  # whatever it is, every actor would die of it
        return f"{type(error).__name__}: {error}"
    return ""
