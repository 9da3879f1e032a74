"""Authentic pages that show photographs: posts, collages, and pictures with borders.

What is pasted into a page by its software is no manipulation, though it has another history than
the page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prompt_iml.pipeline.forgery.history import (
    FILTERS,
    Pixels,
    Tables,
    choose,
    resave,
    resize,
    sample_save,
)

Colour = tuple[int, ...]
Box = tuple[int, int, int, int]  # left, top, right, bottom

LETTERS = "aaabcdeeeefghiiklmnnooprrsstttuvw0123456789,.  "


def page(
    photos: Sequence[Pixels], side: int, tables: Sequence[Tables], rng: np.random.Generator
) -> Pixels:
    """Return a page (side, side, 3) that shows some of the photographs, each with a history of its
    own."""
    layout = choose((_post, _collage, _framed), rng, (0.5, 0.25, 0.25))
    dark = bool(rng.random() < 0.4)
    tone = rng.integers(0, 45) if dark else rng.integers(225, 256)
    paper = tuple(int(v) for v in np.clip(tone + rng.normal(0, 4, 3), 0, 255))
    canvas = Image.new("RGB", (side, side), paper)
    if rng.random() < 0.15:
        canvas = _gradient(side, paper, _colour(rng))
    order = rng.permutation(len(photos))
    for index, box in enumerate(layout(canvas, (230,) * 3 if dark else (30,) * 3, rng)):
        _place(canvas, photos[order[index % len(photos)]], box, tables, rng)
    return np.asarray(canvas)


def _post(canvas: Image.Image, ink: Colour, rng: np.random.Generator) -> list[Box]:
    """Draw a bar, icons and lines of text around one photograph, which may reach the edge."""
    side, draw = canvas.width, ImageDraw.Draw(canvas)
    unit = int(rng.integers(side // 22, side // 12 + 1))
    top = int(rng.integers(0, side // 3))
    left = choose((0, unit, int(rng.integers(0, side // 3))), rng)
    height = int(rng.integers(side // 3, side))
    right = side if rng.random() < 0.4 else int(rng.integers(left + side // 3, side + side // 4))
    _lines(draw, (unit // 2, unit, side, top - unit // 2), unit, ink, rng)
    _lines(draw, (unit // 2, top + height + unit // 2, side, side), unit, ink, rng)
    if right < side - 3 * unit:
        _lines(draw, (right + unit // 2, top, side, top + height), unit, ink, rng)
    if rng.random() < 0.6:
        draw.rectangle((0, 0, side, unit), fill=_colour(rng))
        _icons(draw, unit, side, ink, rng)
    return [(left, top, right, top + height)]


def _collage(canvas: Image.Image, _: Colour, rng: np.random.Generator) -> list[Box]:
    """Divide the page into cells for photographs, with one gap between all."""
    side, gap = canvas.width, int(rng.integers(0, 10))
    ends = [
        [0, *sorted(int(side * p) for p in rng.uniform(0.25, 0.75, int(rng.integers(0, 2)))), side]
        for _ in range(2)
    ]
    if len(ends[0]) == len(ends[1]) == 2:
        ends[0].insert(1, side // 2)
    return [
        (left + gap, top + gap, right, bottom)
        for top, bottom in zip(ends[0], ends[0][1:], strict=False)
        for left, right in zip(ends[1], ends[1][1:], strict=False)
    ]


def _framed(canvas: Image.Image, ink: Colour, rng: np.random.Generator) -> list[Box]:
    """Leave borders, or bars as of a film above and below, perhaps with a caption in one."""
    side = canvas.width
    bar = int(rng.integers(side // 20, side // 5))
    if rng.random() < 0.4:
        canvas.paste((0, 0, 0), (0, 0, side, side))
        ink = (235, 235, 235)
    sides = bar if rng.random() < 0.4 else 0
    if rng.random() < 0.5:
        _lines(ImageDraw.Draw(canvas), (bar, side - bar + 2, side, side), bar // 2, ink, rng)
    return [(sides, bar, side - sides, side - bar)]


def _place(
    canvas: Image.Image,
    photo: Pixels,
    box: Box,
    tables: Sequence[Tables],
    rng: np.random.Generator,
) -> None:
    """Paste a part of a photograph, scaled and saved on its own, perhaps with rounded corners."""
    width, height = max(box[2] - box[0], 16), max(box[3] - box[1], 16)
    room = min(photo.shape[1] / width, photo.shape[0] / height)
    factor = rng.uniform(min(1.0, room), max(min(room, 3.0), 1.0)) if room >= 1 else room
    size = int(width * factor), int(height * factor)
    left, top = (
        int(rng.integers(n - s + 1)) for n, s in zip(photo.shape[1::-1], size, strict=True)
    )
    part = photo[top : top + size[1], left : left + size[0]]
    part = resize(part, (width, height), choose(tuple(FILTERS), rng, tuple(FILTERS.values())))
    if rng.random() < 0.7:
        part = resave(part, sample_save(rng, (60, 95), tables))
    stencil = Image.new("L", (width, height))
    radius = int(rng.integers(4, max(5, height // 6))) if rng.random() < 0.35 else 0
    ImageDraw.Draw(stencil).rounded_rectangle((0, 0, width - 1, height - 1), radius, fill=255)
    canvas.paste(Image.fromarray(part), box[:2], stencil)


def _lines(
    draw: ImageDraw.ImageDraw, box: Box, unit: int, ink: Colour, rng: np.random.Generator
) -> None:
    """Write lines of letters into a box; those after a heading are smaller."""
    size, (left, top, right, bottom) = max(unit, 8), box
    while top + size < bottom:
        count = int((right - left) / size * rng.uniform(0.4, 1.9))
        letters = "".join(LETTERS[i] for i in rng.integers(0, len(LETTERS), max(count, 1)))
        draw.text((left, top), letters, ink, ImageFont.load_default(size))
        top += round(size * 1.4)
        size = max(8, round(unit * 0.7))


def _icons(
    draw: ImageDraw.ImageDraw, unit: int, side: int, ink: Colour, rng: np.random.Generator
) -> None:
    """Draw a row of simple shapes in the bar above."""
    inset = max(2, unit // 5)
    for left in range(inset, side - unit, unit * int(rng.integers(2, 6))):
        shape = (left, inset, left + unit - 2 * inset, unit - inset)
        getattr(draw, choose(("ellipse", "rectangle"), rng))(shape, outline=ink, width=2)


def _gradient(side: int, start: Colour, end: Colour) -> Image.Image:
    """Return a page whose colour changes from top to bottom."""
    rows = np.linspace(start, end, side)[:, None].repeat(side, 1)
    return Image.fromarray(rows.astype(np.uint8))


def _colour(rng: np.random.Generator) -> Colour:
    return tuple(int(v) for v in rng.integers(0, 256, 3))
