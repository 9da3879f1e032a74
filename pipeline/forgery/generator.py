"""Generate manipulated and authentic pictures from photographs, each from its own seed.

    python -m prompt_iml.pipeline.forgery.generator --photos DIR --output sheet.png

Photograph, manipulation history and kind are sampled in this order and independently, so that
authentic and manipulated examples pass the same saves with the same tables, sizes and formats:

    photograph, or page of photographs -> view (crop, scale) -> first save
        -> manipulation or none -> autoencoder or none -> the editor's save or none
        -> degradation or none -> last save -> crop

With autoencoders, some regions are generated, and some pictures, authentic ones too, passed through
one as a whole. Pixels that only passed are not manipulated: the mask is of new content.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from prompt_iml.engine.detection.context import Context, picture_context, tile_matches
from prompt_iml.engine.detection.views import pad
from prompt_iml.pipeline.forgery.edits import Edit, copy_move, remove, retouch, splice
from prompt_iml.pipeline.forgery.generated import Autoencoder, Denoiser, generated, regenerate
from prompt_iml.pipeline.forgery.history import (
    SIDE,
    Floats,
    History,
    Pixels,
    PriorHistory,
    Tables,
    choose,
    degrade,
    luma_table,
    read_tables,
    resave,
    resize,
    sample_history,
    sample_save,
)
from prompt_iml.pipeline.forgery.pages import page
from prompt_iml.pipeline.forgery.photos import (
    Photo,
    Scene,
    is_large,
    list_photos,
    read_scene,
    sampling_weights,
    split,
)
from prompt_iml.pipeline.forgery.shapes import fits, free_shape, opacity, placed

Kind = Literal["authentic", "splice", "copy-move", "removal", "retouch", "generated", "labelled"]
Mask = NDArray[np.bool_]

KINDS: dict[Kind, float] = {
    "authentic": 0.5, "splice": 0.2, "copy-move": 0.21, "removal": 0.06, "retouch": 0.03,
}  # fmt: skip
GENERATED_SHARE = 0.08  # with autoencoders; the other manipulations leave it from theirs
CONTENTS: dict[Kind, float] = {"splice": 0.4, "copy-move": 0.2, "removal": 0.4}  # new, generated
PASSED_ONLY = 0.3  # share of generated regions whose content is the original's own
# Share of pictures that pass through an autoencoder as a whole, after the edit.
REGENERATED: dict[Kind, float] = {"authentic": 0.04, "generated": 0.25}
DENOISED = 1 / 3  # share of generated regions that are denoised instead
NEGATIVE_AUTHENTIC = 0.6  # share of the screenshots, renders and scans that are never edited
NEAR = (0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 1.2)  # scales of an object among similar ones
PAGE_SHARE = 0.06  # of hosts that are a page with photographs, as in a screenshot
TRIES = 20
LEAST_MANIPULATED = 0.003  # share of a picture's pixels


@dataclass(frozen=True, slots=True)
class Example:
    """Training example.

    Attributes:
        pixels: (256, 256, 3) uint8 RGB.
        qtable: (64,) float32 luma table in natural order; ones where there is none.
        mask: (256, 256) bool, True where manipulated; False where a pixel only passed through an
            autoencoder with the whole picture.
        kind: kind of manipulation; `labelled` if only a reviewer's mask is known.
        context: that of the picture, of which the example is a tile.
    """

    pixels: Pixels
    qtable: NDArray[np.float32]
    mask: Mask
    kind: Kind
    context: Context

    @property
    def inputs(self) -> tuple[NDArray[Any], ...]:
        """The network's inputs in order, as `engine.runtimes.protocol.Batch` names them."""
        return self.pixels, self.qtable, self.context.histogram, self.context.matches


class Generator:
    """Generator of examples from photographs in memory.

    Args:
        scenes: photographs; each may be a host.
        tables: quantisation tables of cameras.
        weights: probability of each photograph; without them, all are alike.
        autoencoders: for generated regions; without them, there are none.

    Raises:
        ValueError: no photograph has outlines.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        tables: Sequence[Tables],
        weights: Floats | None = None,
        autoencoders: Sequence[Autoencoder] = (),
    ) -> None:
        self.scenes, self.tables, self.autoencoders = scenes, tables, autoencoders
        self.kinds = _with_generated(KINDS) if autoencoders else KINDS
        self.weights = None if weights is None else weights.tolist()
        self.donors = [scene for scene in scenes if scene.polygons]
        if not self.donors:
            raise ValueError("no photograph of 304 pixels or more with outlines among the photos")

    @classmethod
    def read(cls, photos: Sequence[Photo], autoencoders: Sequence[Autoencoder] = ()) -> Generator:
        """Return a generator over the photographs with sides of at least 304 pixels.

        Raises:
            ValueError: no photograph is large enough, or none has outlines.
        """
        large = [photo for photo in photos if is_large(photo)]
        tables = {found for photo in photos if (found := read_tables(photo.path.read_bytes()))}
        scenes = [read_scene(photo) for photo in large]
        weights = sampling_weights(large) if large else None
        return cls(scenes, sorted(tables), weights, autoencoders)

    def example(self, *seed: int) -> Example:
        """Return the example of this seed: the same photographs and seed give the same pixels."""
        rng = np.random.default_rng(seed)
        scene, history, kind = self.sample(rng)
        shown = rng.random() < PAGE_SHARE
        view = _view(self._page(scene, history, rng) if shown else scene, history, rng)
        prior = history.prior if history.donor_shares_it else None
        if self.autoencoders and rng.random() < REGENERATED.get(kind, 0):
            pixels, alpha = self._regenerated(kind, view, rng, prior)
        else:
            pixels, alpha = self.generate(kind, view, rng, prior)
        return _publish(pixels, alpha >= 0.5, kind, history, rng)

    def sample(self, rng: np.random.Generator) -> tuple[Scene, History, Kind]:
        """Sample a photograph, its history and the kind of manipulation, independently."""
        scene = choose(self.scenes, rng, self.weights)
        history = sample_history(rng, self.tables)
        if scene.negative and rng.random() < NEGATIVE_AUTHENTIC:
            return scene, history, "authentic"
        return scene, history, _sample(self.kinds, rng)

    def generate(
        self, kind: Kind, view: Scene, rng: np.random.Generator, prior: PriorHistory | None = None
    ) -> Edit:
        """Return the view after a manipulation of this kind, and its opacity (H, W), 0..1.

        Args:
            kind: kind of manipulation.
            view: square part of a photograph.
            rng: source of randomness.
            prior: history of the view, if a splice's donor shares it.
        """
        if kind == "splice":
            if prior and (donor := self._matching_donor(prior, len(view.pixels), rng)):
                return splice(view, donor, choose(NEAR, rng), rng)
            return splice(view, self._donor(rng), None, rng)
        if kind == "authentic":
            return view.pixels, np.zeros(view.pixels.shape[:2])
        if kind == "generated":
            return self._generated(view, rng, prior)
        outline = self._outline(view, rng)
        edit = {"copy-move": copy_move, "removal": remove, "retouch": retouch}[kind]
        return edit(view, outline, rng)

    def _generated(self, view: Scene, rng: np.random.Generator, prior: PriorHistory | None) -> Edit:
        """Return the view with a region that passed through an autoencoder or a denoiser."""
        if rng.random() < PASSED_ONLY:
            edit = view.pixels, opacity(self._outline(view, rng), len(view.pixels), rng)
        else:
            edit = self.generate(_sample(CONTENTS, rng), view, rng, prior)
        denoised = rng.random() < DENOISED
        return generated(view.pixels, edit, [Denoiser()] if denoised else self.autoencoders, rng)

    def _regenerated(
        self, kind: Kind, view: Scene, rng: np.random.Generator, prior: PriorHistory | None
    ) -> Edit:
        """Return the view after it passed through an autoencoder as a whole, with new content in a
        region unless it is authentic; the opacity is that of the region."""
        if kind == "generated":
            kind = _sample(CONTENTS, rng)
        pixels, alpha = self.generate(kind, view, rng, prior)
        return regenerate(pixels, self.autoencoders, rng), alpha

    def generate_within(
        self,
        kind: Kind,
        picture: Scene,
        rng: np.random.Generator,
        prior: PriorHistory | None = None,
    ) -> tuple[Pixels, Mask]:
        """Manipulate a picture of any shape in the largest square that fits, at a random place.

        Returns:
            The picture (H, W, 3), unchanged outside the square, and the mask (H, W).

        Raises:
            ValueError: 20 attempts left no manipulated pixel worth finding.
        """
        height, width = picture.pixels.shape[:2]
        side = min(height, width)
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        window = slice(y, y + side), slice(x, x + side)
        inside = tuple(p - (x, y) for p in picture.polygons if fits(p - (x, y), side))
        view = Scene(picture.pixels[window], inside)
        for _ in range(TRIES):
            edited, alpha = self.generate(kind, view, rng, prior)
            mask = np.zeros((height, width), bool)
            mask[window] = alpha >= 0.5
            if mask.mean() >= LEAST_MANIPULATED:
                pixels = picture.pixels.copy()
                pixels[window] = edited
                return pixels, mask
        raise ValueError(f"no {kind} came about in a {width}x{height} photograph")

    def _page(self, scene: Scene, history: History, rng: np.random.Generator) -> Scene:
        """Return a page that shows the photograph, and perhaps others, at the view's size."""
        photos = [scene.pixels, *(choose(self.scenes, rng, self.weights).pixels for _ in range(3))]
        return Scene(page(photos, _side(history), self.tables, rng), ())

    def _donor(self, rng: np.random.Generator) -> Scene:
        """Sample an object with its surroundings, saved once more in most cases."""
        if rng.random() < 0.87:
            scene = choose(self.donors, rng)
            outline = choose(scene.polygons, rng)
        else:
            scene = choose(self.scenes, rng, self.weights)
            outline = placed(free_shape(rng), min(scene.pixels.shape[:2]), rng)
        patch = _around(scene, outline, 1.0)
        if rng.random() >= 0.85:
            return patch
        return Scene(resave(patch.pixels, sample_save(rng, (72, 95), self.tables)), patch.polygons)

    def _matching_donor(
        self, prior: PriorHistory, side: int, rng: np.random.Generator
    ) -> Scene | None:
        """Sample an object of another photograph with this history, at the size that it has there;
        None where `TRIES` objects were too large or too small for the view."""
        for _ in range(TRIES):
            scene = choose(self.donors, rng)
            outline = choose(scene.polygons, rng)
            scale = prior.scale_of(scene.pixels)
            if fits((outline - outline.min(0)) * scale, side):
                patch = _around(scene, outline, scale, prior.resampling)
                return Scene(resave(patch.pixels, prior.save), patch.polygons)
        return None

    def _outline(self, view: Scene, rng: np.random.Generator) -> Floats:
        """Sample an outline: an object's in the view, or, anywhere in it, an object's of another
        photograph or a free shape."""
        if view.polygons and rng.random() < 0.6:
            return choose(view.polygons, rng)
        free = rng.random() < 0.13
        shape = free_shape(rng) if free else choose(choose(self.donors, rng).polygons, rng)
        return placed(shape, len(view.pixels), rng)


def _with_generated(kinds: dict[Kind, float]) -> dict[Kind, float]:
    """Return the shares of the kinds with generated regions, and as many authentic pictures."""
    left = 1 - GENERATED_SHARE / (1 - kinds["authentic"])
    shares = {kind: share if kind == "authentic" else left * share for kind, share in kinds.items()}
    return {**shares, "generated": GENERATED_SHARE}


def _sample(kinds: dict[Kind, float], rng: np.random.Generator) -> Kind:
    return choose(list(kinds), rng, list(kinds.values()))


def _view(scene: Scene, history: History, rng: np.random.Generator) -> Scene:
    """Return the square of the photograph that will fill the frame, after the first save."""
    shortest = min(scene.pixels.shape[:2])
    side = min(_side(history), shortest)
    box = min(round(side / history.scale), shortest)
    corner = np.array([rng.integers(size - box + 1) for size in scene.pixels.shape[1::-1]])
    if history.on_grid:
        corner -= corner % 8
    x, y = corner
    pixels = resize(scene.pixels[y : y + box, x : x + box], (side, side), history.resampling)
    pixels = resave(pixels, history.first)
    moved = ((polygon - corner) * (side / box) for polygon in scene.polygons)
    return Scene(pixels, tuple(polygon for polygon in moved if fits(polygon, side)))


def _side(history: History) -> int:
    """Return the side of a view that fills the frame when it has been scaled."""
    return round(history.frame / history.degradation.scale)


def _publish(
    pixels: Pixels, mask: Mask, kind: Kind, history: History, rng: np.random.Generator
) -> Example:
    """Apply the editor's save, degradation, the last save and the crop; mirror what is smaller
    than a tile then up to one, as a scan does."""
    pixels = resave(pixels, history.edited)
    frame = history.frame, history.frame
    degradation = history.degradation
    pixels = degrade(resize(pixels, frame, degradation.resampling), degradation, rng)
    mask = np.asarray(Image.fromarray(mask).resize(frame, Image.Resampling.NEAREST))
    qtable = np.ones(64, np.float32)
    if history.last is not None:
        pixels = resave(pixels, history.last)
        if history.has_table:
            qtable = np.array(luma_table(history.last), np.float32)
    (row, column), (height, width) = history.corner, history.shape
    window = slice(row, row + height), slice(column, column + width)
    context = picture_context(pixels[window], qtable)
    matches = tile_matches(context, 0, 0, (SIDE, SIDE))
    return Example(
        pad(pixels[window], SIDE, SIDE),
        qtable,
        pad(mask[window], SIDE, SIDE),
        kind,
        Context(context.histogram, matches),
    )


def _around(
    scene: Scene,
    outline: Floats,
    scale: float,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Scene:
    """Cut out an object and 16 pixels around it, after scaling."""
    margin = round(16 / scale)
    low = np.maximum(outline.min(0).astype(int) - margin, 0)
    high = outline.max(0).astype(int) + margin
    pixels = scene.pixels[low[1] : high[1], low[0] : high[0]]
    height, width = pixels.shape[:2]
    size = round(width * scale), round(height * scale)
    return Scene(resize(pixels, size, resampling), ((outline - low) * scale,))


def contact_sheet(
    generator: Generator, rows: int = 8, columns: int = 6, seed: int = 0
) -> Image.Image:
    """Return a picture of examples, each beside itself with the mask's outline in red."""
    sheet = Image.new("RGB", (columns * 2 * SIDE, rows * SIDE))
    for index in range(rows * columns):
        example = generator.example(seed, index)
        marked = example.pixels.copy()
        edge = ndimage.binary_dilation(example.mask, iterations=2) & ~example.mask
        marked[edge] = (255, 0, 0)
        pair = Image.fromarray(np.hstack([example.pixels, marked]))
        ImageDraw.Draw(pair).text((SIDE + 4, 4), example.kind, fill=(255, 255, 0))
        sheet.paste(pair, (index % columns * 2 * SIDE, index // columns * SIDE))
    return sheet


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    contact_sheet(Generator.read(split(list_photos(args.photos))[0])).save(args.output)


if __name__ == "__main__":
    main()
