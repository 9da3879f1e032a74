"""Truth in folders: manipulated images, their masks and authentic images, by the folders' names.

    Tp/ Gt/ Au/              CASIA, and the folders of IMDL-BenCo; other names are below
    images/ masks/           an image without a mask is authentic
    any/folders              each mask beside its image, and authentic images that end in `_orig`,
                             as in IMD2020
    *.parquet                tables of labels

A mask has the name of its image, perhaps with `_gt` or `_mask`, and any image's extension. In
COVERAGE the mask of `1t` is `1forged`; those of what was copied, and where to, are passed over.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from prompt_iml.engine.errors import UsageError
from prompt_iml.pipeline.sources.names import claims_to_be_image, is_hidden, kind_of_name
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.truth.labels import Faults, Label, Verdict
from prompt_iml.pipeline.truth.tables import table_labels

ROLES = {
    "manipulated": (
        "tp", "tampered", "forged", "fake", "manipulated", "spliced", "modified tp", "4cam_splc",
    ),
    "masks": (
        "gt", "mask", "masks", "groundtruth", "ground_truth", "ground truth",
        "casia 2 groundtruth", "casia 1.0 groundtruth",
    ),
    "authentic": ("au", "authentic", "real", "pristine", "original", "4cam_auth"),
    "images": ("image", "images", "img", "imgs"),
}  # fmt: skip
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_OF_MASK = re.compile(r"[._-]?(gt|mask|groundtruth)\d*$", re.I)
_BESIDE = re.compile(r"[._-](gt|mask|groundtruth)$", re.I)
_AUTHENTIC = re.compile(r"[._-](orig|original|au|authentic)$", re.I)
_OF_COVERAGE = re.compile(r"(\d+)(copy|paste|forged)$")

Files = dict[str, list[str]]


def folder_labels(uri: str, faults: Faults) -> list[Label]:
    """Return the labels of a folder.

    Args:
        uri: canonical URI of the folder.
        faults: collects masks without an image.

    Raises:
        FetchError: the folder cannot be listed.
        UsageError: its folders have other names.
    """
    tables, others, files = [], list[str](), defaultdict[str, list[str]](list)
    for ref in list_objects(uri, is_hidden):
        inside = ref.uri[len(uri) + 1 :]
        if kind_of_name(inside) == "parquet":
            tables.append(ref.uri)
        elif claims_to_be_image(inside) and (role := _role(inside)):
            files[role].append(ref.uri)
        elif claims_to_be_image(inside):
            others.append(ref.uri)
    if tables and not files:
        return list(_of_tables(tables, faults))
    if not files and any(_BESIDE.search(image_key(uri)) for uri in others):
        return list(_labels_beside(others, faults))
    if not files.keys() & {"manipulated", "images", "authentic"}:
        raise UsageError(
            f"{_shown(uri)}: no truth is known of this folder: it needs the folders Tp, Gt and Au, "
            "or images and masks, or masks NAME_mask beside images NAME, or tables of labels"
        )
    return list(_image_labels(files, faults))


def _of_tables(uris: list[str], faults: Faults) -> Iterator[Label]:
    row = 0
    for uri in uris:
        own = Faults(_shown(uri))
        for label in table_labels(uri, own.name, own):
            yield replace(label, row=row)
            row += 1
        if own.found:
            faults.found[row] = f"{own.name}: {len(own.found)} faulty rows"


def _role(name: str) -> str | None:
    """Return the role of a file: that of the innermost of its folders that has one."""
    folders = name.lower().split("/")[:-1]
    return next((ROLE_OF[each] for each in reversed(folders) if each in ROLE_OF), None)


def _labels_beside(uris: list[str], faults: Faults) -> Iterator[Label]:
    """Yield the labels of images that lie beside their masks."""
    masks = {_BESIDE.sub("", _stem(uri)): uri for uri in uris if _BESIDE.search(_stem(uri))}
    images = [uri for uri in uris if not _BESIDE.search(_stem(uri))]
    for row, uri in enumerate(images):
        mask = masks.pop(_stem(uri), None)
        if mask is None and not _AUTHENTIC.search(_stem(uri)):
            faults.found[row] = f"{_shown(uri)} has no mask beside it, nor a name in _orig"
        yield Label(row, uri, None, "manipulated" if mask else "authentic", mask)
    for row, mask in enumerate(masks.values(), len(images)):
        faults.found[row] = f"the mask {_shown(mask)} belongs to no image"


def _image_labels(files: Files, faults: Faults) -> Iterator[Label]:
    images = [(role, uri) for role in ("authentic", "images", "manipulated") for uri in files[role]]
    masks = defaultdict[str, dict[str, None]](dict)
    of_masks = [uri for uri in files["masks"] if not _is_part(uri)]
    for uri in of_masks:
        masks[mask_key(uri)][uri] = masks[image_key(uri)][uri] = None
    unused = dict.fromkeys(of_masks)
    for row, (role, uri) in enumerate(images):
        found = [] if role == "authentic" else list(masks.get(image_key(uri), ()))
        for mask in found:
            unused.pop(mask, None)
        if len(found) > 1:
            faults.found[row] = f"{_shown(uri)} has the masks {', '.join(map(_shown, found))}"
        is_open = role == "images" and found  # its mask may be black
        verdict: Verdict = "manipulated" if role == "manipulated" else "authentic"
        yield Label(row, uri, None, None if is_open else verdict, found[0] if found else None)
    for row, mask in enumerate(unused, len(images)):
        faults.found[row] = f"the mask {_shown(mask)} belongs to no image"


def image_key(uri: str) -> str:
    """Return the name of an image, by which its mask is found: without folders and extension."""
    return _stem(uri).rpartition("/")[2]


def mask_key(uri: str) -> str:
    """Return the name of the image that a mask belongs to, as of `image_key`."""
    if of_coverage := _OF_COVERAGE.match(image_key(uri)):
        return f"{of_coverage[1]}t"
    return _OF_MASK.sub("", image_key(uri))


def _is_part(mask: str) -> bool:
    of_coverage = _OF_COVERAGE.match(image_key(mask))
    return of_coverage is not None and of_coverage[2] != "forged"


def _stem(uri: str) -> str:
    return _SUFFIX.sub("", uri).lower()


def _shown(uri: str) -> str:
    return storage.display_name(uri.removeprefix("file://"))
