"""Findings as COCO annotations, which pycocotools, CVAT, FiftyOne and others open.

One annotation for each image with a mask: run lengths as the table has them, with `iscrowd` 0, as
evaluations pass over crowds. Ids count from 1. The format: https://cocodataset.org/#format-data.
Values that are not known are left out, as some readers refuse null; what is not of the format is in
`attributes`, where CVAT and FiftyOne look for it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from prompt_iml.pipeline.export.files import put
from prompt_iml.pipeline.export.names import file_name
from prompt_iml.pipeline.export.pictures import with_images
from prompt_iml.pipeline.export.rows import Row, Selection
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.masks import run_lengths

COLUMNS = (
    "image_id", "uri", "member", "sha256", "media_type", "width", "height", "score", "label",
    "mask_rle", "mask_height", "mask_width", "mask_confidence",
)  # fmt: skip
CATEGORY = {"id": 1, "name": "manipulated", "supercategory": "manipulation"}


def write_coco(selection: Selection, file: BinaryIO, folder: str | None = None) -> Json:
    """Write one JSON document.

    The annotations follow all images, so they wait in a temporary file.

    Args:
        selection: rows to write.
        file: the document.
        folder: URI of a folder that receives a copy of each image; None: no copies.

    Returns:
        The number of `images` and of `masks`; with a folder also of the images that are `missing`:
        they are gone or have changed, and are left out.
    """
    counts = Counter(images=0, masks=0)
    root = selection.root()
    rows = _copied(selection, folder, root, counts) if folder else selection.scanned(COLUMNS)
    info = {"description": f"prompt-iml, run {selection.run.run_id}"}
    head = {"info": info, "licenses": [], "categories": [CATEGORY]}
    with tempfile.TemporaryFile() as annotations:
        file.write(json.dumps(head).removesuffix("}").encode() + b', "images": [')
        for number, row in enumerate(rows, 1):
            counts["images"] = number
            file.write(_line(_image(number, file_name(row, root), row), number == 1))
            if row["mask_rle"] is not None:
                counts["masks"] += 1
                mask = _annotation(counts["masks"], number, row)
                annotations.write(_line(mask, counts["masks"] == 1))
        file.write(b'], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write(b"]}\n")
    return dict(counts)


def _copied(selection: Selection, folder: str, root: str, counts: Counter[str]) -> Iterator[Row]:
    """Copy the images to a folder, and yield the rows of those that are still there."""
    counts["missing"] = 0
    for row, data in with_images(selection.scanned(COLUMNS)):
        if data is None:
            counts["missing"] += 1
        else:
            put(f"{folder}/{file_name(row, root)}", data)
            yield row


def _line(entry: Json, is_first: bool) -> bytes:
    return b"\n" + json.dumps(entry).encode() if is_first else b",\n" + json.dumps(entry).encode()


def _image(number: int, name: str, row: Row) -> Json:
    member = "" if row["member"] is None else f"#{row['member']}"
    return {
        "id": number,
        "file_name": name,
        "width": row["width"],
        "height": row["height"],
        "coco_url": row["uri"] + member,
        **_known(row, "score", "label"),
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
        **_known(row, "score"),
        "attributes": _known(row, "mask_confidence"),
    }


def _known(row: Row, *names: str) -> Json:
    """Return the columns that have a value; numbers are rounded."""
    known = {name: row[name] for name in names if row[name] is not None}
    return {n: round(v, 6) if isinstance(v, float) else v for n, v in known.items()}


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
