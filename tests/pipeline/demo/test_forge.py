"""The demo's photographs: real, forged where the masks say, and with the same histories."""

from __future__ import annotations

import csv
import hashlib
import io
import socket
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from scipy import ndimage

from prompt_iml.pipeline.demo import photographs as forge
from prompt_iml.pipeline.demo.photographs import (
    Ellipse,
    Forged,
    History,
    Outline,
    forge_set,
    write_shards,
)


@pytest.fixture(scope="module")
def images() -> list[Forged]:
    return list(forge_set(seed=0))


@pytest.fixture(scope="module")
def scene() -> forge.Scene:
    history = History(90, "png", 90, "4:2:0")
    return forge._scene("coffee.png", history, np.random.default_rng(5))


def test_half_of_the_set_is_forged(images: list[Forged]) -> None:
    kinds = Counter(image.kind for image in images)
    assert kinds.pop("authentic") == 12
    assert kinds == Counter(forge.FORGERIES)
    assert len({image.name for image in images}) == 24


def test_masks_lie_in_the_frame_of_the_file(images: list[Forged]) -> None:
    for image in images:
        width, height = Image.open(io.BytesIO(image.data)).size
        assert min(width, height) >= 200
        assert (image.mask is None) == (image.kind == "authentic")
        if image.mask is not None:
            assert image.mask.shape == (height, width)
            assert 0.01 < image.mask.mean() < 0.35


def test_forged_and_authentic_files_have_the_same_histories(images: list[Forged]) -> None:
    """Neither the format nor the tables may tell them apart."""

    def last_save(image: Forged) -> str:
        with Image.open(io.BytesIO(image.data)) as file:
            if not isinstance(file, JpegImagePlugin.JpegImageFile):
                return str(file.format)
            return f"{file.quantization} {JpegImagePlugin.get_sampling(file)}"

    forged = Counter(last_save(image) for image in images if image.mask is not None)
    authentic = Counter(last_save(image) for image in images if image.mask is None)
    assert forged == authentic
    assert len(forged) > 6


def test_the_same_seed_gives_the_same_bytes() -> None:
    once, again = (list(forge_set(3, ["splice", "removal"])) for _ in range(2))
    assert [image.data for image in once] == [image.data for image in again]
    other = list(forge_set(4, ["splice", "removal"]))
    assert {image.data for image in once}.isdisjoint(image.data for image in other)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "create_connection", None)
    assert len(list(forge_set(0, ["splice"]))) == 2


@pytest.mark.parametrize("kind", ["_copy_move", "_remove", "_retouch"])
def test_pixels_change_under_the_mask_and_nowhere_else(kind: str, scene: forge.Scene) -> None:
    pixels, mask = getattr(forge, kind)(scene, np.random.default_rng(1))
    changed = (pixels != scene.pixels).any(axis=2)
    assert not changed[~ndimage.binary_dilation(mask, iterations=12)].any()
    assert changed[mask].mean() > 0.9


def test_a_splice_shows_its_donor(scene: forge.Scene) -> None:
    donor = forge.Scene(np.full((300, 300, 3), (0, 0, 255), np.uint8), (Ellipse(150, 150, 60, 40),))
    pixels, mask = forge._splice(scene, donor, np.random.default_rng(2))
    blue = pixels[mask][:, 2].astype(int) - scene.pixels[mask][:, 2]
    assert np.median(blue) > 60
    assert np.array_equal(pixels[:5], scene.pixels[:5])


def test_a_carried_outline_keeps_its_pixels(scene: forge.Scene) -> None:
    outline = Outline(Ellipse(200, 150, 40, 30), np.zeros(4), np.zeros(4))
    height, width = scene.pixels.shape[:2]
    patch, alpha = forge._carry(
        scene.pixels, outline, Ellipse(211, 143, 40, 30), 0.0, (width, height)
    )
    moved = np.roll(scene.pixels, (-7, 11), (0, 1))
    assert np.array_equal(patch[alpha == 1], moved[alpha == 1])


def test_an_outline_without_waves_is_an_ellipse() -> None:
    outline = Outline(Ellipse(100, 80, 60, 30), np.zeros(4), np.zeros(4))
    x, y = np.meshgrid(np.arange(200) + 0.5, np.arange(160) + 0.5)
    alpha = outline.alpha(x, y, 1.0)
    assert (alpha >= 0.5).sum() == pytest.approx(np.pi * 60 * 30, rel=0.01)
    assert alpha[80, 45] == 1
    assert alpha[80, 30] == 0


def test_a_membrane_continues_a_ramp() -> None:
    y, x = np.mgrid[:30, :40].astype(float)
    ramp = (2 * x - 3 * y)[..., None].repeat(3, axis=2)
    hole = np.hypot(x - 20, y - 15) < 9
    torn = np.where(hole[..., None], 99.0, ramp)
    assert np.allclose(forge._membrane(torn, hole), ramp[hole])


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def test_shards_hold_images_only_and_the_truth_lies_beside(
    images: list[Forged], tmp_path: Path
) -> None:
    truth = write_shards(images, tmp_path, shards=3)
    shards = {path.name: members(path) for path in tmp_path.glob("shards/*")}
    rows = list(csv.DictReader(truth.read_text().splitlines()))
    assert sum(map(len, shards.values())) == len(rows) == 24
    for row, image in zip(rows, images, strict=True):
        shard, _, member = row["image"].removeprefix("shards/").partition("#")
        assert shards[shard][member] == image.data
        assert row["sha256"] == hashlib.sha256(image.data).hexdigest()
        assert row["kind"] == image.kind
        if image.mask is not None:
            with Image.open(tmp_path / row["mask"]) as mask:
                assert np.array_equal(np.asarray(mask), image.mask)
