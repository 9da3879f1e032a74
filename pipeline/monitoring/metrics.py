"""Prometheus metrics of a scan: the counts of its actors, exported through `ray.util.metrics`.

Ray's agent on each node exports them, as `ray_` and the name, at its `metrics-export-port`. The
names are a contract with dashboards (`cluster/kubernetes/monitoring`).
"""

from __future__ import annotations

from ray.util import metrics

from prompt_iml.pipeline.monitoring.meter import Meter

IMAGES = "prompt_iml_images"
BYTES = "prompt_iml_bytes"
SECONDS = "prompt_iml_stage_seconds"
TILES = "prompt_iml_tiles"
SLOTS = "prompt_iml_tile_slots"
QUEUE = "prompt_iml_queue_depth"
BEGUN = "prompt_iml_unit_begun_timestamp"
MODEL = "prompt_iml_model"


class RayMetrics:
    """Exports the sums of a meter.

    Args:
        run_id: value of the tag `run` of every metric.
    """

    def __init__(self, run_id: str) -> None:
        counter, gauge, run = metrics.Counter, metrics.Gauge, ("run",)
        made = "Counts the images that have a row, by status and error code."
        self._images = counter(IMAGES, made, (*run, "status", "code"))
        self._bytes = counter(BYTES, "Counts the bytes of the images that have a row.", run)
        spent = "Counts the seconds that scan actors spent in each stage."
        self._seconds = counter(SECONDS, spent, (*run, "stage"))
        self._tiles = counter(TILES, "Counts the image tiles that the engine ran.", run)
        self._slots = counter(SLOTS, "Counts the places for tiles in the engine's batches.", run)
        self._queue = gauge(QUEUE, "Shows how many decoded images wait for the engine.", run)
        self._begun = gauge(BEGUN, "Shows when the current unit began, as Unix time, or 0.", run)
        named = "Is always 1; its labels name the model, the prompt set and the engine in use."
        self._model = gauge(MODEL, named, (*run, "model", "prompts", "engine"))
        self._run = {"run": run_id}

    def flush(self, meter: Meter) -> None:
        """Export the sums and reset them."""
        for (status, code), count in meter.images.items():
            self._images.inc(count, self._run | {"status": status, "code": code})
        for stage, seconds in meter.seconds.items():
            _add(self._seconds, seconds, self._run | {"stage": stage})
        _add(self._bytes, meter.size_bytes, self._run)
        _add(self._tiles, meter.tiles, self._run)
        _add(self._slots, meter.slots, self._run)
        self._queue.set(meter.queue, self._run)
        self._begun.set(meter.begun, self._run)
        model, prompts, engine = meter.model
        self._model.set(1, self._run | {"model": model, "prompts": prompts, "engine": engine})
        meter.images.clear()
        meter.seconds.clear()
        meter.size_bytes = meter.tiles = meter.slots = 0


def _add(counter: metrics.Counter, value: float, tags: dict[str, str]) -> None:
    """Add to a counter; Ray refuses to add 0."""
    if value > 0:
        counter.inc(value, tags)
