"""The library: `from prompt_iml import Detector`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image as PilImage

from prompt_iml.engine.errors import ImageError, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.detect.finding import Finding
from prompt_iml.pipeline.detect.pictures import Picture, Result, pixels_of, results
from prompt_iml.pipeline.scan.scanner import RowMaker, RowSpec

MAX_PIXELS = 210_000_000
MAX_BYTES = 256 * 2**20


class Detector:
    """Finds manipulated regions in pictures, with the results of `prompt-iml scan`.

    Threads may share one; they take turns. Loading one takes about a second, so keep it.

    Args:
        model: name of a packaged model, or path of a model folder.
        engine: runtime that computes the network: auto, openvino, onnxruntime, torch or tensorrt.
        precision: of openvino: float32, which auto is, or bfloat16 (faster; some labels change).
        threads: CPU threads. With one, results are those of a scan to the last digit; more add
            the same numbers in another order.
        closer_look: further tiles for a picture above 12 megapixels; None: as its policy says.
        max_pixels: pictures with more pixels are refused before decoding, at 12 bytes a pixel.

    Raises:
        UsageError: the model or the engine is not there, or a number is out of range; the message
            says what to do.
    """

    def __init__(
        self,
        model: str | Path = "prompt-iml-micro",
        *,
        engine: str = "auto",
        precision: str = "auto",
        threads: int = 1,
        closer_look: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}: give 1 or more")
        opened = load_model(model).looking_closer(closer_look)
        self._spec = RowSpec(
            model=opened.reference,
            model_digest=opened.digest,
            engine=engine,
            precision=precision,
            closer_look=closer_look,
            threads=threads,
            max_pixels=max_pixels,
            max_object_bytes=MAX_BYTES,
            heatmap=False,
            image_timeout=0,  # nothing watches
        )
        self._maker = RowMaker(self._spec, depth=1)  # calls of detect_many take turns
        self._turn = threading.Lock()

    def detect(self, picture: Picture) -> Finding:
        """Return what is found in one picture.

        Args:
            picture: path or URI (`s3://`, `https://`), the bytes of a file, a picture of Pillow,
                or an array (H, W, 3) uint8 RGB. A JPEG tells more as a file, as bytes or just
                opened than as an array, which has lost its quantisation table.

        Raises:
            ImageError: the picture cannot be read or decoded; `code` says why.
            UsageError: it is no picture.
        """
        (found,) = self.detect_many([picture])
        if isinstance(found, ImageError):
            raise found
        return found

    def detect_many(self, pictures: Iterable[Picture]) -> Iterator[Finding | ImageError]:
        """Yield the finding of each picture, in order, or the error of one that cannot be read.

        Pictures are taken as results are, a few ahead, so that any number of them passes through
        constant memory. Raises `UsageError` for what is no picture.
        """
        if isinstance(pictures, str | bytes | os.PathLike | PilImage.Image):
            raise UsageError("detect_many takes several pictures: give a list, or use detect")
        return self._findings(results(self._maker, pictures))

    def _findings(self, found: Iterator[Result]) -> Iterator[Finding | ImageError]:
        while True:
            with self._turn:  # not while the caller has the result
                each = next(found, None)
            if each is None:
                return
            yield each.error or finding(each, self._spec)


def finding(found: Result, spec: RowSpec) -> Finding:
    """Return the finding of a picture that was scanned."""
    return Finding(found.row, partial(pixels_of, found.picture, spec, found.row.get("sha256")))
