"""Outputs of scans, written row by row."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from PIL import Image

from prompt_iml.pipeline.run.folder import Run
from prompt_iml.pipeline.run.masks import encode_mask
from prompt_iml.pipeline.run.schema import RowWriter, image_id
from prompt_iml.pipeline.storage import storage

Row = dict[str, Any]
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = {"manipulated_at": 0.5, "authentic_below": 0.5}
READING = {
    "max_pixels": 10**7,
    "max_object_bytes": 10**7,
    "images_per_unit": 8,
    "image_column": None,
}


def scored(
    uri: str, data: bytes, score: float, member: str | None = None, label: str | None = None
) -> Row:
    """Return the row of an image with a mask; without a label, the score gives it."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    mask = np.zeros((height, width), bool)
    mask[10:60, 20:90] = True
    region = {"x": 20, "y": 10, "width": 70, "height": 50, "area": 3500}
    return {
        "image_id": image_id(uri, member),
        "uri": uri,
        "member": member,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "media_type": "image/jpeg",
        "width": width,
        "height": height,
        "status": "ok",
        "score": score,
        "label": label or ("manipulated" if score > 0.5 else "authentic"),
        "threshold": 0.5,
        "manipulated_fraction": float(mask.mean()),
        "regions": [region | {"mean_score": 0.7, "max_score": 0.9}],
        "mask_rle": encode_mask(mask),
        "mask_height": height,
        "mask_width": width,
    }


def failed(uri: str, code: str = "corrupt", message: str = "breaks off") -> Row:
    """Return the row of an image that could not be scanned."""
    why = {"error_stage": "decode", "error_code": code, "error_message": message}
    return {"image_id": image_id(uri, None), "uri": uri, "status": "failed"} | why


def commit(
    output: str,
    rows: list[Row],
    model: str = "micro@1",
    run_id: str = "r1",
    policy: Row = POLICY,
) -> Run:
    """Write a complete run of these rows, scanned a second apart."""
    run = Run(output, run_id)
    run.bind({"inputs": [f"{output}/in"], "model": model, "policy": policy} | READING)
    writer = RowWriter("u1", run_id)
    for second, row in enumerate(rows):
        made = {"run_id": run_id, "model": model, "scanned_at": START + timedelta(seconds=second)}
        writer.add(row | made)
    storage.create_once(run.part_uri(f"{run_id}-u1"), writer.close())
    run.commit({"parts": [{"file": f"results/part-{run_id}-u1.parquet"}]})
    return run
