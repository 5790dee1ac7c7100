"""Sheets: panels with captions below a title, on light or dark paper, for screens with two pixels per point."""

import colorsys
import dataclasses
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..common.text import printable
from .drawing import GOLDEN, WHITE, Segmentation, draw_boundaries, resize_labels

PANEL = 448  # pixels: side of a picture in a sheet
GAP = 24  # pixels between the panels
FONT_SIZE, TITLE_SIZE = 27, 40
LINE, TITLE_LINE = 36, 58  # pixels: height of a line of text
SEEN, CHANGED = (255, 196, 0), (230, 97, 0)  # the outline of what the model saw; pixels of another segment
EMPTY = -1  # in place of the segment before, for a segment that is new
STRENGTH = 0.55  # of a segment's hue over the picture's brightness


@dataclasses.dataclass(frozen=True)
class Paper:
    """Colours of a sheet: of the paper, the text, and the less important text."""

    ground: tuple[int, int, int] = WHITE
    ink: tuple[int, int, int] = (32, 33, 36)
    faint: tuple[int, int, int] = (95, 99, 104)


LIGHT = Paper()
DARK = Paper(ground=(18, 20, 24), ink=(232, 234, 237), faint=(170, 176, 183))
Cell = tuple[Image.Image, Sequence[str]]


def compose_sheet(
    columns: Sequence[Sequence[Cell]], title: Sequence[str] = (), paper: Paper = LIGHT, panel: int = PANEL
) -> Image.Image:
    """Arrange columns of panels, each with lines of text below it, on one sheet.

    Args:
        columns: From left to right; each holds, from top to bottom, a panel and its lines. The first line is in ink,
            the others are fainter; long lines are cut.
        title: Lines above, the first one large.
        paper: Colours.
        panel: Pixels of a panel's side.
    """
    font, large = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(TITLE_SIZE)
    tops = [GAP + (TITLE_LINE + (len(title) - 1) * LINE + GAP // 2 if title else 0)]
    for row in itertools.zip_longest(*columns, fillvalue=(None, ())):
        most_lines = max(len(texts) for _, texts in row)
        tops.append(tops[-1] + panel + most_lines * LINE + 3 * GAP // 2)

    width = len(columns) * (panel + GAP) + GAP
    canvas = Image.new("RGB", (width, tops[-1] - GAP // 2), paper.ground)
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(title):
        title_font, top = (font, GAP + TITLE_LINE + (number - 1) * LINE) if number else (large, GAP)
        ink = paper.faint if number else paper.ink
        draw.text((GAP, top), fit_text(text, title_font, width - 2 * GAP), ink, title_font)

    for i, column in enumerate(columns):
        left = GAP + i * (panel + GAP)
        for top, (picture, texts) in zip(tops, column):
            canvas.paste(picture, (left, top))
            for number, text in enumerate(texts):
                place = left, top + panel + GAP // 2 + number * LINE
                draw.text(place, fit_text(text, font, panel), paper.faint if number else paper.ink, font)

    return canvas


def fit_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int = PANEL) -> str:
    """Return a text that a font can draw, cut to a width in pixels.

    Pillow's own font has the letters of English alone, so others lose their accents.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", printable(text)) if not unicodedata.combining(c))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def whole_panel(segmentation: Segmentation, size: int = PANEL, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the whole picture, in a square, with the outline of what the model saw if that was not all."""
    scale = size / max(segmentation.picture.size)
    sides = [max(1, round(side * scale)) for side in segmentation.picture.size]
    picture = segmentation.picture.resize(sides, Image.Resampling.BICUBIC)

    left, top, right, bottom = (round(value * scale) for value in segmentation.box)
    outline = max(left, 0), max(top, 0), min(right, picture.width) - 1, min(bottom, picture.height) - 1
    if (right - left < picture.width - 1 or bottom - top < picture.height - 1) and outline[0] < outline[2]:
        ImageDraw.Draw(picture).rectangle(outline, outline=SEEN, width=max(2, size // 90))

    square = Image.new("RGB", (size, size), ground)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square


def segment_hues(labels: np.ndarray) -> np.ndarray:
    """Return a hue for each segment of the coarsest stage, (N,) float in [0, 1]; consecutive ones are far apart."""
    return np.arange(labels.max() + 1) * GOLDEN % 1


def hue_panel(
    segmentation: Segmentation,
    stage: int,
    hues: np.ndarray,
    size: int = PANEL,
    ink: tuple[int, int, int] = LIGHT.ink,
) -> Image.Image:
    """Return the segments of a stage, in the picture's brightness and the hue of the coarsest segment they belong to.

    Args:
        segmentation: Of all stages.
        stage: From 1.
        hues: (N,) float in [0, 1], of each segment of the last stage; below 0 it has none, and is grey.
        size: Pixels of a side.
        ink: Colour of the lines between segments.
    """
    fine, coarse = (resize_labels(segmentation.maps[index], size) for index in (stage - 1, -1))
    grey = np.asarray(ImageOps.grayscale(segmentation.view(size)), np.float64)
    count = np.bincount(fine.ravel()).clip(1)
    brightness = (np.bincount(fine.ravel(), grey.ravel()) / count)[fine]  # [H, W], the mean of each segment
    colours = np.array([colorsys.hls_to_rgb(hue, 0.5, 0.75 if hue >= 0 else 0) for hue in hues]) * 255
    mixed = STRENGTH * colours[coarse] + (1 - STRENGTH) * brightness[..., None]
    return draw_boundaries(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), fine, ink)


def match_segments(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return, for each segment after a change, the segment that it was before, (N,) int; -1 for one that is new.

    Segments are paired in the order of the number of pixels that they share, and each is in one pair at most.

    Args:
        before: (H, W) int labels from 0.
        after: (H, W) int labels from 0.
    """
    width = int(before.max()) + 1
    shared = np.bincount(after.ravel() * width + before.ravel(), minlength=(int(after.max()) + 1) * width)
    previous, taken = np.full(int(after.max()) + 1, EMPTY), set()
    for pair in np.argsort(-shared, kind="stable"):
        new, old = divmod(int(pair), width)
        if shared[pair] == 0:
            break
        if previous[new] == EMPTY and old not in taken:
            previous[new] = old
            taken.add(old)

    return previous


def changed_pixels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return which pixels are now in another segment, (H, W) bool; see :func:`match_segments`."""
    return match_segments(before, after)[after] != before


def changed_panel(view: Image.Image, changed: np.ndarray) -> Image.Image:
    """Return a grey picture with the changed pixels in orange.

    Args:
        view: What the model saw, RGB, square.
        changed: (h, w) bool, of the model's input.
    """
    grey = np.asarray(ImageOps.grayscale(view).convert("RGB"), np.float64)
    mask = resize_labels(changed.astype(np.int64), view.width).astype(bool)[..., None]
    return Image.fromarray(np.where(mask, 0.35 * grey + 0.65 * np.array(CHANGED), grey).round().astype(np.uint8))
