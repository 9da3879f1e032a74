"""Plain loops to hold a scan against: as many processes, nothing but the work itself."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.runtimes.open import open_engine


def decode_shards(shards: list[Path]) -> int:
    """Decode every member; returns how many."""
    images = 0
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                body = tar.extractfile(member)
                assert body
                np.asarray(PilImage.open(io.BytesIO(body.read())).convert("RGB"))
                images += 1
    return images


def run_engine(shards: list[Path]) -> tuple[int, float]:
    """The default engine on every member, one thread; images and seconds, the engine's alone."""
    model = load_model("prompt-iml-micro")
    engine = open_engine(model, "auto", threads=1)
    table = np.ones((1, 64), np.float32)
    seconds, images = 0.0, 0
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                body = tar.extractfile(member)
                assert body
                pixels = np.asarray(PilImage.open(io.BytesIO(body.read())).convert("RGB"))
                started = time.perf_counter()
                engine.run(whole_pictures(pixels[None], table))
                seconds += time.perf_counter() - started
                images += 1
    return images, seconds
