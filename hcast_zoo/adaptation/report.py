"""One picture before and after adaptation: its answers, its segments, and a sheet that shows both."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.pictures import PictureError, read_picture
from ..inference.predictor import Prediction, Predictor
from ..segments.drawing import Segmentation
from ..segments.metrics import rand_distance
from ..segments.sheet import (
    CHANGED,
    DARK,
    EMPTY,
    LIGHT,
    PANEL,
    Paper,
    changed_panel,
    changed_pixels,
    compose_sheet,
    hue_panel,
    match_segments,
    segment_hues,
    whole_panel,
)
from .adapt import Adaptation, adapt, node_log_probability
from .config import AdaptConfig


@dataclasses.dataclass
class AdaptedPicture:
    """A picture's answers before and after adaptation.

    Attributes:
        file: The file, as it was given.
        feedback: One of ``FEEDBACK``.
        target: Name of the node whose probability was raised, or None.
        probability: Probability of the target before and after, in [0, 1], or None.
        before: The answer of the stored weights.
        after: The answer of the adapted weights.
        segmentations: The segmentations of the stored weights, and of the adapted ones.
        segment_change: For each stage from 2, the percentage of pixel pairs that were in one segment and are now in
            two, or the reverse.
        changed: For each stage from 2, the percentage of the picture that belongs to another segment than before.
        adaptation: The tensors.
    """

    file: str
    feedback: str
    target: str | None
    probability: tuple[float, float] | None
    before: Prediction
    after: Prediction
    segmentations: tuple[Segmentation, Segmentation]
    segment_change: tuple[float, ...]
    changed: tuple[float, ...]
    adaptation: Adaptation

    def to_dict(self) -> dict:
        """Return plain data for JSON."""

        def answer(prediction: Prediction) -> dict:
            data = prediction.to_dict()
            del data["file"]
            return data

        return {
            "file": self.file,
            "feedback": self.feedback,
            "target": self.target,
            "probability": self.probability and list(self.probability),
            "before": answer(self.before),
            "after": answer(self.after),
            "losses": list(self.adaptation.losses),
            "distances": self.adaptation.distances,
            "segment_change": {f"stage {i}": change for i, change in enumerate(self.segment_change, 2)},
            "changed": {f"stage {i}": share for i, share in enumerate(self.changed, 2)},
        }


def adapt_picture(
    predictor: Predictor,
    file: str | Path,
    target: str | None = None,
    *,
    feedback: str = "target",
    config: AdaptConfig | None = None,
) -> AdaptedPicture:
    """Adapt a predictor's model to a picture; see :func:`.adapt.adapt` for target, feedback, config and other errors.

    Raises:
        PictureError: if the picture cannot be read, or an answer is not finite.
    """
    model, taxonomy, calibration = predictor.model, predictor.taxonomy, predictor.calibration
    picture = read_picture(file)
    image = predictor.transform(picture)[None].to(predictor.device)

    adaptation = adapt(
        model,
        image,
        taxonomy,
        target,
        feedback=feedback,
        config=config,
        num_clusters=predictor.num_clusters,
        calibration=calibration,
    )
    node, probabilities, predictions, segmentations = adaptation.node, [], [], []
    for output in (adaptation.before, adaptation.after):
        if node is not None:
            probabilities.append(node_log_probability(output.level_logits, taxonomy, node, calibration).exp().item())

        prediction = predictor.predictions(output.level_logits, [str(file)])[0]
        if prediction.error is not None:
            raise PictureError(prediction.error, str(file))
        predictions.append(prediction)
        segmentations.append(Segmentation.from_output(picture, output, model.config))

    change, changed = [], []
    for before, after in zip(*(segmentation.maps[1:] for segmentation in segmentations)):
        change.append(rand_distance(torch.from_numpy(before), torch.from_numpy(after)))
        changed.append(100 * changed_pixels(before, after).mean().item())

    return AdaptedPicture(
        file=str(file),
        feedback=feedback,
        target=target if node is None else taxonomy.names[node[0]][node[1]],
        probability=None if node is None else (probabilities[0], probabilities[1]),
        before=predictions[0],
        after=predictions[1],
        segmentations=(segmentations[0], segmentations[1]),
        segment_change=tuple(change),
        changed=tuple(changed),
        adaptation=adaptation,
    )


def draw_sheet(adapted: AdaptedPicture, dark: bool = False) -> Image.Image:
    """Draw the picture and its segmentations, fine to coarse: before adaptation, after it, and what has changed.

    A segment has one hue in all stages, and before and after; one that was not there before is grey.

    Args:
        adapted: What to draw.
        dark: On dark paper.
    """
    before, after = adapted.segmentations
    paper = DARK if dark else LIGHT
    hues = segment_hues(before.maps[-1])
    matched = match_segments(before.maps[-1], after.maps[-1])
    hues_after = np.where(matched == EMPTY, -1.0, hues[matched])
    rows = ("before", adapted.before, before, hues), ("after", adapted.after, after, hues_after)

    columns: list[list] = [[] for _ in range(len(before.maps) + 1)]
    for when, answer, segmentation, colours in rows:
        columns[0].append((whole_panel(segmentation, PANEL, paper.ground), _answer_caption(when, answer)))
        for stage in range(1, len(segmentation.maps) + 1):
            count = len(np.unique(segmentation.maps[stage - 1]))
            columns[stage].append((hue_panel(segmentation, stage, colours), [f"{when}: {count} segments"]))

    view = before.view(PANEL)
    columns[0].append((_colour_key(paper), ["orange: in another segment now"]))
    for stage, (old, new) in enumerate(zip(before.maps, after.maps), 1):
        changed = changed_pixels(old, new)
        caption = f"{changed.mean():.0%} of the picture changed" if changed.any() else "nothing changed"
        columns[stage].append((changed_panel(view, changed), [caption]))

    return compose_sheet(columns, _title(adapted), paper)


def _title(adapted: AdaptedPicture) -> list[str]:
    """Return the lines above the sheet: the request and its outcome."""
    if adapted.probability is None:
        return ["Adapted to this picture", f"probability of the answer: {adapted.after.path_probability:.0%}"]
    old, new = adapted.probability
    return [f"{adapted.target}: {old:.0%} before, {new:.0%} after", "adapted to this picture alone"]


def _answer_caption(when: str, answer: Prediction) -> list[str]:
    return [f"{when}: {answer.path[-1] if answer.path else 'no answer'}", " > ".join(answer.path[:-1])]


def _colour_key(paper: Paper) -> Image.Image:
    """Return a panel with the colour of what has changed."""
    key = Image.new("RGB", (PANEL, PANEL), paper.ground)
    key.paste(CHANGED, (0, PANEL - PANEL // 16, PANEL, PANEL))
    return key


def write_sheet(adapted: AdaptedPicture, folder: str | Path, *, dark: bool = False) -> Path:
    """Write the sheet to a folder, under the picture's name as PNG; an earlier one of that name is replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(adapted.file).stem}.png"
    if path.exists() and path.samefile(adapted.file):
        raise ValueError(f"{path} is the picture itself: choose another folder")
    draw_sheet(adapted, dark).save(path, optimize=True)
    return path
