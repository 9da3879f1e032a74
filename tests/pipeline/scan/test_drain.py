"""State of nodes without a cluster; `test_autoscaler` drains a real node."""

from __future__ import annotations

import subprocess
import sys


def test_out_of_reach_of_a_head_no_node_is_draining() -> None:
    """Checked in a new process, because this one may have a cluster."""
    code = "from prompt_iml.pipeline.scan.drain import is_draining; print(is_draining('a node'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
