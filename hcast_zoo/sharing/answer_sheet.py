"""Right and wrong answers as one picture, for a model card."""

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.dataset import HierarchicalDataset
from ..data.pictures import PictureError
from ..data.thumbnails import draw_thumbnail
from ..evaluation.evaluate import Measured
from ..network.config import HCastConfig
from ..segments.drawing import fit_text
from ..taxonomy.paths import UNKNOWN

SHOWN = 6  # pictures of a row
SIDE = 240  # pixels of a picture; the sheet is for screens of two pixels a point
GAP, LINE, FONT_SIZE = 20, 26, 19  # pixels
INK, FAINT, PAPER = (32, 33, 36), (95, 99, 104), (255, 255, 255)


def answer_sheet(measured: Measured, decoding: str, dataset: HierarchicalDataset, config: HCastConfig) -> Image.Image:
    """Draw a row of right answers and a row of wrong ones, taken at even steps through the data, not chosen by hand.

    Args:
        measured: With its answers.
        decoding: Which of them.
        dataset: The pictures.
        config: Of the model, to outline what it saw.
    """
    answers, labels = measured.answers[decoding], measured.labels
    right = ((answers.paths == labels) | (labels == UNKNOWN)).all(1)
    rows = []
    for title, chosen in (("right", right), ("wrong", ~right)):
        numbers = chosen.nonzero().flatten().tolist()
        cells = []
        for row in numbers[:: max(1, len(numbers) // SHOWN)][:SHOWN]:
            found, true = (
                dataset.taxonomy.path_names(path) for path in (answers.paths[row].tolist(), labels[row].tolist())
            )
            told = [f"{found[-1] if found else '?'}, {float(answers.confidences[row]):.0%}"]
            told += [f"is {true[-1] if true else '?'}"] if title == "wrong" else []
            cells.append((_picture(dataset, int(measured.numbers[row]), config), told))
        rows.append((f"{len(numbers)} of {len(labels)} answers are {title}", cells))

    return _compose(rows)


def _picture(dataset: HierarchicalDataset, number: int, config: HCastConfig) -> Image.Image:
    try:
        picture = dataset.open(number)
        return ImageOps.contain(draw_thumbnail(picture, config, SIDE), (SIDE, SIDE), Image.Resampling.BICUBIC)
    except PictureError:  # it was there when it was measured
        return Image.new("RGB", (SIDE, SIDE), FAINT)


def _compose(rows: list[tuple[str, list[tuple[Image.Image, list[str]]]]]) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    height = LINE + SIDE + 2 * LINE + 2 * GAP
    sheet = Image.new("RGB", (SHOWN * (SIDE + GAP) + GAP, len(rows) * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, (title, cells) in enumerate(rows):
        top = GAP + line * height
        draw.text((GAP, top), title, FAINT, font)
        for column, (picture, told) in enumerate(cells):
            left = GAP + column * (SIDE + GAP)
            sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + LINE + GAP // 2 + SIDE - picture.height))
            for number, text in enumerate(told):
                draw.text((left, top + LINE + GAP + SIDE + number * LINE), fit_text(text, font, SIDE), INK, font)

    return sheet
