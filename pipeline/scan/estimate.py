"""`prompt-iml plan`: what a scan would take, before one is begun.

    list the inputs -> a few units of all, drawn at random -> their first images, one after another,
    through decoder and engine, on one thread -> images, hours, GPU-hours, and what that assumes

Nothing is written. What a tar shard holds, its listing does not say: from the size of those drawn.
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

DRAWN = 16  # units
TAR_OVERHEAD = 1024  # bytes of a member besides its own: a header, and half a block or so


@dataclass(slots=True)
class Listing:
    """What the inputs hold.

    Attributes:
        units: number of them.
        size_bytes: of all, where known.
        images: of units that tell.
        untold_bytes: of units that do not: tar shards.
        drawn: some units, each as likely as any other.
    """

    units: int = 0
    size_bytes: int = 0
    images: int = 0
    untold_bytes: int = 0
    drawn: list[Unit] = field(default_factory=list)


def estimate(settings: PlanSettings) -> Json:
    """Run the command.

    Returns:
        `units`, `size_bytes`, `images`; with `--estimate` also `images_per_second` of an actor,
        `hours` of all actors, `gpu_hours`, and `assumptions`, as text.

    Raises:
        UsageError: there is nothing to scan, or no image among those drawn can be read.
    """
    listing = survey(sliced(units_of(settings), settings.slice))
    samples = list(first_images(listing.drawn, settings.sample))
    images = listing.images + guess(listing.untold_bytes, samples)
    told: Json = {"units": listing.units, "size_bytes": listing.size_bytes, "images": images}
    log(f"{images:,} images in {listing.units:,} units, {listing.size_bytes / 1e9:,.1f} GB")
    return told | cost(settings, samples, images) if settings.estimate else told


def survey(units: Iterable[Unit], seed: int = 0) -> Listing:
    """Count, and draw, in one pass and little memory (reservoir sampling)."""
    listing, rng = Listing(), random.Random(seed)
    for unit in units:
        listing.units += 1
        listing.size_bytes += max(unit.size_bytes, 0)
        listing.images += max(unit.images, 0)
        listing.untold_bytes += max(unit.size_bytes, 0) if unit.images < 0 else 0
        if len(listing.drawn) < DRAWN:
            listing.drawn.append(unit)
        elif (place := rng.randrange(listing.units)) < DRAWN:
            listing.drawn[place] = unit
    if not listing.units:
        raise EmptySource("the inputs hold nothing to scan")
    return listing


def first_images(units: Sequence[Unit], count: int) -> Iterator[Sample]:
    """Up to so many images that can be fetched, as many of each unit as of the others."""
    each = -(-count // len(units))
    for unit in units:
        samples = read_unit(unit, max_object_bytes=1 << 28, threads=4)
        yield from islice((sample for sample in samples if sample.data), each)


def guess(size_bytes: int, samples: Sequence[Sample]) -> int:
    """Images in tar shards of so many bytes, if they are as large as those of the shards drawn."""
    sizes = [len(sample.data or b"") for sample in samples if sample.member is not None]
    return round(size_bytes / (sum(sizes) / len(sizes) + TAR_OVERHEAD)) if sizes else 0


def cost(settings: PlanSettings, samples: Sequence[Sample], images: int) -> Json:
    """Hours of so many images."""
    rate, assumptions = settings.rate, [f"an actor scans {settings.rate} images/s, as stated"]
    if rate is None:
        rate, shown = measured_rate(settings, samples)
        assumptions = [f"an actor scans {rate:.1f} images/s, as one thread here did with {shown}"]
    hours = images / rate / settings.actors / 3600
    gpu_hours = hours * settings.actors * settings.actor_gpus
    assumptions += [
        f"{settings.actors} actors that are never idle, and a store that keeps up with "
        f"{rate * settings.actors:,.0f} images/s",
        "images as those drawn; no retries, no time for nodes to start",
    ]
    actor_hours = hours * settings.actors
    log(f"{hours:,.2f} h with {settings.actors} actors: {actor_hours:,.1f} actor-hours")
    for line in assumptions:
        log(f"assumed: {line}")
    return {
        "images_per_second": round(rate, 2),
        "actors": settings.actors,
        "hours": round(hours, 3),
        "actor_hours": round(actor_hours, 3),
        "gpu_hours": round(gpu_hours, 3),
        "assumptions": assumptions,
    }


def measured_rate(settings: PlanSettings, samples: Sequence[Sample]) -> tuple[float, str]:
    """Images a second of decoder and engine, the second time round; and what was shown to them."""
    model = load_model(settings.model)
    engine = open_engine(model, settings.engine, threads=1)
    detector = Detector(engine, model.view, model.policy, engine.batch)
    images = 0
    for _ in range(2):  # the first compiles
        started = time.perf_counter()
        images = sum(1 for _ in detector.detect(_decoded(samples)))
        seconds = time.perf_counter() - started
    if not images:
        raise UsageError("none of the images drawn can be read: state a --rate")
    return images / seconds, f"{engine.name} and {images} of these images"


def _decoded(samples: Iterable[Sample]) -> Iterator[tuple[int, Image]]:
    for number, sample in enumerate(samples):
        try:
            yield number, decode(sample.data or b"", DecodeLimits()).image
        except ImageError:
            continue
