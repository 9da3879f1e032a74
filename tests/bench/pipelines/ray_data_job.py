"""Files -> plain Ray Data -> scores as Parquet: ray_data_job.py FOLDER GRAPH OUTPUT PROCESSES."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray
from network import NullNetwork

FOLDER, GRAPH, OUTPUT, PROCESSES = sys.argv[1:]


class Scorer:
    """An actor with the network."""

    def __init__(self) -> None:
        self._network = NullNetwork(GRAPH)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score a batch of files."""
        scored = np.array([self._network.run(body) for body in batch["bytes"]])
        return {"path": batch["path"], "score": scored[:, 0], "scanned_at": scored[:, 1]}


if __name__ == "__main__":
    ray.init("local", num_cpus=int(PROCESSES), include_dashboard=False, log_to_driver=False)
    # Less than a CPU each, or reading and writing would wait for ever.
    actors = {"concurrency": int(PROCESSES), "num_cpus": 0.5, "batch_size": 16}
    files = ray.data.read_binary_files(FOLDER, include_paths=True)
    files.map_batches(Scorer, **actors).write_parquet(OUTPUT)
