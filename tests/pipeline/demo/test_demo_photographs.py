"""Images of the demo: real photographs with exact masks and equal histories."""

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

from prompt_iml.pipeline.cli import USAGE, main
from prompt_iml.pipeline.demo import photographs
from prompt_iml.pipeline.demo.photographs import (
    MANIPULATIONS,
    DemoImage,
    generate_set,
    write_shards,
)
from prompt_iml.pipeline.forgery.generator import LEAST_MANIPULATED


@pytest.fixture(scope="module")
def images() -> list[DemoImage]:
    return list(generate_set(seed=0))


def test_half_of_the_set_is_manipulated(images: list[DemoImage]) -> None:
    kinds = Counter(image.kind for image in images)
    assert kinds.pop("authentic") == 12
    assert kinds == Counter(MANIPULATIONS)
    assert len({image.name for image in images}) == 24


def test_masks_lie_in_the_frame_of_the_file(images: list[DemoImage]) -> None:
    for image in images:
        width, height = Image.open(io.BytesIO(image.data)).size
        assert min(width, height) >= 200
        assert (image.mask is None) == (image.kind == "authentic")
        if image.mask is not None:
            assert image.mask.shape == (height, width)
            assert LEAST_MANIPULATED <= image.mask.mean() < 0.35


def test_manipulated_and_authentic_files_have_the_same_histories(images: list[DemoImage]) -> None:
    """Neither the format nor the tables may distinguish them."""

    def last_save(image: DemoImage) -> str:
        with Image.open(io.BytesIO(image.data)) as file:
            if not isinstance(file, JpegImagePlugin.JpegImageFile):
                return str(file.format)
            return f"{file.quantization} {JpegImagePlugin.get_sampling(file)}"

    forged = Counter(last_save(image) for image in images if image.mask is not None)
    authentic = Counter(last_save(image) for image in images if image.mask is None)
    assert forged == authentic
    assert len(forged) > 6


def test_the_same_seed_gives_the_same_bytes() -> None:
    once, again = (list(generate_set(3, ["splice", "removal"])) for _ in range(2))
    assert [image.data for image in once] == [image.data for image in again]
    other = list(generate_set(4, ["splice", "removal"]))
    assert {image.data for image in once}.isdisjoint(image.data for image in other)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "create_connection", None)
    assert len(list(generate_set(0, ["splice"]))) == 2


def test_without_scikit_image_one_line_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda _: None)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'prompt-iml[demo]'")
    assert not list(tmp_path.iterdir())


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


def test_shards_hold_images_only_and_the_truth_lies_beside(
    images: list[DemoImage], tmp_path: Path
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
