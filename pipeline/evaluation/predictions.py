"""Maps of another model, to be evaluated as ours are.

A folder has one file for each image: a mask or a grey probability map as an image, a NumPy array of
probabilities (`.npy`), or an `.npz` with `map` and perhaps `score`, as TruFor writes it. Whole
numbers are masks of 0 and 1 if no map of the folder has a larger one, else grey. A file has the
image's name, with or without its extension, and may lie in the same folders: `Tp/1.png`,
`1.jpg.npz`, `1.png`.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from prompt_iml.engine.detection.score import Statistics, histogram
from prompt_iml.engine.errors import BadLabels, FetchError, ImageError, MissingInput, UsageError
from prompt_iml.pipeline.evaluation.images import Evaluation, image_result, read_pictures
from prompt_iml.pipeline.logs import one_line
from prompt_iml.pipeline.sources.names import is_hidden
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.storage.listing import list_objects
from prompt_iml.pipeline.truth import Faults, Label, Truth

Floats = NDArray[np.float32]

THRESHOLD = 0.5  # probability above which a pixel is in the mask, and of the score
LEAST_PROBABILITY = 1e-6  # so that logits are finite
MAPS = ("map", "mask", "pred", "prediction", "heatmap")  # names in an .npz
_EXTENSION = re.compile(r"\.(npz|npy|png|jpe?g|tiff?|bmp|webp|gif)$", re.I)


class Predictions:
    """Index of a folder of maps.

    Args:
        folder: path or URI of the folder.

    Raises:
        MissingInput, UsageError: it is not there, cannot be read, or holds no map.
    """

    def __init__(self, folder: str) -> None:
        self.name = storage.display_name(folder)
        uri = storage.canonical(folder)
        self._by_name = defaultdict[str, dict[str, None]](dict)
        try:
            for ref in list_objects(uri, is_hidden):
                if _EXTENSION.search(ref.uri):
                    self._add(ref.uri, ref.uri[len(uri) + 1 :])
        except FetchError as error:
            raise MissingInput(f"--predictions: {error}") from error
        if not self._by_name:
            raise UsageError(f"--predictions {self.name} holds no map: png, npy or npz")

    def _add(self, uri: str, inside: str) -> None:
        """Index a file by its path and by its name, with and without the image's extension."""
        path = _EXTENSION.sub("", inside)
        stems = {path, _EXTENSION.sub("", path)}
        for stem in stems | {stem.rpartition("/")[2] for stem in stems}:
            self._by_name[stem][uri] = None

    def find(self, label: Label) -> str:
        """Return the URI of an image's map; raise `ValueError` without one, or with several."""
        whole = label.uri.partition("://")[2] + (f"/{label.member}" if label.member else "")
        parts = whole.strip("/").split("/")
        found: list[str] = []
        for start in range(len(parts)):
            path = "/".join(parts[start:])
            for name in (path, _EXTENSION.sub("", path)):
                found = list(self._by_name.get(name, ())) or found
                if len(found) == 1:
                    return found[0]
        shown = ", ".join(map(storage.display_name, found))
        raise ValueError(f"has the maps {shown}" if found else f"has no map in {self.name}")

    def check(self, labels: Sequence[Label], faults: Faults) -> None:
        """Raise `BadLabels` unless each image has one map."""
        for label in labels:
            with faults.of(label.row, label.name):
                self.find(label)
        faults.check()

    def load(self, uri: str) -> tuple[Floats, float | None]:
        """Return (H, W) probabilities, and the score of the image where the file has one.

        Raises:
            BadLabels: the file is no map.
        """
        values, score = read_map(uri)
        # A dark map and a mask look alike: the other maps tell which it is.
        is_mask = values.dtype.kind in "iu" and values.max() == 1 and self.are_masks
        try:
            return as_probabilities(values, is_mask), score
        except ValueError as error:
            raise _no_map(uri, error) from error

    @cached_property
    def are_masks(self) -> bool:
        """True if no whole number in any map exceeds 1. Reads maps until one does."""
        uris = {uri for uris in self._by_name.values() for uri in uris}
        return all(values.max(initial=0) <= 1 for values, _ in map(read_map, sorted(uris)))


def evaluate_predictions(predictions: Predictions, labels: Sequence[Label]) -> Iterator[Evaluation]:
    """Evaluate the map of each labelled image; an image that cannot be decoded has its error.

    Raises:
        BadLabels: a map cannot be read, or an image or its mask.
    """
    for label, opened in read_pictures(labels):
        if isinstance(opened, ImageError):
            yield Evaluation(label, opened)
            continue
        truth, image = opened
        probabilities, score = predictions.load(predictions.find(label))
        yield _evaluated(label, truth, fitted(probabilities, image.pixels.shape[:2]), score)


def read_map(uri: str) -> tuple[NDArray[Any], float | None]:
    """Return a map (H, W) as it is stored, and the score of the image where the file has one.

    Raises:
        BadLabels: the file is no map.
    """
    data = storage.read_bytes(uri)
    try:
        values, score = _parsed(uri.lower(), io.BytesIO(data))
        values = np.squeeze(values)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"it has the shape {values.shape} and not height and width")
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"its score {score:g} is no probability from 0 to 1")
    except Exception as error:  # broad, because readers of damaged files raise all kinds
        raise _no_map(uri, error) from error
    return values, score


def _no_map(uri: str, error: Exception) -> BadLabels:
    shown = storage.display_name(uri.removeprefix("file://"))
    return BadLabels(f"{shown} is no map: {one_line(error)[:200]}")


def _parsed(name: str, file: io.BytesIO) -> tuple[NDArray[Any], float | None]:
    if name.endswith(".npz"):
        with zipfile.ZipFile(file):  # a `.npy` of that name would be read as an array
            pass
        with np.load(file) as arrays:
            found = next((name for name in MAPS if name in arrays), None)
            if found is None:
                raise ValueError(f"it has none of the arrays {', '.join(MAPS)}")
            score = arrays["score"].item() if "score" in arrays else None
            return arrays[found], None if score is None else float(score)
    if name.endswith(".npy"):
        return np.load(file), None
    with PilImage.open(file) as picture:
        return _grey(picture), None


def _grey(picture: PilImage.Image) -> NDArray[Any]:
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise ValueError("it is a coloured picture: write the probabilities themselves, as grey")
    return colours[..., 0]


def as_probabilities(values: NDArray[Any], is_mask: bool = False) -> Floats:
    """Return (H, W) from 0 to 1: of whole numbers by their type, unless they are those of a mask.

    Raises:
        ValueError: the values are no probabilities.
    """
    top = 1.0
    if values.dtype.kind in "iu" and not is_mask:
        # Types of more bytes, as of NumPy's whole numbers, tell nothing of the range.
        top = {"B": 255.0, "H": 65535.0}.get(values.dtype.char, 0.0)
        top = top or (255.0 if values.max() <= 255 else 65535.0)
    scaled = values.astype(np.float32) / np.float32(top)
    if not ((scaled >= 0) & (scaled <= 1)).all():
        raise ValueError("its values are not probabilities from 0 to 1")
    return scaled


def fitted(probabilities: Floats, size: tuple[int, int]) -> Floats:
    """Return probabilities at (height, width), bilinearly interpolated where they had another."""
    if probabilities.shape == size:
        return probabilities
    picture = PilImage.fromarray(probabilities)
    return np.asarray(picture.resize(size[::-1], PilImage.Resampling.BILINEAR))


def _evaluated(
    label: Label, truth: Truth, probabilities: Floats, score: float | None
) -> Evaluation:
    logits = _logit(probabilities)
    score = float(probabilities.max()) if score is None else score
    found = probabilities > THRESHOLD
    score_raw = float(_logit(np.float32(score)))
    outcome = image_result(
        label,
        truth,
        logits,
        found,
        statistics=Statistics(((score_raw,),), histogram(logits), found.size / 1e6),
        score_raw=score_raw,
        score=score,
        verdict="manipulated" if score > THRESHOLD else "authentic",
        peak=float(probabilities.max()),
    )
    return Evaluation(label, outcome, found)


def _logit(probabilities: Any) -> Any:
    within = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log(within / (1 - within))
