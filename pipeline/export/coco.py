"""Findings as COCO annotations, which pycocotools, CVAT, FiftyOne and others open.

One annotation for each image with a mask: run lengths as the table has them, with `iscrowd` 0, as
evaluations pass over crowds. Ids count from 1. The format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import shutil
import tempfile
from typing import Any, BinaryIO

import numpy as np

from prompt_iml.pipeline.export.rows import Row, Selection
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.masks import run_lengths

COLUMNS = (
    "uri", "member", "width", "height", "score", "label", "mask_rle", "mask_height", "mask_width",
    "mask_confidence", "model",
)  # fmt: skip
CATEGORY = {"id": 1, "name": "manipulated", "supercategory": "manipulation"}


def write_coco(selection: Selection, file: BinaryIO) -> Json:
    """Write one JSON document; return the number of `images` and of `masks`.

    The annotations follow all images, so they wait in a temporary file.
    """
    images = masks = 0
    info = {"description": f"prompt-iml, run {selection.run.run_id}"}
    head = {"info": info, "licenses": [], "categories": [CATEGORY]}
    with tempfile.TemporaryFile() as annotations:
        file.write(json.dumps(head).removesuffix("}").encode() + b', "images": [')
        for images, row in enumerate(selection.scanned(COLUMNS), 1):
            file.write(_line(_image(selection, images, row), images == 1))
            if row["mask_rle"] is not None:
                masks += 1
                annotations.write(_line(_annotation(masks, images, row), masks == 1))
        file.write(b'], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write(b"]}\n")
    return {"images": images, "masks": masks}


def _line(entry: Json, is_first: bool) -> bytes:
    return b"\n" + json.dumps(entry).encode() if is_first else b",\n" + json.dumps(entry).encode()


def _image(selection: Selection, number: int, row: Row) -> Json:
    member = "" if row["member"] is None else f"#{row['member']}"
    return {
        "id": number,
        "file_name": selection.file_name(row),
        "width": row["width"],
        "height": row["height"],
        "coco_url": row["uri"] + member,
        "score": _rounded(row["score"]),
        "label": row["label"],
    }


def _annotation(number: int, image: int, row: Row) -> Json:
    counts: bytes = row["mask_rle"]
    height, width = row["mask_height"], row["mask_width"]
    area, box = area_and_box(counts, height)
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "segmentation": {"size": [height, width], "counts": counts.decode()},
        "area": area,
        "bbox": box,
        "iscrowd": 0,
        "score": _rounded(row["score"]),
        "mask_confidence": _rounded(row["mask_confidence"]),
    }


def area_and_box(counts: bytes, height: int) -> tuple[int, list[int]]:
    """Return the number of pixels of a mask that is not empty, and its x, y, width and height."""
    runs = run_lengths(counts)
    ends = np.cumsum(runs)
    first, last = ends[0 : 2 * (len(runs) // 2) : 2], ends[1::2] - 1  # pixels, down the columns
    within = first // height == last // height
    top = int(np.where(within, first % height, 0).min())
    bottom = int(np.where(within, last % height, height - 1).max())
    left, right = int(first[0] // height), int(last[-1] // height)
    return int(runs[1::2].sum()), [left, top, right - left + 1, bottom - top + 1]


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 6)
