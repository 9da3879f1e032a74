"""What another JPEG decoder does to pixels and findings: `pip install simplejpeg`, then

    python -m tests.bench.decoders MANIFEST.csv ...

evaluates each set three times: by Pillow; by libjpeg-turbo's fast inverse DCT and plain upsampling
of chroma, as decoders of GPUs may do it; and by nvImageCodec, on a GPU if there is one, else on its
CPU backend. Prints measures, and how many of the images were decoded so and how far their pixels
are from Pillow's, in levels of 255.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.evaluation import evaluate_set, judged
from prompt_iml.pipeline.images.decode import DecodeLimits, JpegDecoder, decode
from prompt_iml.pipeline.images.nvimagecodec import NAME, NvImageCodec, open_decoder

TOLD = ("f1", "best_f1", "pixel_auc", "image_auc", "true_positive_rate", "false_positive_rate")


class Compared:
    """A decoder beside Pillow."""

    def __init__(self, jpeg: JpegDecoder) -> None:
        self._jpeg, self._largest, self._means = jpeg, 0, list[float]()

    def __call__(self, payload: bytes) -> Any:
        """As the decoder does."""
        pixels = self._jpeg(payload)
        assert pixels is not None
        exact = decode(payload, DecodeLimits()).image.pixels
        difference = np.abs(pixels.astype(np.int16) - exact)
        self._largest = max(self._largest, int(difference.max()))
        self._means.append(float(difference.mean()))
        return pixels

    def __str__(self) -> str:
        mean = np.mean(self._means) if self._means else 0.0
        return f"{len(self._means)} images, at most {self._largest}, on average {mean:.3f}"


def decoders() -> dict[str, JpegDecoder | None]:
    """By name; None is Pillow."""
    fast = partial(simplejpeg.decode_jpeg, colorspace="RGB", fastdct=True, fastupsample=True)
    try:
        return {"pillow": None, "fast": fast, f"{NAME}, GPU": open_decoder(NAME)}
    except MissingDependency:
        return {"pillow": None, "fast": fast, f"{NAME}, CPU": NvImageCodec(gpu=False)}


def main() -> None:
    """Command line."""
    model = load_model("prompt-iml-micro")
    engine = open_engine(model)
    for manifest in map(Path, sys.argv[1:]):
        for name, jpeg in decoders().items():
            compared = Compared(jpeg) if jpeg else None
            judged.decode = partial(decode, jpeg=compared)  # type: ignore[attr-defined]
            result = evaluate_set(engine, model, model.policy, manifest).to_dict()
            told = "  ".join(f"{measure} {result[measure]:.3f}" for measure in TOLD)
            print(f"{result['set']:8} {name:18} {told}  {compared or ''}", flush=True)


if __name__ == "__main__":
    main()
