"""`prompt-iml plan`: estimate of a scan's images, hours and GPU-hours.

    list the inputs -> sample a few units at random -> decode and scan their first images on one
    thread -> images, hours, GPU-hours, and the assumptions

Nothing is written. A listing does not count the images in tar shards: their number is estimated
from the size of the sampled images.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.detection.image import Image
from prompt_iml.engine.errors import EmptySource, ImageError, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.scan.scan import sliced, units_of
from prompt_iml.pipeline.settings import PlanSettings
from prompt_iml.pipeline.sources import read_unit
from prompt_iml.pipeline.units import Sample, Unit

SAMPLED_UNITS = 16
TAR_OVERHEAD = 1024  # bytes of header and padding per member


@dataclass(slots=True)
class Listing:
    """Summary of the inputs.

    Attributes:
        units: number of units.
        size_bytes: bytes of all units, where known.
        images: images of the units that are counted when listed.
        uncounted_bytes: bytes of the other units, which are tar shards.
        sampled: at most `SAMPLED_UNITS` units, sampled uniformly.
    """

    units: int = 0
    size_bytes: int = 0
    images: int = 0
    uncounted_bytes: int = 0
    sampled: list[Unit] = field(default_factory=list)


def estimate(settings: PlanSettings) -> Json:
    """List the inputs and, with `--estimate`, measure the scan.

    Returns:
        `units`, `size_bytes`, `images`; with `--estimate` also `images_per_second` of an actor,
        `hours` of all actors, `gpu_hours`, and `assumptions`, as text.

    Raises:
        UsageError: there is nothing to scan, or none of the sampled images can be read.
    """
    listing = survey(sliced(units_of(settings), settings.slice))
    samples = list(first_images(listing.sampled, settings.sample))
    images = listing.images + images_in_tars(listing.uncounted_bytes, samples)
    summary: Json = {"units": listing.units, "size_bytes": listing.size_bytes, "images": images}
    log(f"{images:,} images in {listing.units:,} units, {listing.size_bytes / 1e9:,.1f} GB")
    return summary | cost(settings, samples, images) if settings.estimate else summary


def survey(units: Iterable[Unit], seed: int = 0) -> Listing:
    """Count and sample the units in one pass (reservoir sampling); raises `EmptySource`."""
    listing, rng = Listing(), random.Random(seed)
    for unit in units:
        listing.units += 1
        listing.size_bytes += max(unit.size_bytes, 0)
        listing.images += max(unit.images, 0)
        listing.uncounted_bytes += max(unit.size_bytes, 0) if unit.images < 0 else 0
        if len(listing.sampled) < SAMPLED_UNITS:
            listing.sampled.append(unit)
        elif (place := rng.randrange(listing.units)) < SAMPLED_UNITS:
            listing.sampled[place] = unit
    if not listing.units:
        raise EmptySource("the inputs hold nothing to scan")
    return listing


def first_images(units: Sequence[Unit], count: int) -> Iterator[Sample]:
    """Yield about `count` images that can be fetched, the same number from each unit."""
    each = -(-count // len(units))
    for unit in units:
        samples = read_unit(unit, max_object_bytes=1 << 28, threads=4)
        yield from islice((sample for sample in samples if sample.data), each)


def images_in_tars(size_bytes: int, samples: Sequence[Sample]) -> int:
    """Return the number of images in tar shards of this size, from the mean size of samples."""
    sizes = [len(sample.data or b"") for sample in samples if sample.member is not None]
    return round(size_bytes / (sum(sizes) / len(sizes) + TAR_OVERHEAD)) if sizes else 0


def cost(settings: PlanSettings, samples: Sequence[Sample], images: int) -> Json:
    """Return rate, hours, GPU-hours and assumptions of a scan of this many images."""
    rate, assumptions = settings.rate, [f"an actor scans {settings.rate} images/s, from --rate"]
    if rate is None:
        rate, used = measured_rate(settings, samples)
        assumptions = [
            f"an actor scans {rate:.1f} images/s, measured here on one thread with {used}"
        ]
    hours = images / rate / settings.actors / 3600
    gpu_hours = hours * settings.actors * settings.actor_gpus
    assumptions += [
        f"{settings.actors} actors are never idle, and the store delivers "
        f"{rate * settings.actors:,.0f} images/s",
        "all images are like the sampled ones; retries and the start of nodes take no time",
    ]
    actor_hours = hours * settings.actors
    log(f"{hours:,.2f} h with {settings.actors} actors: {actor_hours:,.1f} actor-hours")
    for line in assumptions:
        log(f"assumption: {line}")
    return {
        "images_per_second": round(rate, 2),
        "actors": settings.actors,
        "hours": round(hours, 3),
        "actor_hours": round(actor_hours, 3),
        "gpu_hours": round(gpu_hours, 3),
        "assumptions": assumptions,
    }


def measured_rate(settings: PlanSettings, samples: Sequence[Sample]) -> tuple[float, str]:
    """Return images per second of decoder and engine in a second pass, and what was measured."""
    model = load_model(settings.model).looking_closer(settings.closer_look)
    engine = open_engine(model, settings.engine, 1, settings.precision)
    detector = Detector(engine, model.view, model.policy, engine.batch)
    images = 0
    for _ in range(2):  # the first compiles
        started = time.perf_counter()
        images = sum(1 for _ in detector.detect(_decoded(samples)))
        seconds = time.perf_counter() - started
    if not images:
        raise UsageError("none of the sampled images can be read: give a --rate")
    return images / seconds, f"{engine.name} and {images} of these images"


def _decoded(samples: Iterable[Sample]) -> Iterator[tuple[int, Image]]:
    for number, sample in enumerate(samples):
        try:
            yield number, decode(sample.data or b"", DecodeLimits()).image
        except ImageError:
            continue
