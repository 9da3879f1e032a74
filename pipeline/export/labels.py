"""`prompt-iml import`: labels of any form as one Parquet file, with their masks inside."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from PIL import Image

from prompt_iml.engine.errors import ImageError
from prompt_iml.pipeline.export.files import Write, row_file, written
from prompt_iml.pipeline.images.decode import DecodeLimits, decode
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import ImportSettings
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, Label, Mask, read_images, read_labels, truth_of
from prompt_iml.pipeline.units import Sample

BATCH = 64  # rows in memory, with their masks
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uri", "member", "label")),
        ("mask", pa.binary()),
        *((name, pa.string()) for name in ("kind", "photo")),
    ]
)


def import_labels(settings: ImportSettings) -> Json:
    """Write the labels of every truth; return `path` and the number of `images` and of `masks`.

    Raises:
        UsageError: as `read_labels`; an image is not there, or a mask does not fit. Nothing is
            written then.
    """
    path = storage.canonical(settings.output)
    counts = {"images": 0, "masks": 0}
    with written(path) as file, row_file(file, ".parquet", SCHEMA) as write:
        for name in settings.truths:
            images, masks = _import(name, write)
            counts["images"] += images
            counts["masks"] += masks
    return {"path": path, **counts}


def _import(name: str, write: Write) -> tuple[int, int]:
    labels = read_labels(name)
    faults = Faults(storage.display_name(name))
    rows: list[dict[str, Any]] = []
    masks = 0
    for label, sample in read_images(labels):
        with faults.of(label.row, label.name):
            rows.append(_row(label, sample))
            masks += rows[-1]["mask"] is not None
        if len(rows) == BATCH:
            write(pa.RecordBatch.from_pylist(rows, SCHEMA))
            rows.clear()
    write(pa.RecordBatch.from_pylist(rows, SCHEMA))
    faults.check()
    return len(labels), masks


def _row(label: Label, sample: Sample) -> dict[str, Any]:
    """Return the row of a label; raise `ValueError` for its fault."""
    try:
        if sample.error:
            raise sample.error
        decoded = decode(sample.data or b"", DecodeLimits())
    except ImageError as error:
        raise ValueError(f"{error.code}: {error}") from error
    size, orientation = decoded.image.pixels.shape[:2], decoded.facts["exif_orientation"]
    truth = truth_of(label, size, orientation)
    return {
        "uri": storage.display_name(label.uri),
        "member": label.member,
        "label": "manipulated" if truth.manipulated else "authentic",
        "mask": None if truth.mask is None else _png(truth.mask),
        "kind": label.kind or None,
        "photo": label.photo or None,
    }


def _png(mask: Mask) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "PNG")
    return sink.getvalue()
