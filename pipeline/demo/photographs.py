"""Real photographs with known forgeries: what `prompt-iml demo` scans.

The photographs are the free ones (public domain or CC0 by their own notes) that lie inside the
installed scikit-image package; nothing is downloaded. Half of the set is forged, and forged and
authentic images pass the same histories, so that neither format, size of file nor JPEG tables
give the answer away.

    photograph -> scene (crop, flip) -> first save -> forgery or none -> last save
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from prompt_iml.engine.errors import MissingDependency

Kind = Literal["authentic", "splice", "copy-move", "removal", "retouch"]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FORGERIES: tuple[Kind, ...] = ("splice",) * 4 + ("copy-move",) * 4 + ("removal", "retouch") * 2
LONGEST_SIDE = 800


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Something worth copying or hiding; centre and radii in pixels or parts of a side."""

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True, slots=True)
class Photograph:
    """One of scikit-image's.

    Attributes:
        donor: the photograph whose subjects are spliced into this one.
        subjects: what is worth copying, in parts of the width and height.
    """

    donor: str
    subjects: tuple[Ellipse, ...]


PHOTOGRAPHS = {
    "coffee.png": Photograph(
        "astronaut.png", (Ellipse(0.48, 0.33, 0.12, 0.15), Ellipse(0.61, 0.71, 0.08, 0.12))
    ),
    "rocket.jpg": Photograph(
        "hubble_deep_field.jpg", (Ellipse(0.504, 0.60, 0.05, 0.31), Ellipse(0.57, 0.92, 0.07, 0.07))
    ),
    "hubble_deep_field.jpg": Photograph(
        "rocket.jpg", (Ellipse(0.727, 0.54, 0.08, 0.09), Ellipse(0.40, 0.59, 0.10, 0.09))
    ),
    "astronaut.png": Photograph(
        "coffee.png", (Ellipse(0.33, 0.755, 0.085, 0.09), Ellipse(0.585, 0.70, 0.07, 0.06))
    ),
    "chelsea.png": Photograph(
        "astronaut.png", (Ellipse(0.38, 0.40, 0.10, 0.13), Ellipse(0.56, 0.79, 0.10, 0.11))
    ),
    "ihc.png": Photograph(
        "retina.jpg", (Ellipse(0.62, 0.79, 0.13, 0.18), Ellipse(0.35, 0.25, 0.13, 0.14))
    ),
    "retina.jpg": Photograph(
        "ihc.png", (Ellipse(0.15, 0.45, 0.10, 0.12), Ellipse(0.48, 0.49, 0.10, 0.10))
    ),
}


@dataclass(frozen=True, slots=True)
class Forged:
    """One image of the set.

    Attributes:
        name: file name, without a hint at the answer.
        data: the encoded file.
        mask: (H, W) bool, the forged pixels; None when authentic.
        kind: what was done to it.
    """

    name: str
    data: bytes
    mask: Mask | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Scene:
    """A view of a photograph: (H, W, 3) uint8 and its subjects in pixels."""

    pixels: Pixels
    subjects: tuple[Ellipse, ...]


@dataclass(frozen=True, slots=True)
class History:
    """How an image was saved before the forgery and after it.

    Attributes:
        first_quality: JPEG quality of the first save; 0 when there was none.
        format, last_quality: of the last save; a PNG has no quality.
        subsampling: of the chroma, in JPEG saves.
    """

    first_quality: int
    format: Literal["jpeg", "png", "webp"]
    last_quality: int
    subsampling: Literal["4:4:4", "4:2:0"]


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed smooth curve: an ellipse whose radius is bent by a few waves."""

    ellipse: Ellipse
    amplitudes: Floats
    phases: Floats

    def alpha(self, x: Floats, y: Floats, feather: float) -> Floats:
        """Opacity 0..1 at points (any shape, pixels); `feather` is the width of the edge."""
        dx, dy = (x - self.ellipse.x) / self.ellipse.rx, (y - self.ellipse.y) / self.ellipse.ry
        angle = np.arctan2(dy, dx)
        radius = np.ones_like(angle)
        for wave, (a, phase) in enumerate(zip(self.amplitudes, self.phases, strict=True), start=2):
            radius += a * np.cos(wave * angle + phase)
        scale = (self.ellipse.rx * self.ellipse.ry) ** 0.5
        opacity: Floats = (radius - np.hypot(dx, dy)) * scale / feather + 0.5
        return opacity.clip(0, 1)


def forge_set(seed: int = 0, forgeries: Sequence[Kind] = FORGERIES) -> Iterator[Forged]:
    """Make each of `forgeries` and as many authentic images, shuffled.

    The same seed and library versions give the same bytes.

    Raises:
        MissingDependency: the installed scikit-image lacks the photographs.
    """
    rng = np.random.default_rng(seed)
    names = list(PHOTOGRAPHS)
    histories = [_history(rng) for _ in forgeries]
    authentic: list[Kind] = ["authentic"] * len(forgeries)
    made = [*enumerate(forgeries), *enumerate(authentic)]
    for number, turn in enumerate(rng.permutation(len(made))):
        index, kind = made[turn]
        name = names[index % len(names)]
        yield _forge(f"{Path(name).stem}-{number:02d}", kind, name, histories[index], rng)


def write_shards(images: Iterable[Forged], folder: Path, shards: int = 3) -> Path:
    """Pack images into tar shards, with the truth beside them where no scan of them looks.

    Writes `folder/shards/demo-*.tar`, `folder/masks/*.png` (255 is forged) and
    `folder/truth.csv` with the columns image (shard#member), mask (empty when authentic), kind
    and sha256. Equal images give equal bytes.

    Returns:
        The path of `truth.csv`.
    """
    for name in ("shards", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = list(images)
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mask", "kind", "sha256"])
        for number, part in enumerate(np.array_split(np.arange(len(images)), shards)):
            shard = f"shards/demo-{number:05d}.tar"
            members = [images[i] for i in part]
            _write_tar(folder / shard, members)
            writer.writerows(_truth_row(image, shard, folder) for image in members)
    return folder / "truth.csv"


def _write_tar(path: Path, images: Sequence[Forged]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            member = tarfile.TarInfo(image.name)
            member.size = len(image.data)
            tar.addfile(member, io.BytesIO(image.data))


def _truth_row(image: Forged, shard: str, folder: Path) -> list[str]:
    mask = ""
    if image.mask is not None:
        mask = f"masks/{Path(image.name).stem}.png"
        Image.fromarray(image.mask).save(folder / mask)
    return [f"{shard}#{image.name}", mask, image.kind, hashlib.sha256(image.data).hexdigest()]


def _forge(stem: str, kind: Kind, name: str, history: History, rng: np.random.Generator) -> Forged:
    scene = _scene(name, history, rng)
    pixels, mask = scene.pixels, None
    if kind == "splice":
        donor = _scene(PHOTOGRAPHS[name].donor, _history(rng), rng)
        pixels, mask = _splice(scene, donor, rng)
    elif kind == "copy-move":
        pixels, mask = _copy_move(scene, rng)
    elif kind == "removal":
        pixels, mask = _remove(scene, rng)
    elif kind == "retouch":
        pixels, mask = _retouch(scene, rng)
    extension = {"jpeg": "jpg"}.get(history.format, history.format)
    return Forged(f"{stem}.{extension}", _last_save(pixels, history), mask, kind)


def _history(rng: np.random.Generator) -> History:
    """Most files are JPEG saved twice; the qualities are the range of cameras and editors."""
    return History(
        first_quality=0 if rng.random() < 0.1 else int(rng.integers(75, 96)),
        format=rng.choice(np.array(["jpeg", "png", "webp"]), p=[0.75, 0.15, 0.1]),
        last_quality=int(rng.integers(72, 97)),
        subsampling=rng.choice(np.array(["4:2:0", "4:4:4"]), p=[0.7, 0.3]),
    )


def _scene(name: str, history: History, rng: np.random.Generator) -> Scene:
    """Crop up to 8 % off every side, perhaps flip, shrink what is huge, save as a camera would."""
    photo = photograph(name)
    width, height = photo.size
    left, top, right, bottom = rng.uniform(0, 0.08, 4)
    box = tuple(map(int, (left * width, top * height, (1 - right) * width, (1 - bottom) * height)))
    photo = photo.crop((box[0], box[1], box[2], box[3]))
    flip = bool(rng.random() < 0.5)
    if flip:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    frame = (left, top, 1 - left - right, 1 - top - bottom)
    subjects = tuple(_place(s, frame, flip, photo.size) for s in PHOTOGRAPHS[name].subjects)
    if history.first_quality:
        photo = _jpeg(photo, history.first_quality, history.subsampling)
    return Scene(np.asarray(photo), subjects)


def photograph(name: str) -> Image.Image:
    """One of scikit-image's, RGB. Raises `MissingDependency` where it is not installed."""
    file = files("skimage") / "data" / name
    if not file.is_file():
        raise MissingDependency(
            f"the installed scikit-image lacks {name}: pip install --force-reinstall scikit-image"
        )
    with file.open("rb") as stream, Image.open(stream) as source:
        return source.convert("RGB")


def _place(
    subject: Ellipse, frame: tuple[float, float, float, float], flip: bool, size: tuple[int, int]
) -> Ellipse:
    """From parts of the photograph to pixels of the scene, moved inside it where it sticks out."""
    left, top, width, height = frame
    x, y = (subject.x - left) / width, (subject.y - top) / height
    rx, ry = subject.rx / width * size[0], subject.ry / height * size[1]
    x = (1 - x if flip else x) * size[0]
    return Ellipse(_inside(x, rx, size[0]), _inside(y * size[1], ry, size[1]), rx, ry)


def _inside(centre: float, radius: float, side: int) -> float:
    margin = 1.25 * radius + 2  # an outline bulges
    return float(np.clip(centre, margin, max(margin, side - margin)))


def _jpeg(photo: Image.Image, quality: int, subsampling: str) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "jpeg", quality=quality, subsampling=subsampling)
    with Image.open(file) as saved:
        return saved.convert("RGB")


def _last_save(pixels: Pixels, history: History) -> bytes:
    options: dict[str, dict[str, object]] = {
        "jpeg": {"quality": history.last_quality, "subsampling": history.subsampling},
        "webp": {"quality": history.last_quality},
        "png": {"compress_level": 3},
    }
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, history.format, **options[history.format])
    return file.getvalue()


def _splice(scene: Scene, donor: Scene, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    outline = _outline(donor, rng)
    height, width = scene.pixels.shape[:2]
    rx, ry = outline.ellipse.rx, outline.ellipse.ry
    wanted = (rng.uniform(0.03, 0.10) * width * height / (np.pi * rx * ry)) ** 0.5
    fits = min(width / rx, height / ry) / 3
    scale = min(max(wanted, 0.5), 1.6, fits)
    x = _inside(rng.uniform(0, width), rx * scale, width)
    y = _inside(rng.uniform(0, height), ry * scale, height)
    target = Ellipse(x, y, rx * scale, ry * scale)
    patch, alpha = _carry(donor.pixels, outline, target, rng.normal(0, 0.2), (width, height))
    matched = _match_colour(patch, scene.pixels, alpha >= 0.5)
    return _blend(scene.pixels, matched, alpha), alpha >= 0.5


def _copy_move(scene: Scene, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    outline = _outline(scene, rng)
    height, width = scene.pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    dx, dy = _best_offset(scene.pixels, outline.alpha(x, y, 1.0) >= 0.5, rng)
    source = outline.ellipse
    target = Ellipse(source.x + dx, source.y + dy, source.rx, source.ry)
    patch, alpha = _carry(scene.pixels, outline, target, 0.0, (width, height))
    return _blend(scene.pixels, patch.astype(np.float64), alpha), alpha >= 0.5


def _remove(scene: Scene, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Cover a subject with texture from elsewhere, its tones drawn smoothly to the new edge."""
    outline = _outline(scene, rng)
    height, width = scene.pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    hole = outline.alpha(x, y, 1.0) >= 0.5
    dx, dy = _best_offset(scene.pixels, hole, rng)
    texture = np.roll(scene.pixels, (-dy, -dx), (0, 1)).astype(np.float64)
    filled = scene.pixels.astype(np.float64)
    filled[hole] = texture[hole] + _membrane(filled - texture, hole)
    return np.rint(filled.clip(0, 255)).astype(np.uint8), hole


def _retouch(scene: Scene, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Smooth and brighten or darken, as with a soft brush."""
    outline = _outline(scene, rng)
    height, width = scene.pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    alpha = outline.alpha(x, y, rng.uniform(4, 12))
    sigma, gain = rng.uniform(1.5, 3), rng.choice([0.7, 1.35])
    smooth = ndimage.gaussian_filter(scene.pixels.astype(np.float64), (sigma, sigma, 0))
    return _blend(scene.pixels, (smooth * gain).clip(0, 255), alpha), alpha >= 0.5


def _outline(scene: Scene, rng: np.random.Generator) -> Outline:
    subject = scene.subjects[rng.integers(len(scene.subjects))]
    return Outline(subject, rng.normal(0, 0.04, 4), rng.uniform(0, 2 * np.pi, 4))


def _carry(
    pixels: Pixels, outline: Outline, target: Ellipse, angle: float, size: tuple[int, int]
) -> tuple[Pixels, Floats]:
    """Scale, turn and move an outline's content onto `target` in a frame of (width, height).

    Returns:
        The whole frame resampled, (H, W, 3) uint8, and the opacity (H, W).
    """
    source = outline.ellipse
    scale = target.rx / source.rx
    c, s = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = (
        *(c, s, source.x - c * target.x - s * target.y),
        *(-s, c, source.y + s * target.x - c * target.y),
    )
    patch = Image.fromarray(pixels).transform(
        size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    x_source = matrix[0] * x + matrix[1] * y + matrix[2]
    y_source = matrix[3] * x + matrix[4] * y + matrix[5]
    return np.asarray(patch), outline.alpha(x_source, y_source, 2.0 / scale)


def _match_colour(patch: Pixels, host: Pixels, mask: Mask) -> Floats:
    """Draw the mean colour under the mask halfway to the host's."""
    shift = host[mask].mean(axis=0) - patch[mask].mean(axis=0)
    matched: Floats = patch + 0.5 * shift
    return matched.clip(0, 255)


def _blend(host: Pixels, patch: Floats, alpha: Floats) -> Pixels:
    return np.rint(host + (patch - host) * alpha[..., None]).astype(np.uint8)


def _best_offset(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Of many places clear of `mask`, the one whose surroundings look most like the mask's own."""
    ys, xs = np.nonzero(mask)
    (y0, y1), (x0, x1) = (ys.min(), ys.max()), (xs.min(), xs.max())
    height, width = mask.shape
    dx = rng.integers(2 - x0, width - 2 - x1, 500)
    dy = rng.integers(2 - y0, height - 2 - y1, 500)
    overlaps = (abs(dx) <= x1 - x0) & (abs(dy) <= y1 - y0)
    rim_y, rim_x = np.nonzero(ndimage.binary_dilation(mask) & ~mask)
    rim = pixels[rim_y, rim_x].astype(np.int16)
    unlike = [abs(rim - pixels[rim_y + j, rim_x + i]).mean() for i, j in zip(dx, dy, strict=True)]
    best = int(np.argmin(unlike + 255 * overlaps))
    return int(dx[best]), int(dy[best])


def _membrane(values: Floats, hole: Mask) -> Floats:
    """Harmonic continuation of (H, W, C) values into the hole, (n, C) in row-major order."""
    ys, xs = np.nonzero(hole)
    number = np.zeros(hole.shape, np.int64)
    number[hole] = np.arange(len(ys))
    laplacian = sparse.lil_array((len(ys), len(ys)))
    laplacian.setdiag(4.0)
    edge = np.zeros((len(ys), values.shape[2]))
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        neighbour = (ys + dy, xs + dx)
        inner = hole[neighbour]
        laplacian[number[ys, xs][inner], number[neighbour][inner]] = -1.0
        edge[~inner] += values[neighbour][~inner]
    return np.asarray(spsolve(laplacian.tocsc(), edge))
