"""Right and wrong answers as one picture, for a model card."""

import contextlib
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..common.files import write_whole
from ..common.sample import spread
from ..data.dataset import HierarchicalDataset
from ..data.pictures import PictureError
from ..data.thumbnails import draw_thumbnail
from ..evaluation.evaluate import Measured
from ..network.config import HCastConfig
from ..segments.sheet import LIGHT, fit_text
from ..taxonomy.paths import UNKNOWN

SHOWN = 6  # pictures per row
EXAMPLES = 3  # right answers, and as many wrong ones, that the demo page offers
EXAMPLE_SIDE = 640  # pixels of the longer side of such a picture
SIDE = 240  # pixels per side of a picture; for screens with two pixels per point
GAP, LINE, FONT_SIZE = 20, 26, 19  # pixels


def answer_sheet(measured: Measured, decoding: str, dataset: HierarchicalDataset, config: HCastConfig) -> Image.Image:
    """Draw a row of right answers and a row of wrong ones, evenly spaced in the data set rather than selected.

    Args:
        measured: An evaluation with its answers.
        decoding: The decoding whose answers to draw.
        dataset: The pictures.
        config: The model's config, to outline the part that the model saw.
    """
    answers, labels = measured.answers[decoding], measured.labels
    rows = []
    for title, numbers in zip(("right", "wrong"), _right_and_wrong(measured, decoding)):
        cells = []
        for row in spread(numbers, SHOWN):
            answer = dataset.taxonomy.path_names(answers.paths[row].tolist())
            lines = [f"{answer[-1] if answer else '?'}, {float(answers.confidences[row]):.0%}"]
            if title == "wrong":
                truth = dataset.taxonomy.path_names(labels[row].tolist())
                lines.append(f"is {truth[-1] if truth else '?'}")
            cells.append((_picture(dataset, int(measured.numbers[row]), config), lines))

        rows.append((f"{len(numbers)} of {len(labels)} answers are {title}", cells))

    return _compose(rows)


def save_beside(card: str | Path, name: str, picture: Image.Image) -> str:
    """Write a picture beside a card, as JPEG without metadata; return its name."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=85, optimize=True)
    write_whole(Path(card).with_name(name), sink.getvalue())
    return name


def example_answers(measured: Measured, decoding: str, dataset: HierarchicalDataset) -> list[Image.Image]:
    """Return pictures of right answers, then of wrong ones, evenly spaced in the data set, for the demo page.

    Args:
        measured: An evaluation with its answers.
        decoding: The decoding whose answers to take.
        dataset: The pictures.
    """
    pictures = []
    for numbers in _right_and_wrong(measured, decoding):
        for row in spread(numbers, EXAMPLES):
            with contextlib.suppress(PictureError):  # it changed after it was measured
                pictures.append(draw_thumbnail(dataset.open(int(measured.numbers[row])), side=EXAMPLE_SIDE))

    return pictures


def _right_and_wrong(measured: Measured, decoding: str) -> tuple[list[int], list[int]]:
    """Return the rows of the right answers, and of the wrong ones."""
    answers, labels = measured.answers[decoding], measured.labels
    right = ((answers.paths == labels) | (labels == UNKNOWN)).all(1)
    return right.nonzero().flatten().tolist(), (~right).nonzero().flatten().tolist()


def _picture(dataset: HierarchicalDataset, number: int, config: HCastConfig) -> Image.Image:
    try:
        picture = dataset.open(number)
        return ImageOps.contain(draw_thumbnail(picture, config, SIDE), (SIDE, SIDE), Image.Resampling.BICUBIC)
    except PictureError:  # it changed after it was measured
        return Image.new("RGB", (SIDE, SIDE), LIGHT.faint)


def _compose(rows: list[tuple[str, list[tuple[Image.Image, list[str]]]]]) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    height = LINE + SIDE + 2 * LINE + 2 * GAP
    sheet = Image.new("RGB", (SHOWN * (SIDE + GAP) + GAP, len(rows) * height + GAP), LIGHT.ground)
    draw = ImageDraw.Draw(sheet)
    for row, (title, cells) in enumerate(rows):
        top = GAP + row * height
        draw.text((GAP, top), title, LIGHT.faint, font)
        for column, (picture, lines) in enumerate(cells):
            left = GAP + column * (SIDE + GAP)
            sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + LINE + GAP // 2 + SIDE - picture.height))
            for number, text in enumerate(lines):
                draw.text((left, top + LINE + GAP + SIDE + number * LINE), fit_text(text, font, SIDE), LIGHT.ink, font)

    return sheet
