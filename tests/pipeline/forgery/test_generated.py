"""Generated regions and regenerated pictures: what changes, and what the mask says of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders
from prompt_iml.pipeline.forgery import generator as module
from prompt_iml.pipeline.forgery.generated import Denoiser, generated, regenerate
from prompt_iml.pipeline.forgery.generator import GENERATED_SHARE, KINDS, Generator
from prompt_iml.pipeline.forgery.history import FRAME
from prompt_iml.pipeline.forgery.photos import Scene
from tests.helpers.autoencoders import write_autoencoders

OUTLINE = np.array([(120.0, 100.0), (200.0, 100.0), (180.0, 190.0), (110.0, 180.0)])
TABLES = [((1,) * 64, (2,) * 64)]
PASS_ALL = {"authentic": 1.0, "generated": 1.0}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    autoencoders = read_autoencoders(str(write_autoencoders(tmp_path_factory.mktemp("a") / "b")))
    scenes = [Scene(skimage.data.astronaut(), (OUTLINE,)), Scene(skimage.data.coffee(), ())]
    return Generator(scenes, TABLES, autoencoders=autoencoders)


@pytest.fixture
def view(generator: Generator) -> Scene:
    return Scene(generator.scenes[0].pixels[:FRAME, :FRAME], (OUTLINE,))


def test_around_a_generated_region_every_pixel_is_the_original(
    generator: Generator, view: Scene
) -> None:
    """Inpainting tools paste the region back, so that the surroundings are the camera's own."""
    for seed in range(10):
        pixels, alpha = generator.generate("generated", view, np.random.default_rng(seed))
        changed = (pixels != view.pixels).any(2)
        assert not changed[alpha == 0].any()
        assert 0 < (alpha > 0).mean() < 0.6


def test_the_mask_is_all_that_changed_but_for_the_seam(generator: Generator, view: Scene) -> None:
    """A mask that leaves changed pixels out would teach that generated content is authentic."""
    for seed in range(10):
        pixels, alpha = generator.generate("generated", view, np.random.default_rng(seed))
        changed, mask = (pixels != view.pixels).any(2), alpha >= 0.5
        assert changed[mask].mean() > 0.5
        assert not changed[~ndimage.binary_dilation(mask, iterations=20)].any()


def test_content_inside_the_region_is_new(view: Scene) -> None:
    """A region holds the edit's content, whatever passed it through."""
    black, alpha = view.pixels.copy(), np.zeros((FRAME, FRAME))
    black[100:160, 100:160], alpha[100:160, 100:160] = 0, 1
    content = black, alpha
    pixels, region = generated(view.pixels, content, [Denoiser()], np.random.default_rng(0))
    assert pixels[110:150, 110:150].mean() < 10
    assert (region[alpha > 0] > 0.5).all()


def test_a_regenerated_authentic_picture_has_an_empty_mask(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever regenerates a whole picture has manipulated no part of it."""
    monkeypatch.setattr(generator, "kinds", {"authentic": 1.0})
    plain = [generator.example(1, index) for index in range(4)]
    monkeypatch.setattr(module, "REGENERATED", PASS_ALL)
    for index, before in enumerate(plain):
        after = generator.example(1, index)
        assert not after.mask.any()
        assert (after.pixels != before.pixels).mean() > 0.9


def test_only_new_content_of_a_regenerated_picture_is_in_the_mask(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its surroundings passed through the autoencoder too, but nobody edited them."""
    monkeypatch.setattr(generator, "kinds", {"generated": 1.0})
    monkeypatch.setattr(module, "REGENERATED", PASS_ALL)
    shares = [generator.example(1, index).mask.mean() for index in range(8)]
    assert 0 < np.mean(shares) < 0.5
    assert max(shares) < 0.7


def test_the_same_seed_gives_the_same_pixels(generator: Generator, view: Scene) -> None:
    """Resumed runs and validation sets rely on it."""
    for sources in (generator.autoencoders, [Denoiser()]):
        first, again, other = (
            regenerate(view.pixels, sources, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert first.shape == view.pixels.shape
        assert sources is generator.autoencoders or not np.array_equal(first, other)


def test_autoencoders_add_generated_regions_and_leave_half_authentic(generator: Generator) -> None:
    """Equal shares of authentic and manipulated pictures keep the score's prior at one half."""
    assert sum(generator.kinds.values()) == pytest.approx(1)
    assert generator.kinds["authentic"] == KINDS["authentic"]
    sampled = Counter(generator.sample(np.random.default_rng((2, i)))[2] for i in range(600))
    assert abs(sampled["generated"] / 600 - GENERATED_SHARE) < 0.035  # 3 sigma
    assert "generated" not in Generator(generator.scenes, TABLES).kinds


def test_a_region_that_left_the_view_changes_nothing(view: Scene) -> None:
    """An edit may miss the view; that is no error."""
    content = view.pixels, np.zeros((FRAME, FRAME))
    pixels, region = generated(view.pixels, content, [Denoiser()], np.random.default_rng(0))
    assert np.array_equal(pixels, view.pixels)
    assert not region.any()
