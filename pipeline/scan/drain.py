"""Ends a process on a node that is to go, between two units.

A spot node that is taken back, a pod that is deleted, an autoscaler that shrinks: Ray drains the
node first. Nothing new is placed on it, and it ends when it is idle or its deadline has come. A
pool of actors does not look: it would give the actors there new units until the deadline cuts
them off. So they end themselves, their unit committed, and start again on another node.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from prompt_iml.pipeline.logs import tell

EXIT_DRAINED = 87
POLL_SECONDS = 2.0
RETURN_SECONDS = 1.0  # for the last result to leave the process


class Drain:
    """Ends this process when its node is drained and nothing puts that off.

    Nothing new is let in then: the pool gives its unit to another actor.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._node: str = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._run, name="drain", daemon=True).start()

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Around what must not be cut off."""
        with self._busy:
            yield

    def _run(self) -> None:
        while not is_draining(self._node):
            time.sleep(POLL_SECONDS)
        with self._busy:
            tell("drained", node=self._node)
            time.sleep(RETURN_SECONDS)
            os._exit(EXIT_DRAINED)


def is_draining(node: str) -> bool:
    """Whether Ray has said that the node is to go; not while there is no head to ask."""
    try:
        return node in _draining_nodes()
    except Exception:  # of many types: a head that starts again, or is out of reach
        return False


def _draining_nodes() -> dict[str, int]:
    """Deadlines by node; Ray has no public name for it."""
    from ray._private.state import state

    nodes: dict[str, int] = state.get_draining_nodes()
    return nodes
