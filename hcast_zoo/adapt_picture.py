"""One picture before and after adaptation: its answers, its segments, and a sheet that shows both."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import superpixels
from .adapt import Adaptation, AdaptConfig, adapt, node_log_probability
from .model import HCastOutput
from .predict import Prediction, Predictor
from .segment_metrics import rand_distance
from .transforms import eval_transform, read_picture

PANEL = 192  # pixels: side of each picture in a sheet
GAP, LINE = 10, 18  # pixels
INK, PAPER = (32, 33, 36), (255, 255, 255)


@dataclasses.dataclass
class AdaptedPicture:
    """A picture's answers before and after adaptation.

    Attributes:
        file: As it was given.
        picture: What the model saw, RGB.
        feedback: One of ``adapt.FEEDBACK``.
        target: Name of the node whose probability was raised, or None.
        probability: Of the target before and after, in [0, 1], or None.
        before: The answer of the stored weights.
        after: The answer of the adapted ones.
        segment_change: For each stage from 2, percent of the pixel pairs that were in one segment and are in two now,
            or the reverse.
        adaptation: All tensors.
    """

    file: str
    picture: Image.Image
    feedback: str
    target: str | None
    probability: tuple[float, float] | None
    before: Prediction
    after: Prediction
    segment_change: tuple[float, ...]
    adaptation: Adaptation

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        def answer(prediction: Prediction) -> dict:
            return {k: v for k, v in prediction.to_dict().items() if k != "file"}

        return {"file": self.file, "feedback": self.feedback, "target": self.target,
                "probability": self.probability and list(self.probability), "before": answer(self.before),
                "after": answer(self.after), "losses": list(self.adaptation.losses),
                "distances": self.adaptation.distances,
                "segment_change": {f"stage {i}": change for i, change in enumerate(self.segment_change, 2)}}


def adapt_picture(predictor: Predictor, file: str | Path, target: str | None = None, *, feedback: str = "target",
                  config: AdaptConfig | None = None) -> AdaptedPicture:
    """Adapt a predictor's model to a picture; see :func:`hcast_zoo.adapt.adapt` for target, feedback and errors.

    Raises:
        PictureError: if the picture cannot be read.
    """
    model, taxonomy, calibration = predictor.model, predictor.taxonomy, predictor.calibration
    image = eval_transform(model.config)(read_picture(file))[None]
    a = adapt(model, image.to(predictor.device), taxonomy, target, feedback=feedback, config=config,
              calibration=calibration)
    probability = None
    if a.node is not None:
        target = taxonomy.names[a.node[0]][a.node[1]]
        probability = tuple(node_log_probability(o.level_logits, taxonomy, a.node, calibration).exp().item()
                            for o in (a.before, a.after))
    before, after = (dataclasses.replace(predictor.decode([x.float().cpu() for x in o.level_logits])[0],
                                         file=str(file)) for o in (a.before, a.after))
    stages = range(2, len(a.before.assignments) + 2)
    change = tuple(rand_distance(a.before.segment_map(s)[0], a.after.segment_map(s)[0]) for s in stages)
    c = model.config
    picture = Image.fromarray(superpixels.to_uint8(image, c.mean, c.std)[0].numpy())
    return AdaptedPicture(str(file), picture, feedback, target, probability, before, after, change, a)


def draw_sheet(adapted: AdaptedPicture) -> Image.Image:
    """Draw the picture and its segmentations, fine to coarse: before adaptation above, after it below."""
    outputs = adapted.adaptation.before, adapted.adaptation.after
    answers = adapted.before, adapted.after
    columns = len(outputs[0].assignments) + 2
    row_height = PANEL + 2 * LINE + 2 * GAP
    sheet = Image.new("RGB", (columns * (PANEL + GAP) + GAP, 2 * row_height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (when, output, answer) in enumerate(zip(("before", "after"), outputs, answers)):
        top = GAP + row * row_height
        panels = [adapted.picture.resize((PANEL, PANEL), Image.Resampling.BICUBIC), *_stages(adapted.picture, output)]
        for column, panel in enumerate(panels):
            sheet.paste(panel, (GAP + column * (PANEL + GAP), top))
        texts = [f"{when}: {' > '.join(answer.path) or '-'} ({answer.path_probability:.1%})"]
        if adapted.probability is not None:
            texts.append(f"{adapted.target}: {adapted.probability[row]:.1%}")
        for number, text in enumerate(texts):
            draw.text((GAP, top + PANEL + GAP // 2 + number * LINE), text, INK, font)
    return sheet


def write_sheet(adapted: AdaptedPicture, folder: str | Path) -> Path:
    """Write the sheet to a folder, under the picture's name as PNG; an earlier one of that name is replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(adapted.file).stem}.png"
    if path.exists() and path.samefile(adapted.file):
        raise ValueError(f"{path} is the picture itself: choose another folder")
    draw_sheet(adapted).save(path, optimize=True)
    return path


def _stages(picture: Image.Image, output: HCastOutput) -> list[Image.Image]:
    """Return a panel a stage, every segment in its average colour with a line around it."""
    pixels = np.asarray(picture)
    panels = []
    for stage in range(1, len(output.assignments) + 2):
        labels = output.segment_map(stage)[0].cpu().numpy()
        count = np.bincount(labels.ravel()).clip(1)
        sums = [np.bincount(labels.ravel(), channel.ravel()) for channel in np.moveaxis(pixels, 2, 0)]
        means = (np.stack(sums, -1) / count[:, None]).round().astype(np.uint8)
        rows, columns = (np.arange(PANEL) * side // PANEL for side in labels.shape)
        large = labels[rows[:, None], columns]
        panel = means[large]
        panel[:-1][large[1:] != large[:-1]] = INK
        panel[:, :-1][large[:, 1:] != large[:, :-1]] = INK
        panels.append(Image.fromarray(panel))
    return panels
