"""Columns that each stage adds to the row of an image (schema: `pipeline.run.schema`)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image as PilImage

from prompt_iml.engine.detection.detector import Finding
from prompt_iml.engine.detection.views import LogitMap
from prompt_iml.engine.errors import ImageError
from prompt_iml.engine.model.folder import Model
from prompt_iml.pipeline.run.masks import encode_mask
from prompt_iml.pipeline.run.schema import image_id
from prompt_iml.pipeline.storage.storage import display_name
from prompt_iml.pipeline.units import Sample

Row = dict[str, Any]

MESSAGE_CHARACTERS = 300
HEATMAP_LEVELS = 16


def provenance(model: Model, engine_name: str) -> Row:
    """Return the columns that name the model, prompts, policy and engine of a row."""
    return {
        "model": model.id,
        "model_sha256": model.sha256,
        "model_digest": model.digest,
        "prompt_set": model.prompts.id,
        "policy": model.policy.id,
        "engine": engine_name,
    }


def identity(sample: Sample) -> Row:
    """Return the columns that identify an image."""
    uri = display_name(sample.uri)
    member = None if sample.member is None else display_name(sample.member)
    row: Row = {
        "image_id": image_id(uri, member),
        "uri": uri,
        "member": member,
        "content_id": sample.content_id,
    }
    if sample.data is not None:
        row["sha256"] = hashlib.sha256(sample.data).hexdigest()
        row["size_bytes"] = len(sample.data)
    return row


def failure(error: ImageError) -> Row:
    """Return the columns of an image that could not be scanned."""
    return error.facts | {
        "status": error.status,
        "error_stage": error.stage,
        "error_code": error.code,
        "error_message": str(error)[:MESSAGE_CHARACTERS],
    }


def known_codes() -> dict[str | None, str]:
    """Return the status of every error code; the key None is a row without one."""

    def below(kind: type[ImageError]) -> Iterator[type[ImageError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return {None: "ok"} | {kind.code: kind.status for kind in below(ImageError)}


def result(finding: Finding, *, heatmap: bool) -> Row:
    """Return the columns of a scanned image."""
    height, width = finding.logits.shape
    return {
        "status": "ok",
        "score": finding.score,
        "score_raw": finding.score_raw,
        "label": finding.label,
        "threshold": finding.threshold,
        "manipulated_fraction": finding.manipulated_fraction,
        "regions": [asdict(region) for region in finding.regions],
        "mask_rle": None if finding.mask is None else encode_mask(finding.mask),
        "mask_height": height,
        "mask_width": width,
        "mask_threshold": finding.mask_threshold,
        "mask_confidence": finding.mask_confidence,
        "heatmap_png": heatmap_png(finding.logits) if heatmap else None,
        "preprocess": finding.preprocess,
        "infer_ms": finding.infer_ms,
    }


def heatmap_png(logits: LogitMap) -> bytes:
    """Encode probabilities at network resolution as a grey 4-bit PNG; level 15 is 1.0."""
    probabilities = 1 / (1 + np.exp(-logits.cells.astype(np.float64)))
    levels = np.rint(probabilities * (HEATMAP_LEVELS - 1)).astype(np.uint8)
    picture = PilImage.fromarray(levels, mode="P")
    picture.putpalette(bytes(np.repeat(np.linspace(0, 255, HEATMAP_LEVELS).astype(np.uint8), 3)))
    file = io.BytesIO()
    picture.save(file, "PNG", bits=4)
    return file.getvalue()
