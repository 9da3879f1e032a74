"""Files -> Daft -> scores as Parquet: daft_job.py FOLDER GRAPH OUTPUT PROCESSES.

Runs in an environment of its own, which has Daft, ONNX Runtime and Pillow.
"""

from __future__ import annotations

import sys

import daft
from daft import DataType
from network import NullNetwork

FOLDER, GRAPH, OUTPUT, PROCESSES = sys.argv[1:]
SCORED = DataType.struct({"score": DataType.float64(), "scanned_at": DataType.float64()})


@daft.cls(max_concurrency=int(PROCESSES), use_process=True)
class Scorer:
    """A process with the network."""

    def __init__(self, graph: str) -> None:
        self._network = NullNetwork(graph)

    @daft.method.batch(return_dtype=SCORED, batch_size=16)
    def score(self, bodies: daft.Series) -> list[dict[str, float]]:
        """Score a batch of files."""
        scored = map(self._network.run, bodies.to_pylist())
        return [{"score": score, "scanned_at": at} for score, at in scored]


if __name__ == "__main__":
    files = daft.from_glob_path(f"{FOLDER}/*.jpg")
    scored = files.with_column("found", Scorer(GRAPH).score(daft.col("path").download()))
    columns = [daft.col("found")[name].alias(name) for name in ("score", "scanned_at")]
    scored.select("path", *columns).write_parquet(OUTPUT)
