"""One picture before and after adaptation: its answers, its segments, and a sheet that shows both."""

import dataclasses
from pathlib import Path

from PIL import Image

from ..data.pictures import PictureError, read_picture
from ..inference.predictor import Prediction, Predictor
from ..segments.drawing import Segmentation, compose_sheet, stage_panel
from ..segments.metrics import rand_distance
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
        adaptation: All tensors.
    """

    file: str
    feedback: str
    target: str | None
    probability: tuple[float, float] | None
    before: Prediction
    after: Prediction
    segmentations: tuple[Segmentation, Segmentation]
    segment_change: tuple[float, ...]
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
        }


def adapt_picture(
    predictor: Predictor,
    file: str | Path,
    target: str | None = None,
    *,
    feedback: str = "target",
    config: AdaptConfig | None = None,
) -> AdaptedPicture:
    """Adapt a predictor's model to a picture; see :func:`adapt` for target, feedback and errors.

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

    change = []
    for stage in range(2, len(adaptation.before.assignments) + 2):
        before, after = adaptation.before.segment_map(stage)[0], adaptation.after.segment_map(stage)[0]
        change.append(rand_distance(before, after))

    return AdaptedPicture(
        file=str(file),
        feedback=feedback,
        target=target if node is None else taxonomy.names[node[0]][node[1]],
        probability=None if node is None else (probabilities[0], probabilities[1]),
        before=predictions[0],
        after=predictions[1],
        segmentations=(segmentations[0], segmentations[1]),
        segment_change=tuple(change),
        adaptation=adaptation,
    )


def draw_sheet(adapted: AdaptedPicture) -> Image.Image:
    """Draw the picture and its segmentations, fine to coarse: before adaptation above, after it below."""
    columns = []
    for row, segmentation in enumerate(adapted.segmentations):
        answer, when = ((adapted.before, "before"), (adapted.after, "after"))[row]
        texts = [f"{when}: path {answer.path_probability:.1%}", *answer.path]
        if adapted.probability is not None:
            texts.append(f"target {adapted.target}: {adapted.probability[row]:.1%}")

        panels = [(segmentation.view(), texts)]
        for stage in range(1, len(segmentation.maps) + 1):
            panels.append((stage_panel(segmentation, stage), [f"segments of stage {stage}"]))

        columns.append(panels)

    return compose_sheet([*zip(*columns)])


def write_sheet(adapted: AdaptedPicture, folder: str | Path) -> Path:
    """Write the sheet to a folder, under the picture's name as PNG; an earlier one of that name is replaced."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(adapted.file).stem}.png"
    if path.exists() and path.samefile(adapted.file):
        raise ValueError(f"{path} is the picture itself: choose another folder")

    draw_sheet(adapted).save(path, optimize=True)
    return path
