"""Asking whether a node is being drained. `test_autoscaler` drains a real one."""

from __future__ import annotations

import subprocess
import sys


def test_out_of_reach_of_a_head_no_node_is_draining() -> None:
    """In a process of its own: this one may have a cluster."""
    asks = "from prompt_iml.pipeline.scan.drain import is_draining; print(is_draining('a node'))"
    assert subprocess.check_output([sys.executable, "-c", asks], text=True) == "False\n"
