"""What a dashboard knows of a scan: what scan actors count, through `ray.util.metrics`.

Ray's agent on each node exports it, as `ray_` and the name, at its `metrics-export-port`. The names
are a contract with dashboards (`cluster/kubernetes/monitoring`).
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
    """Passes a meter's sums on.

    Args:
        run_id: the tag `run` of everything.
    """

    def __init__(self, run_id: str) -> None:
        self._images = metrics.Counter(IMAGES, "Rows made.", ("run", "status", "code"))
        self._bytes = metrics.Counter(BYTES, "Of the images in them.", ("run",))
        self._seconds = metrics.Counter(SECONDS, "By stage.", ("run", "stage"))
        self._tiles = metrics.Counter(TILES, "That the engine ran.", ("run",))
        self._slots = metrics.Counter(SLOTS, "Places in its batches.", ("run",))
        self._queue = metrics.Gauge(QUEUE, "Decoded images that wait.", ("run",))
        self._begun = metrics.Gauge(BEGUN, "When the unit at hand was begun.", ("run",))
        self._model = metrics.Gauge(MODEL, "1.", ("run", "model", "prompts", "engine"))
        self._run = {"run": run_id}

    def flush(self, meter: Meter) -> None:
        """Pass on, and begin the sums anew."""
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
    """Ray refuses to add nothing."""
    if value > 0:
        counter.inc(value, tags)
