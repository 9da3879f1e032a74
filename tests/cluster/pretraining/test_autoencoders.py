"""Autoencoders: shapes, files, training, and one line about a wrong file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from prompt_iml.cluster.pretraining import autoencoders as command
from prompt_iml.cluster.pretraining.autoencoder import (
    HELD_BACK,
    Autoencoder,
    Sizes,
    read_autoencoders,
)
from prompt_iml.cluster.pretraining.autoencoders import VARIANTS, psnr, train, train_all
from prompt_iml.engine.errors import UsageError
from tests.helpers.autoencoders import write_autoencoders
from tests.helpers.photos import write_photos

SMALL = Sizes(("nearest", "transposed", "shuffle"), 8, 4)
PICTURE = skimage.data.astronaut()[:101, :67]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_autoencoders(tmp_path / "autoencoders")


@pytest.mark.parametrize("shape", [(101, 67), (8, 8), (3, 1)])
def test_any_size_comes_back_as_it_was(shape: tuple[int, int]) -> None:
    """Regions have every size, and few are multiples of the factor."""
    pixels = PICTURE[: shape[0], : shape[1]]
    passed = Autoencoder(SMALL).pass_through(pixels, 0.2, np.random.default_rng(0))
    assert passed.shape == pixels.shape
    assert passed.dtype == np.uint8


def test_noise_of_the_latents_changes_pixels_and_depends_on_the_seed() -> None:
    """A denoiser leaves noise; without any, a region would be an exact reconstruction."""
    autoencoder = Autoencoder(SMALL)
    passed = [
        autoencoder.pass_through(PICTURE, noise, np.random.default_rng(seed)).tobytes()
        for noise, seed in ((0, 1), (0, 2), (0.3, 1), (0.3, 1), (0.3, 2))
    ]
    assert passed[0] == passed[1]
    assert passed[2] == passed[3]
    assert len(set(passed)) == 3


def test_a_saved_autoencoder_is_the_same(tmp_path: Path) -> None:
    """Training and validation read what another process saved."""
    autoencoder, path = Autoencoder(SMALL), tmp_path / "one.safetensors"
    autoencoder.save(path)
    loaded = Autoencoder.load(path)
    assert loaded.sizes == SMALL
    rngs = np.random.default_rng(0), np.random.default_rng(0)
    assert np.array_equal(*(a.pass_through(PICTURE, 0.1, rng) for a, rng in
                            zip((autoencoder, loaded), rngs, strict=True)))  # fmt: skip
    assert [each.name for each in tmp_path.iterdir()] == ["one.safetensors"]


def test_those_held_back_are_read_apart(folder: Path) -> None:
    """An autoencoder that trains the detector may not evaluate it."""
    (training,), (held_back,) = (read_autoencoders(str(folder), side) for side in (False, True))
    assert training.sizes.factor == 4
    assert held_back.sizes.factor == 8
    assert read_autoencoders(None) == []


@pytest.mark.parametrize("content", [b"", b"no weights", "a checkpoint"])
def test_a_wrong_file_gives_one_line(folder: Path, content: bytes | str) -> None:
    """The message names the file and the command that makes a right one."""
    path = folder / "wrong.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(1)}, path)
    with pytest.raises(
        UsageError, match=r"^\S+wrong.safetensors is no autoencoder: .+; make "
    ) as e:
        read_autoencoders(str(folder))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("held_back", [True, False])
def test_a_folder_without_autoencoders_gives_one_line(tmp_path: Path, held_back: bool) -> None:
    """Training without generated regions, though they were asked for, would go unnoticed."""
    with pytest.raises(UsageError, match=r"^--autoencoders \S+ has no \S+: make some with"):
        read_autoencoders(str(tmp_path), held_back)


def test_training_makes_it_better() -> None:
    crop = np.ascontiguousarray(skimage.data.astronaut()[None, :256, :256])
    sizes, stream = Sizes(("transposed", "shuffle"), 16, 4), itertools.repeat(crop)
    short, long = (train(sizes, stream, steps, seed=0) for steps in (1, 25))
    assert psnr(long, crop) > psnr(short, crop) + 3


def test_the_command_trains_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed, and runs again."""
    names = ("one", f"{HELD_BACK}two")
    monkeypatch.setattr(command, "VARIANTS", dict.fromkeys(names, SMALL))
    monkeypatch.setattr(command, "EVALUATED", 1)
    photos, output = write_photos(tmp_path / "photos"), tmp_path / "output"
    train_all(photos, output, 1)
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()] == list(names)
    (output / "one.safetensors").unlink()
    train_all(photos, output, 1)
    assert capsys.readouterr().out.startswith("one ")
    assert [len(read_autoencoders(str(output), side)) for side in (False, True)] == [1, 1]


def test_no_variant_is_on_both_sides() -> None:
    """Held-back autoencoders have other sizes, or another order of up-samplings."""
    training = {sizes for name, sizes in VARIANTS.items() if not name.startswith(HELD_BACK)}
    assert len(training) == 8
    assert len(set(VARIANTS.values())) == len(VARIANTS) == 11
