"""Generator of forgeries: plausible, reproducible, without leaks of the label."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from prompt_iml.cluster.training.examples import augmented
from prompt_iml.engine.detection.context import Context, dct_histogram, luma_of
from prompt_iml.engine.network.beyond.jpeg_view import JpegView
from prompt_iml.engine.network.config import JpegViewConfig
from prompt_iml.pipeline.evaluation.comparison import auc
from prompt_iml.pipeline.forgery.edits import splice
from prompt_iml.pipeline.forgery.generator import KINDS, Example, Generator, contact_sheet
from prompt_iml.pipeline.forgery.history import (
    FILTERS,
    FRAME,
    SIDE,
    SMALLEST,
    History,
    Pixels,
    PriorHistory,
    Save,
    encode,
    read_tables,
    resave,
    sample_history,
)
from prompt_iml.pipeline.forgery.pages import page
from prompt_iml.pipeline.forgery.photos import Photo, Scene, list_photos, read_polygons, split
from prompt_iml.pipeline.forgery.shapes import fits
from prompt_iml.pipeline.forgery.software import PRESETS

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"
GREY = np.full((16, 16, 3), 128, np.uint8)
MANIPULATIONS = [kind for kind in KINDS if kind != "authentic"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """Return a generator over scikit-image's photographs, saved as by cameras, one outlined."""
    folder = tmp_path_factory.mktemp("photos")
    outline = tuple(read_polygons(_write(folder / "cat.txt", "15 .2 .2 .6 .15 .7 .6 .3 .7\n")))
    photos = []
    for index, name in enumerate(("astronaut", "coffee", "chelsea", "rocket")):
        path = folder / f"{name}.jpg"
        Image.fromarray(getattr(skimage.data, name)()).save(path, quality=80 + 5 * index)
        photos.append(Photo(path, name, outline if name in ("astronaut", "chelsea") else ()))
    return Generator.read(photos)


@pytest.fixture(scope="module")
def examples(generator: Generator) -> list[Example]:
    return [generator.example(5, index) for index in range(240)]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_example_depends_on_its_seed_alone(generator: Generator) -> None:
    first, again, other = generator.example(1, 2), generator.example(1, 2), generator.example(1, 3)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.pixels, other.pixels)


def test_what_a_seed_samples_is_the_same_in_every_version() -> None:
    """Validation sets and resumed runs rely on it; pixels also depend on libraries."""
    outline = np.array([(0.0, 0.0), (9.0, 0.0), (9.0, 9.0)])
    scenes = [Scene(GREY, (outline,)), Scene(GREY, ())]
    generator = Generator(scenes, [((1,) * 64, (2,) * 64)])
    samples = [generator.sample(np.random.default_rng((3, index))) for index in range(200)]
    shown = [
        (len(scene.polygons), kind, h.on_grid, h.donor_shares_it, h.shape, h.corner, h.has_table)
        for scene, h, kind in samples
    ]
    saves = [
        [save and (save.quality, save.subsampling, save.tables is None) for save in each]
        for each in ((h.first, h.edited, h.last) for _, h, _ in samples)
    ]
    digest = hashlib.sha256(repr((shown, saves)).encode()).hexdigest()
    assert digest[:16] == "949a7c72d0fa21fa"


def test_half_are_authentic_and_every_kind_comes(examples: list[Example]) -> None:
    kinds = [example.kind for example in examples]
    assert 0.4 < kinds.count("authentic") / len(kinds) < 0.6
    assert set(kinds) == set(KINDS)


def test_masks_are_empty_exactly_where_nothing_was_forged(examples: list[Example]) -> None:
    for example in examples:
        assert example.pixels.shape == (SIDE, SIDE, 3)
        share = example.mask.mean()
        assert share == 0 if example.kind == "authentic" else 0.003 < share < 0.5


@pytest.mark.parametrize("kind", MANIPULATIONS)
def test_a_forgery_changes_its_mask_and_nothing_else(generator: Generator, kind: str) -> None:
    pixels = generator.scenes[0].pixels[:FRAME, :FRAME]
    forged, alpha = generator.generate(kind, Scene(pixels, ()), np.random.default_rng(3))
    changed = (forged != pixels).any(2)
    assert not changed[alpha == 0].any()
    assert changed[alpha >= 0.5].mean() > 0.5


def test_a_picture_of_any_shape_changes_in_its_mask_and_nowhere_else(generator: Generator) -> None:
    picture = generator.scenes[1]
    for index, kind in enumerate(MANIPULATIONS):
        pixels, mask = generator.generate_within(kind, picture, np.random.default_rng(index))
        assert mask.shape == picture.pixels.shape[:2]
        assert 0.003 <= mask.mean() < 0.5
        changed = (pixels != picture.pixels).any(2)
        assert changed[mask].mean() > 0.5
        assert not changed[~ndimage.binary_dilation(mask, iterations=10)].any()


def test_a_splice_shows_its_donor(generator: Generator) -> None:
    blue = np.full((300, 300, 3), (0, 0, 255), np.uint8)
    square = np.array([(90.0, 90.0), (210.0, 90.0), (210.0, 210.0), (90.0, 210.0)])
    host = Scene(generator.scenes[0].pixels[:FRAME, :FRAME], ())
    pixels, alpha = splice(host, Scene(blue, (square,)), 1.0, np.random.default_rng(0))
    assert np.median(pixels[alpha == 1][:, 2].astype(int) - pixels[alpha == 1][:, 0]) > 60


def test_a_donor_of_an_album_has_the_hosts_history(generator: Generator) -> None:
    save = Save(60, "4:2:0")
    for seed in range(8):
        donor, unsaved = (
            generator._matching_donor(PriorHistory(0.0, prior), FRAME, np.random.default_rng(seed))
            for prior in (save, None)
        )
        assert donor
        assert unsaved
        (outline,) = donor.polygons
        assert fits(outline - outline.min(0), FRAME)
        margins = donor.pixels.shape[1::-1] - np.ptp(outline, axis=0)
        assert (np.abs(margins - 32) < 4).all()  # scaled with its outline
        assert np.array_equal(donor.pixels, resave(unsaved.pixels, save))
    large = PriorHistory(1.0, None)
    assert generator._matching_donor(large, 64, np.random.default_rng(0)) is None


def test_format_table_and_size_do_not_give_the_label_away(generator: Generator) -> None:
    """The visible parts of a history do not predict the label, which is sampled later."""
    sampled = [generator.sample(np.random.default_rng((7, index))) for index in range(4000)]
    forged = np.array([kind != "authentic" for _, _, kind in sampled])
    seen = np.array([_shown(history) for _, history, _ in sampled])
    assert 0.45 < _fitted_auc(seen, forged) < 0.55  # 4 sigma of 2000
    assert _fitted_auc(seen, np.array([history.has_table for _, history, _ in sampled])) > 0.95


def test_histories_have_the_saves_of_cameras_programs_and_platforms() -> None:
    camera = ((3,) * 64, (5,) * 64)
    histories = [sample_history(np.random.default_rng((8, i)), [camera]) for i in range(400)]
    last = [history.last for history in histories if history.last]
    tables = {save.tables for save in last}
    assert {preset.tables for preset in PRESETS} <= tables
    assert {camera, None} <= tables
    assert any(save.progressive for save in last)
    assert {history.degradation.resampling for history in histories} == set(FILTERS)
    edited = [history.edited for history in histories if history.edited]
    assert all(save.tables != camera for save in edited)  # an editor is no camera


def test_a_file_has_the_tables_of_its_program_and_is_as_progressive(generator: Generator) -> None:
    preset = PRESETS[0]
    for progressive in (False, True):
        save = Save(0, preset.subsampling, preset.tables, progressive)
        data = encode(generator.scenes[0].pixels, save)
        assert read_tables(data) == preset.tables
        with Image.open(io.BytesIO(data)) as image:
            assert ("progressive" in image.info) == progressive


def _shown(history: History) -> list[float]:
    """Return features of table, format and size."""
    table = read_tables(encode(GREY, history.last))[0] if history.last else (0,) * 64
    shown = table if history.has_table else (1,) * 64
    return [*np.log2(np.add(shown, 1)), history.last is None, *history.shape]


def _fitted_auc(features: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the AUC on one half of a ridge classifier that is fitted on the other."""
    design = np.column_stack([features - features.mean(0), np.ones(len(features))])
    fit, test = design[::2], design[1::2]
    gram = fit.T @ fit + np.eye(design.shape[1])
    return auc(test @ np.linalg.solve(gram, fit.T @ truth[::2]), truth[1::2])


def test_a_table_is_that_of_the_pixels_and_half_have_none(examples: list[Example]) -> None:
    view = JpegView(JpegViewConfig(), 8)
    tabled = [example for example in examples if example.qtable.max() > 1]
    assert 0.4 < len(tabled) / len(examples) < 0.65
    coarse = [example for example in tabled if example.qtable.min() >= 6]
    assert coarse
    for example in coarse:
        image = torch.from_numpy(example.pixels.copy()).permute(2, 0, 1)[None].float()
        found = view.coefficients(image, torch.from_numpy(example.qtable)[None])
        assert (found - found.round()).abs().mean() < 0.1


def test_the_contact_sheet_shows_examples_and_where_they_are_forged(generator: Generator) -> None:
    sheet = np.asarray(contact_sheet(generator, rows=2, columns=2))
    assert sheet.shape == (2 * SIDE, 4 * SIDE, 3)
    plain, marked = sheet[:SIDE, :SIDE], sheet[:SIDE, SIDE : 2 * SIDE]
    example = generator.example(0, 0)
    assert np.array_equal(plain, example.pixels)
    changed = (plain != marked).any(2)[20:]  # below the caption
    assert changed.any() == example.mask[20:].any()


def test_turning_turns_pixels_mask_table_and_context_together(generator: Generator) -> None:
    pixels = generator.scenes[0].pixels[:SIDE, :SIDE]
    mask, table = pixels[..., 0] > 100, np.arange(1, 65, dtype=np.float32)
    places = mask[::8, ::8].astype(np.float32)[None]
    example = Example(
        pixels, table, mask, "splice", Context(dct_histogram(luma_of(pixels), table), places)
    )
    for seed in range(8):
        part = augmented(example, np.random.default_rng(seed))
        flips = np.random.default_rng(seed).random(3) < 0.5
        assert np.array_equal(part.mask, part.pixels[..., 0] > 100)
        assert flips[2] != np.array_equal(part.qtable, table)
        histogram = dct_histogram(luma_of(np.ascontiguousarray(part.pixels)), part.qtable)
        np.testing.assert_allclose(part.context.histogram, histogram, atol=0.02)
        rows, columns = (slice(7 if flip else 0, None, 8) for flip in _turned(flips))
        assert np.array_equal(part.context.matches[0], part.mask[rows, columns])


def _turned(flips: NDArray[np.bool_]) -> tuple[bool, bool]:
    """Return whether rows and columns of a turned picture count from the far end."""
    across, down, transposed = flips.tolist()
    return (across, down) if transposed else (down, across)


def test_some_are_small_and_mirrored(examples: list[Example]) -> None:
    small = [
        one for one in examples if _mirrored(one.pixels) or _mirrored(one.pixels.swapaxes(0, 1))
    ]
    assert 0.06 < len(small) / len(examples) < 0.26
    assert any(one.mask.any() for one in small)


def test_a_page_of_photographs_is_authentic(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [scene.pixels for scene in generator.scenes]
    pages = [page(photos, FRAME, generator.tables, np.random.default_rng(i)) for i in range(12)]
    assert {shown.shape for shown in pages} == {(FRAME, FRAME, 3)}
    flat = [(np.diff(shown.astype(int), axis=1) == 0).all(2).mean() for shown in pages]
    assert np.mean(flat) > 0.1  # paper, bars and borders, of which photographs have little
    monkeypatch.setattr("prompt_iml.pipeline.forgery.generator.PAGE_SHARE", 1.0)
    examples = [generator.example(6, index) for index in range(40)]
    for example in examples:
        assert example.mask.any() == (example.kind != "authentic")
    assert 0.3 < np.mean([example.kind == "authentic" for example in examples]) < 0.7


def _mirrored(pixels: Pixels) -> bool:
    """Return whether an image is mirrored across an edge of the grid from `SMALLEST` on."""
    for width in range(SMALLEST, SIDE, 8):
        beyond = SIDE - width
        if np.array_equal(pixels[:, width:], pixels[:, width - beyond : width][:, ::-1]):
            return True
    return False


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs ../shared/data/photos")
def test_no_camera_and_no_photograph_is_on_both_sides() -> None:
    train, held_back = split(list_photos(PHOTOS))
    assert not {photo.source for photo in train} & {photo.source for photo in held_back}
    assert 0.1 < len(held_back) / (len(train) + len(held_back)) < 0.2
    assert any(photo.polygons for photo in held_back)
