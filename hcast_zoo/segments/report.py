"""Write what the model sees in a picture: segmentations, where each level looks, and a sheet of both."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..common.choices import PARTS
from ..data.pictures import read_picture
from ..inference.predictor import Prediction, Predictor
from ..taxonomy.tree import UNKNOWN
from .drawing import (
    Segmentation,
    average_colours,
    draw_boundaries,
    draw_focus,
    focus_scale,
    label_picture,
    resize_labels,
)
from .explain import agreement, explain_levels, focus_map
from .sheet import DARK, LIGHT, PANEL, compose_sheet, hue_panel, segment_hues, whole_panel


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one level read, and where.

    Attributes:
        level: Name of the level.
        stage: Stage from 1 whose segmentation it read.
        node: Name of its node on the path; None if the path has ended above.
        probability: Probability that this level alone gives the node, in [0, 1]; None if there is no node.
        shares: (N,) float32, the share of each of the stage's segments in the decision; they sum to 1.
        focus: (h, w) float32, the share of each pixel of the model's input; they sum to 1.
    """

    level: str
    stage: int
    node: str | None
    probability: float | None
    shares: np.ndarray
    focus: np.ndarray

    @property
    def text(self) -> str:
        """Level, node and probability, as a sheet prints them."""
        return f"{self.level}: left open" if self.node is None else f"{self.level}: {self.node} {self.probability:.1%}"


@dataclasses.dataclass(frozen=True)
class SegmentedPicture:
    """The answer for one picture, its segmentations, and where each level looked.

    Attributes:
        prediction: The path.
        segmentation: The segmentations of all stages.
        readings: One per level, coarse to fine.
        agreement: Focus agreement between the levels, in [0, 1]; see :func:`hcast_zoo.segments.explain.agreement`.
    """

    prediction: Prediction
    segmentation: Segmentation
    readings: tuple[Reading, ...]
    agreement: float

    def to_dict(self) -> dict:
        """Return plain data for JSON: the prediction, and facts about every level and stage."""
        levels = []
        for reading in self.readings:
            levels.append(
                {
                    "level": reading.level,
                    "stage": reading.stage,
                    "node": reading.node,
                    "probability": reading.probability,
                    "shares": reading.shares.tolist(),
                }
            )

        return {
            **self.prediction.to_dict(),
            "agreement": self.agreement,
            "segments": [len(np.unique(labels)) for labels in self.segmentation.maps],
            "levels": levels,
        }


def segment_picture(predictor: Predictor, file: str | Path) -> SegmentedPicture:
    """Label a picture and say what each level saw.

    Args:
        predictor: Model, preprocessing, decoding and number of clusters.
        file: The picture.

    Raises:
        PictureError: if the picture cannot be read, or the model's answer is not finite.
    """
    picture = read_picture(file)
    model, clusters = predictor.model, predictor.num_clusters
    prediction, output = predictor.answer(picture, str(file))

    nodes = [names.index(node) for names, node in zip(predictor.taxonomy.names, prediction.path)]
    ended = len(output.level_logits) - len(nodes)
    targets = torch.tensor([nodes + [UNKNOWN] * ended], device=predictor.device)
    images = predictor.transform(picture)[None].to(predictor.device)
    _, explanation = explain_levels(model, images, output.segments, targets=targets, num_clusters=clusters)
    maps = focus_map(explanation.focus, output.segments)[0].cpu().numpy()

    path = (*prediction.path, *[None] * ended)
    probabilities = (*prediction.probabilities, *[None] * ended)
    readings = []
    for index, level in enumerate(predictor.taxonomy.levels):
        reading = Reading(
            level=level,
            stage=model.config.head_stages[index],
            node=path[index],
            probability=probabilities[index],
            shares=explanation.shares[index][0].cpu().numpy(),
            focus=maps[index],
        )
        readings.append(reading)

    return SegmentedPicture(
        prediction=prediction,
        segmentation=Segmentation.from_output(picture, output, model.config),
        readings=tuple(readings),
        agreement=agreement(explanation.focus).item(),
    )


def draw_sheet(segmented: SegmentedPicture, dark: bool = False) -> Image.Image:
    """Draw the picture, its segmentations with the labels read from each, and below them where each level looked.

    Above is the path. A segment has one hue in all stages, that of the coarsest segment it becomes a part of.

    Args:
        segmented: What to draw.
        dark: On dark paper.
    """
    segmentation, paper = segmented.segmentation, DARK if dark else LIGHT
    answer, view = segmented.prediction, segmentation.view(PANEL)
    title = [" > ".join(answer.path) or "no answer"]
    title.append(f"whole path: {answer.path_probability:.0%}" if answer.path else answer.reason or "")
    if len(segmented.readings) > 1:
        title[1] += f". Focus agreement of the levels: {segmented.agreement:.0%}"
    hues = segment_hues(segmentation.maps[-1])

    columns = [
        [
            (whole_panel(segmentation, PANEL, paper.ground), _view_caption(segmentation)),
            (focus_scale(PANEL, paper.ground), ["look: grey none, yellow most"]),
        ]
    ]
    for stage, labels in enumerate(segmentation.maps, 1):
        readings = [reading for reading in segmented.readings if reading.stage == stage]
        count = len(np.unique(labels))
        noun = "superpixel" if stage == 1 else "segment"
        caption = [f"{count} {noun}{'' if count == 1 else 's'}", *(reading.text for reading in readings)]
        column = [(hue_panel(segmentation, stage, hues), caption)]
        for reading in readings:
            focus = resize_labels(reading.focus, PANEL)
            column.append((draw_focus(view, focus), [f"where {reading.level} looks"]))

        columns.append(column)

    return compose_sheet(columns, title, paper)


def _view_caption(segmentation: Segmentation) -> list[str]:
    """Return the caption of the whole picture."""
    left, top, right, bottom = segmentation.box
    width, height = segmentation.picture.size
    if left > 0.5 or top > 0.5 or right < width - 0.5 or bottom < height - 0.5:
        return ["in yellow: what the model saw"]
    return ["the picture; the model saw it all"]


def write_files(
    segmented: SegmentedPicture, folder: Path, parts: tuple[str, ...] = PARTS, *, dark: bool = False
) -> None:
    """Write the files of one picture into a folder.

    Args:
        segmented: What to write.
        folder: An existing folder.
        parts: ``sheet``: ``sheet.png``. ``overlays``: ``stage_S.average.png`` and ``stage_S.boundaries.png`` of every
            stage, and ``level_L.focus.png`` of every level. ``labels``: ``stage_S.labels.png``, see
            :func:`label_picture`. ``arrays``: ``segments.npz`` with ``stage_S`` (H, W) int32, -1 outside the part that
            the model saw, ``share_L`` (N,) and ``focus_L`` (H, W) float32. Stages and levels count from 1; H and W are
            the picture's.
        dark: Draw the sheet on dark paper.
    """
    segmentation, picture = segmented.segmentation, segmented.segmentation.picture
    if "sheet" in parts:
        draw_sheet(segmented, dark).save(folder / "sheet.png", optimize=True)

    arrays = {}
    for stage in range(1, len(segmentation.maps) + 1):
        labels = arrays[f"stage_{stage}"] = segmentation.labels(stage)
        if "overlays" in parts:
            average_colours(picture, labels).save(folder / f"stage_{stage}.average.png")
            draw_boundaries(picture, labels).save(folder / f"stage_{stage}.boundaries.png")
        if "labels" in parts:
            label_picture(labels).save(folder / f"stage_{stage}.labels.png")

    for number, reading in enumerate(segmented.readings, 1):
        focus = segmentation.in_picture(reading.focus, 0)
        arrays |= {f"share_{number}": reading.shares, f"focus_{number}": focus}
        if "overlays" in parts:
            draw_focus(picture, focus).save(folder / f"level_{number}.focus.png")

    if "arrays" in parts:
        np.savez_compressed(folder / "segments.npz", **arrays)  # type: ignore[arg-type]


def write_folder(
    segmented: SegmentedPicture, output: str | Path, parts: tuple[str, ...] = PARTS, *, dark: bool = False
) -> Path:
    """Write the files of one picture into a new folder below ``output``, named after the picture; return it.

    They are written to a hidden folder that is renamed at the end, so a folder with the final name is complete. After
    an error nothing is left, and the hidden folder of a killed process is replaced. Only one process may write to
    ``output``; see :func:`hcast_zoo.common.claim.own_folder`.

    Args:
        segmented: What to write.
        output: Folder of all pictures.
        parts: See :func:`write_files`.
        dark: See :func:`write_files`.
    """
    output, file = Path(output), segmented.prediction.file
    output.mkdir(parents=True, exist_ok=True)
    hidden = output / f".{_name(file)}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        write_files(segmented, hidden, parts, dark=dark)
        folder = free_folder(output, file)
        os.rename(hidden, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)

    return folder


def free_folder(output: str | Path, file: str | Path) -> Path:
    """Return a free path below ``output`` named after a picture, with a number if the name is taken.

    The number separates pictures of the same name from different folders, and earlier results.
    """
    name, number = _name(file), 1
    while True:
        folder = Path(output) / (name if number == 1 else f"{name}-{number}")
        if not os.path.lexists(folder):
            return folder
        number += 1


def _name(file: str | Path) -> str:
    return re.sub(r"[^\w.+@-]+", "_", Path(file).stem).strip(".") or "picture"
