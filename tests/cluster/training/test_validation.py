"""Fixed validation sets: held-back photographs, twins, and no leak of the label."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from prompt_iml.cluster.pretraining.autoencoder import read_autoencoders
from prompt_iml.cluster.training.validation import (
    KINDS,
    LONG,
    PASSED,
    SHORT,
    TREATMENTS,
    WINDOW,
    SetImage,
    edited_images,
    full_size_pairs,
    pairs,
    sample_twin_history,
    write_set,
    write_sets,
)
from prompt_iml.pipeline.evaluation.comparison import auc, read_truth
from prompt_iml.pipeline.forgery.generator import Generator
from prompt_iml.pipeline.forgery.history import read_tables
from prompt_iml.pipeline.forgery.photos import Photo, list_photos, load_pixels, split
from prompt_iml.pipeline.truth import read_images, read_labels
from tests.helpers.autoencoders import write_autoencoders

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"
SQUARE = np.array([(0.3, 0.3), (0.7, 0.3), (0.6, 0.7), (0.3, 0.6)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    """Photographs of scikit-image, saved as by cameras; two have an outline, one is too wide."""
    folder = tmp_path_factory.mktemp("photos")
    photos = []
    for index, name in enumerate(("astronaut", "coffee", "rocket", "retina")):
        pixels = getattr(skimage.data, name)()[:, :1400]
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=80 + 5 * index)
        photos.append(Photo(folder / f"{name}.jpg", name, (SQUARE,) if index < 2 else ()))
    return photos


@pytest.fixture(scope="module")
def generator(photos: list[Photo]) -> Generator:
    return Generator.read(photos)


@pytest.fixture(scope="module", params=["posted", "png"])
def twins(
    request: pytest.FixtureRequest, generator: Generator, photos: list[Photo]
) -> list[SetImage]:
    """Make 20 forged images with their twins."""
    return list(pairs(generator, photos, request.param, 20, seed=7))


def pixels_of(image: SetImage) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(image.data)) as file:
        return np.asarray(file)


def metadata(image: SetImage) -> NDArray[np.float64]:
    """Return format, size and tables, which do not depend on the pixels."""
    size = pixels_of(image).shape
    tables = read_tables(image.data) if image.extension == "jpg" else ((1,) * 64,) * 2
    return np.array([*np.log2(np.ravel(tables)), *size, image.extension == "png"], np.float64)


def test_every_forged_image_has_a_twin(twins: list[SetImage]) -> None:
    for forged, authentic in zip(twins[::2], twins[1::2], strict=True):
        assert (forged.photo, forged.extension) == (authentic.photo, authentic.extension)
        assert authentic.mask is None
        assert forged.mask is not None
        np.testing.assert_array_equal(metadata(forged), metadata(authentic))
        assert forged.mask.shape == pixels_of(forged).shape[:2]
        assert 0.003 <= forged.mask.mean() < 0.5


def test_format_table_and_size_do_not_give_the_label_away(twins: list[SetImage]) -> None:
    features = np.array([metadata(image) for image in twins])
    forged = np.array([image.mask is not None for image in twins])
    assert fitted_auc(features, forged) == pytest.approx(0.5)
    features[forged, 0] += 2  # check of the check: a table four times as coarse at one place
    assert fitted_auc(features, forged) > 0.9


def fitted_auc(features: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the AUC of a ridge classifier on one half of the pairs, fitted on the other half."""
    spread = np.maximum(features.std(0), 1e-9)
    design = np.column_stack([(features - features.mean(0)) / spread, np.ones(len(features))])
    half = np.random.default_rng(0).permutation(len(features) // 2).repeat(2) % 2 == 0
    fit, test = design[half], design[~half]
    gram = fit.T @ fit + np.eye(design.shape[1])
    found = np.round(test @ np.linalg.solve(gram, fit.T @ truth[half].astype(float)), 6)
    return auc(found, truth[~half])


def test_twins_differ_only_in_the_forgery(generator: Generator, photos: list[Photo]) -> None:
    """PNG files are compared, because no later save spreads the difference."""
    twins = list(pairs(generator, photos, "png", 8, seed=3))
    for forged, authentic in zip(twins[::2], twins[1::2], strict=True):
        assert forged.mask is not None
        changed = (pixels_of(forged) != pixels_of(authentic)).any(2)
        padded = np.pad(forged.mask, 12)
        near = np.zeros_like(forged.mask)
        for dy in range(0, 25, 4):
            for dx in range(0, 25, 4):
                height, width = near.shape
                near |= padded[dy : dy + height, dx : dx + width]
        assert changed[forged.mask].mean() > 0.5
        assert not changed[~near].any()


def test_sets_have_their_kinds_and_sizes(twins: list[SetImage]) -> None:
    name = twins[0].treatment
    kinds = Counter(image.kind for image in twins)
    assert kinds["authentic"] == 20
    assert set(kinds) == {"authentic", *KINDS[name]}
    assert {image.extension for image in twins} == {"png" if name == "png" else "jpg"}
    for image in twins:
        height, width = pixels_of(image).shape[:2]
        assert max(height, width) <= LONG
        assert 304 <= min(height, width) <= SHORT


def test_edited_images_are_authentic_and_have_every_treatment(
    generator: Generator, photos: list[Photo]
) -> None:
    images = list(edited_images(photos, generator.tables, 20, seed=0))
    assert {image.kind for image in images} == {"authentic"}
    assert all(image.mask is None for image in images)
    assert {(image.photo, image.treatment) for image in images} == {
        (photo.path.name, treatment) for photo in photos for treatment in TREATMENTS
    }
    assert all((i.extension == "png") == (i.treatment == "screenshot") for i in images)


def test_a_full_size_photograph_is_forged_in_one_window(
    generator: Generator, photos: list[Photo]
) -> None:
    paths = [photo.path for photo in photos]
    twins = list(full_size_pairs(generator, paths, seed=0))
    assert [twin.kind for twin in twins[::2]] == ["splice", "copy-move", "removal", "splice"]
    for path, forged, authentic in zip(paths, twins[::2], twins[1::2], strict=True):
        np.testing.assert_array_equal(metadata(forged), metadata(authentic))
        assert pixels_of(forged).shape == pixels_of(authentic).shape
        assert pixels_of(forged).size == np.asarray(Image.open(path).convert("RGB")).size
        assert authentic.mask is None
        assert forged.mask is not None
        for axis in (0, 1):
            assert 0 < np.ptp(np.flatnonzero(forged.mask.any(axis))) < WINDOW[1]


def test_the_same_seed_gives_the_same_set(generator: Generator, photos: list[Photo]) -> None:
    first, again, other = (
        [image.data for image in pairs(generator, photos, "posted", 2, seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_written_set_is_a_manifest_for_evaluate_and_for_a_scan(
    generator: Generator, photos: list[Photo], tmp_path: Path
) -> None:
    images = list(pairs(generator, photos, "posted", 3, seed=1))
    manifest = write_set(tmp_path / "posted", images, seed=1)
    labels, truth = read_labels(manifest), read_truth(manifest)
    assert Counter(label.kind for label in labels) == Counter(image.kind for image in images)
    data = {sample.data for _, sample in read_images(labels)}
    assert data == {image.data for image in images}
    assert [t.mask is None for t in truth] == [label.kind == "authentic" for label in labels]


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs ../shared/data/photos")
def test_no_photograph_of_training_is_in_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prompt_iml.cluster.training.validation.PAIRS", {"posted": 2, "png": 2})
    monkeypatch.setattr("prompt_iml.cluster.training.validation.RESAVED", 5)
    photos = list_photos(PHOTOS)
    held_back = {photo.path.name for photo in split(photos)[1]}
    manifests = write_sets(photos, tmp_path)
    assert [manifest.parent.name for manifest in manifests] == ["posted", "png", "resaved"]
    for manifest in manifests:
        with manifest.open(newline="") as file:
            assert {row["photo"] for row in csv.DictReader(file)} <= held_back


def test_the_set_once_has_a_single_save(generator: Generator) -> None:
    for seed in range(20):
        history = sample_twin_history("once", np.random.default_rng(seed), generator.tables)
        assert history.first is None
        assert history.last is not None


def test_half_of_the_set_album_has_the_same_tables_in_both_saves(generator: Generator) -> None:
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    histories = [sample_twin_history("album", rng, generator.tables) for rng in rngs]
    assert all(history.first and history.last for history in histories)
    assert 15 < sum(history.first == history.last for history in histories) < 45


@pytest.fixture(scope="module")
def by_autoencoders(photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = write_autoencoders(tmp_path_factory.mktemp("models") / "autoencoders")
    return Generator.read(photos, read_autoencoders(str(folder), held_back=True))


@pytest.mark.parametrize("name", PASSED)
def test_sets_by_autoencoders_pass_a_region_or_both_twins(
    by_autoencoders: Generator, photos: list[Photo], name: str
) -> None:
    """A twin that did not pass with its forged image would give the label away."""
    twins = list(pairs(by_autoencoders, photos, name, 3, seed=1))
    assert {image.treatment for image in twins} == {PASSED[name]}
    assert [image.kind for image in twins[::2]] == list(KINDS[name])
    for forged, authentic in zip(twins[::2], twins[1::2], strict=True):
        assert forged.mask is not None
        assert 0.003 <= forged.mask.mean() < 0.6
        # An untrained autoencoder leaves much less contrast than the photograph has.
        (photo,) = [photo for photo in photos if photo.path.name == authentic.photo]
        kept = pixels_of(authentic).std() / load_pixels(photo).std()
        assert (kept < 0.75) == (name == "regenerated")
        far = ~ndimage.binary_dilation(forged.mask, iterations=40)
        difference = pixels_of(forged).astype(int) - pixels_of(authentic)
        # Group norms let an edit change all of a picture that passes, by some grey levels.
        assert np.abs(difference[far]).mean() <= (4 if name == "regenerated" else 0)


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs ../shared/data/photos")
def test_sets_by_autoencoders_are_written_where_there_are_some(
    by_autoencoders: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"PAIRS": {}, "GENERATED": {"generated": 1, "regenerated": 1}, "RESAVED": 1}
    for name, count in counts.items():
        monkeypatch.setattr(f"prompt_iml.cluster.training.validation.{name}", count)
    manifests = write_sets(list_photos(PHOTOS), tmp_path, 0, by_autoencoders.autoencoders)
    folders = [manifest.parent.name for manifest in manifests]
    assert folders == ["generated", "regenerated", "resaved"]
