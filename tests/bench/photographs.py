"""Tar shards of 512x512 JPEGs, cut from the photographs that the demo uses."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PilImage
from skimage import data as photographs

SIDE = 512


def jpegs(count: int, seed: int = 0) -> Iterator[bytes]:
    """Distinct crops of real photographs, saved at quality 75 to 95."""
    rng = np.random.default_rng(seed)
    sources = [photographs.astronaut(), photographs.rocket(), photographs.retina()]
    scaled = [PilImage.fromarray(s).resize((s.shape[1] * 5 // 4,) * 2) for s in sources]
    for number in range(count):
        source = scaled[number % len(scaled)]
        left, top = (int(rng.integers(side - SIDE + 1)) for side in source.size)
        file = io.BytesIO()
        crop = source.crop((left, top, left + SIDE, top + SIDE))
        crop.save(file, "JPEG", quality=int(rng.integers(75, 96)))
        yield file.getvalue()


def write_shards(folder: Path, images: int, shards: int, distinct: int = 60) -> list[Path]:
    """`images` members over `shards` tars; beyond `distinct` pictures they repeat."""
    folder.mkdir(parents=True)
    pictures = list(jpegs(min(images, distinct)))
    paths = [folder / f"{shard:04d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for number in range(shard, images, shards):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                picture = pictures[number % len(pictures)]
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
    return paths
