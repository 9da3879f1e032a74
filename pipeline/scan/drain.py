"""Exit of a scan actor, between two units, when its node is being drained.

Ray drains a node before a spot instance is reclaimed, a pod is deleted or an autoscaler shrinks the
cluster. It places nothing new on the node, which ends when it is idle or at its deadline. Ray
Data's pool of actors ignores that and gives the actors there new units until the deadline. So
actors exit by themselves once their unit is committed, and start again on another node.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from prompt_iml.pipeline.logs import log

EXIT_DRAINED = 87
POLL_SECONDS = 2.0
RETURN_SECONDS = 1.0  # for the last result to leave the process


class Drain:
    """Thread that ends this process, outside of `put_off`, when its node is being drained.

    From then on `put_off` never returns; the pool gives the unit to another actor.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._node: str = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._run, name="drain", daemon=True).start()

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Keep the process alive while the block runs."""
        with self._busy:
            yield

    def _run(self) -> None:
        while not is_draining(self._node):
            time.sleep(POLL_SECONDS)
        with self._busy:
            log("drained", node=self._node)
            time.sleep(RETURN_SECONDS)
            os._exit(EXIT_DRAINED)


def is_draining(node: str) -> bool:
    """Return whether Ray is draining the node; False while the head cannot be reached."""
    try:
        return node in _draining_nodes()
    except Exception:  # of many types, when the head restarts or is unreachable
        return False


def _draining_nodes() -> dict[str, int]:
    """Return the deadlines by node; Ray has no public name for this call."""
    from ray._private.state import state

    nodes: dict[str, int] = state.get_draining_nodes()
    return nodes
