"""COCO annotations as labels: an image with annotations is manipulated where they lie.

An image without annotations is authentic. Categories are not distinguished. Images lie beside the
file, or where CVAT, Datumaro and FiftyOne write them: in `images` or `data`, beside or above. A
`coco_url` of a file or an object goes before that, and one on a web server is not asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco

from prompt_iml.engine.errors import BadLabels, NotFound
from prompt_iml.pipeline.run.masks import decode_mask, run_lengths
from prompt_iml.pipeline.sources.uri_list import located
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth.labels import SHOWN_FAULTS, Faults, Label, split_member
from prompt_iml.pipeline.truth.masks import Mask, Rle

FOLDERS = ("", "images/", "data/", "../images/", "../data/")
TASK = "instances_"  # before the name of a part of a set, in the names of files and of folders
MAX_PIXELS = 1 << 30
Document = Mapping[str, Any]


def is_coco(document: Document) -> bool:
    """Return whether a JSON object has the two lists of COCO annotations."""
    return all(isinstance(document.get(name), list) for name in ("images", "annotations"))


def coco_labels(document: Document, place: str, faults: Faults) -> list[Label]:
    """Return a label for each image of a COCO document; `place` is its URI.

    Raises:
        BadLabels: an annotation is of no image, which would be authentic without it.
    """
    shapes = defaultdict[Any, list[Any]](list)
    for annotation in filter(_is_object, document["annotations"]):
        # An id that is a list, say, is that of no image either.
        image_id = annotation.get("image_id")
        known = image_id if isinstance(image_id, int | str) else repr(image_id)
        shapes[known].append(annotation.get("segmentation"))
    labels = []
    for row, image in enumerate(document["images"]):
        with faults.of(row):
            found = image if _is_object(image) else {}
            if not isinstance(found.get("id"), int | str):
                raise ValueError("has no id, which is a number or a text")
            labels.append(_label(row, found, shapes.pop(found["id"], []), place))
    if shapes:
        some = ", ".join(map(repr, list(shapes)[:SHOWN_FAULTS]))
        raise BadLabels(f"{faults.name}: annotations have the image_id {some}, and no image has")
    return labels


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _label(row: int, image: Document, shapes: list[Any], place: str) -> Label:
    url, name = (str(image.get(key) or "") for key in ("coco_url", "file_name"))
    if not storage.is_canonical(url) or storage.is_web(url):
        url = name
    if not url:
        raise ValueError("has no file_name")
    file, member = split_member(url)
    uri = _find(file, place)
    if not shapes:
        return Label(row, uri, member or None, "authentic")
    height, width = _size(image)
    mask = np.zeros((height, width), bool)
    for shape in shapes:
        try:
            mask |= _mask(shape, height, width)
        except (TypeError, OverflowError) as error:
            raise ValueError("has a segmentation that is not of numbers") from error
    return Label(row, uri, member or None, "manipulated", Rle.of(mask))


def _size(image: Document) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and 0 < height * width <= MAX_PIXELS:
        return height, width
    raise ValueError(f"has the size {width}x{height}")


def _find(name: str, place: str) -> str:
    """Return the URI of an image; that beside the annotations where it is in none of the folders.

    CVAT and Datumaro write the images of `instances_train.json` to `../images/train`.
    """
    if name.startswith("/") or "://" in name:
        return storage.canonical(name)
    folder, _, file = place.rpartition("/")
    part = file.rpartition(".")[0].removeprefix(TASK)
    folders = (*FOLDERS, f"../images/{part}/")
    tried = [storage.canonical(located(f"{each}{name}", folder)) for each in folders]
    return next(filter(_exists, tried), tried[0])


def _exists(uri: str) -> bool:
    try:
        return storage.look_up(uri) is not None
    except NotFound:
        return False


def _mask(shape: Any, height: int, width: int) -> Mask:
    """Return (H, W) bool of polygons, or of run lengths, compressed or not.

    pycocotools trusts its input: numbers outside of the picture would take memory, and runs of
    another length would be written beyond the mask.
    """
    counts = shape.get("counts") if isinstance(shape, dict) else None
    if isinstance(counts, str | list):
        if isinstance(counts, str):
            runs = run_lengths(counts.encode())
        else:
            runs = np.array(counts, np.int64)
        within = runs.min(initial=0) >= 0 and runs.max(initial=0) <= MAX_PIXELS
        if not within or runs.sum() != height * width:
            raise ValueError("has run lengths of another size")
        return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T
    if not isinstance(shape, list) or not shape:
        raise ValueError("has an annotation without a segmentation")
    mask = np.zeros((height, width), bool)
    for polygon in shape:
        points = np.array(polygon, float)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError("has a polygon of fewer than three points")
        within = np.clip(points.reshape(-1, 2), 0, (width, height)).ravel().tolist()
        (rle,) = coco.frPyObjects([within], height, width)
        mask |= decode_mask(rle["counts"], height, width)
    return mask
