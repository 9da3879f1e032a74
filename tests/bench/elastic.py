"""Training while nodes come and go.

    python -m tests.bench.elastic --photos DIR

A run that may have three processes starts on a node of two CPUs, both of them training; a node of
one comes, and is killed once its process has trained. Prints processes and samples as they change,
and what the run left. Some seven minutes: Ray looks for room once a minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time

import ray
from ray.cluster_utils import Cluster

from prompt_iml.cluster.settings import TrainSettings
from prompt_iml.cluster.training.curves import CURVES, read_curves
from prompt_iml.cluster.training.train import train
from tests.helpers.processes import processes_below

PATIENCE = 600  # seconds for each of the things that must happen


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--samples", type=int, default=2400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _run(args.photos, args.samples, f"file://{folder}")


def _run(photos: str, samples: int, output: str) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    settings = TrainSettings(
        photos=photos, output=output, workers=1, max_workers=3, fusion="high_frequency",
        samples=samples, batch=12, eval_every=120, eval_examples=4, address=nodes.address,
    )  # fmt: skip
    watch = Watch(output)
    run = threading.Thread(target=lambda: print(train(settings)))
    run.start()
    watch.until(run, processes=2, reports=1)
    print("a node comes")
    node = nodes.add_node(num_cpus=1)
    watch.until(run, processes=3, reports=1)
    watch.until(run, processes=3, reports=watch.reports() + 1)
    print("it is killed")
    nodes.remove_node(node, allow_graceful=False)
    watch.until(run, processes=2, reports=watch.reports() + 1)
    while run.is_alive():
        watch.look()
    ray.shutdown()
    nodes.shutdown()


class Watch:
    """What a run's processes and curves say, a line whenever it is something new."""

    def __init__(self, output: str) -> None:
        self._output, self._start, self._last = output, time.monotonic(), ""

    def reports(self) -> int:
        return len(read_curves(f"{self._output}/{CURVES}"))

    def look(self) -> int:
        """How many processes there are."""
        processes = len(processes_below(os.getpid(), "RayTrainWorker"))
        reports = read_curves(f"{self._output}/{CURVES}")
        samples = reports[-1]["samples"] if reports else "0"
        if (line := f"{processes} processes, {samples} samples") != self._last:
            print(f"{time.monotonic() - self._start:6.0f} s  {line}", flush=True)
            self._last = line
        time.sleep(1)
        return processes

    def until(self, run: threading.Thread, processes: int, reports: int) -> None:
        """Raises TimeoutError when there are not so many, or the run has ended before."""
        deadline = time.monotonic() + PATIENCE
        while self.look() != processes or self.reports() < reports:
            if time.monotonic() > deadline or not run.is_alive():
                raise TimeoutError(f"not {processes} processes and {reports} reports")


if __name__ == "__main__":
    main()
