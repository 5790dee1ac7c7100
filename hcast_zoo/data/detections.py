"""Boxes that detectors write: MegaDetector's JSON, COCO's JSON, and tables as DeepForest's."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..common.files import check_file
from ..common.text import brief, clip
from ..taxonomy.columns import PICTURES, columns_by_name, find_column
from ..taxonomy.sources import read_table
from .boxes import COLUMNS, Box, BoxedPicture
from .listing import Listing

MAX_BYTES = 2**31  # of a file of detections, which is read whole
LABELS, SCORES, NUMBERS = ("label", "class", "category"), ("score", "confidence", "conf"), ("detection_id", "id")


@dataclasses.dataclass
class Detections:
    """Boxes of a survey.

    Attributes:
        source: File that they are from.
        names: Its pictures, in order, as it names them; also those without a box.
        boxes: In order.
        problems: What cannot be a box, because nothing tells its picture.
        failures: Picture to why the detector could not read it.
    """

    source: Path
    names: list[str] = dataclasses.field(default_factory=list)
    boxes: list[Box] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def choose(self, least: float = 0.0, labels: Sequence[str] | None = None) -> list[Box]:
        """Return the boxes with at least a confidence (those without one always), of some labels or of all.

        Raises:
            ValueError: if no box has one of the labels.
        """
        known = {box.label for box in self.boxes}
        if labels and (unknown := [label for label in labels if label not in known]):
            there = ", ".join(sorted(label for label in known if label))
            raise ValueError(f"{self.source}: no box has the label {brief(unknown[0])}; there are {clip(there)}")
        chosen = []
        for box in self.boxes:
            sure = box.confidence is None or box.confidence >= least
            if sure and (not labels or box.label in labels):
                chosen.append(box)

        return chosen


def read_detections(path: str | Path) -> Detections:
    """Read a detector's file.

    Args:
        path: ``.json`` of MegaDetector (edges relative) or COCO (in pixels); or a table with a column for the picture,
            ``xmin``, ``ymin``, ``xmax``, ``ymax`` in pixels, and perhaps a label and a score, as DeepForest's.

    Raises:
        ValueError: if the file is none of these. An invalid box has a ``problem`` instead.
    """
    path = Path(path)
    check_file(path, MAX_BYTES)
    if path.suffix.lower() != ".json":
        return _read_table(path)

    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise ValueError("no list of images")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected detections as MegaDetector or COCO write them: {clip(str(error), 200)}"
        ) from error

    found = Detections(path)
    if isinstance(data.get("annotations"), list):
        _add_coco(found, data)
    else:
        _add_megadetector(found, data)
    return found


def _add_megadetector(found: Detections, data: dict) -> None:
    categories = data.get("detection_categories")
    labels = categories if isinstance(categories, dict) else {}
    for entry in data["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            found.problems.append(f"an image without a file: {brief(entry)}")
            continue

        name = entry["file"]
        found.names.append(name)
        if entry.get("failure"):
            found.failures[name] = str(entry["failure"])
        for number, detection in enumerate(_list(entry.get("detections"))):
            detection = detection if isinstance(detection, dict) else {}
            box = Box.from_numbers(
                name,
                _edges(detection.get("bbox")),
                relative=True,
                number=str(number),
                label=_text(labels.get(str(detection.get("category")), detection.get("category"))),
                confidence=_confidence(detection.get("conf")),
            )
            found.boxes.append(box)


def _add_coco(found: Detections, data: dict) -> None:
    labels, images = {}, {}
    for category in _list(data.get("categories")):
        if isinstance(category, dict):
            labels[brief(category.get("id"))] = _text(category.get("name"))
    for image in data["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            found.problems.append(f"an image without a file_name: {brief(image)}")
            continue
        images[brief(image.get("id"))] = image
        found.names.append(image["file_name"])

    by_name: dict[str, list[Box]] = {}
    for position, annotation in enumerate(data["annotations"]):
        annotation = annotation if isinstance(annotation, dict) else {}
        number, of = _text(annotation.get("id")) or f"#{position}", annotation.get("image_id")
        image = images.get(brief(of))
        if image is None:
            found.problems.append(f"box {number} of image {brief(of)}, which is not in the list")
            continue
        width, height = image.get("width"), image.get("height")
        box = Box.from_numbers(
            image["file_name"],
            _edges(annotation.get("bbox")),
            number=number,
            label=labels.get(brief(annotation.get("category_id"))),
            confidence=_confidence(annotation.get("score")),
            size=(width, height) if type(width) is int and type(height) is int and width and height else None,
        )
        by_name.setdefault(box.name, []).append(box)

    for name in dict.fromkeys(found.names):  # a picture's boxes together: it is decoded once
        found.boxes += by_name.get(name, [])


def _read_table(path: Path) -> Detections:
    header, rows = read_table(path)
    picture, there = find_column(header, PICTURES), columns_by_name(header)
    if picture is None or not all(column in there for column in COLUMNS):
        raise ValueError(f"{path}: expected columns of a picture and {', '.join(COLUMNS)}, got {brief(list(header))}")

    label, score, number = (find_column(header, names) for names in (LABELS, SCORES, NUMBERS))
    found = Detections(path)
    counts: dict[str, int] = {}
    for line, row in rows:
        name = str(row[picture] or "").strip()
        if not name:
            found.problems.append(f"line {line}: a box without a picture")
            continue
        lower = {key.lower(): value for key, value in row.items()}
        counts[name] = counts.get(name, -1) + 1
        box = Box.from_row(
            name,
            lower,
            number=str(row[number]) if number else str(counts[name]),
            label=_text(row[label]) if label else None,
            confidence=_confidence(row[score]) if score else None,
        )
        found.boxes.append(box)

    found.names = list(dict.fromkeys(box.name for box in found.boxes))
    return found


def boxed_pictures(boxes: Sequence[Box], folder: str | Path) -> list[BoxedPicture]:
    """Return the pictures of boxes, whose names are of files in a folder."""
    return [BoxedPicture(os.path.join(folder, box.name), box) for box in boxes]


def box_listing(listing: Listing, boxes: Sequence[Box], folder: str | Path) -> tuple[Listing, int]:
    """Return a listing of the boxes in its pictures, each with its picture's labels.

    Returns:
        The listing, and how many of its pictures have no box and are left out.

    Raises:
        ValueError: if no picture has any.
    """
    by_file: dict[str, list[Box]] = {}
    for box in boxes:
        by_file.setdefault(os.path.abspath(os.path.join(folder, box.name)), []).append(box)

    keep, pictures, without = [], [], 0
    for index, picture in enumerate(listing.pictures):
        of_picture = [] if isinstance(picture, bytes) else by_file.get(os.path.abspath(picture), [])
        without += not of_picture
        for box in of_picture:
            keep.append(index)
            pictures.append(BoxedPicture(picture, box))  # type: ignore[arg-type]

    if not pictures:
        raise ValueError(f"none of the boxes is in a picture of {listing.source}; the first is of {brief(boxes[:1])}")
    boxed = listing.take(keep)
    boxed.pictures = list(pictures)
    return boxed, without


def _edges(bbox: object) -> object:
    """Return left, top, right, bottom of left, top, width, height; anything else as it is."""
    if isinstance(bbox, (list, tuple)) and len(bbox) == 4:
        numbers = [_number(value) for value in bbox]
        if all(value is not None for value in numbers):
            left, top, width, height = numbers
            return left, top, left + width, top + height  # type: ignore[operator]
    return bbox if bbox is not None else "none"


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _confidence(value: object) -> float | None:
    """Return a number in [0, 1]; None for anything else."""
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _text(value: object) -> str | None:
    return None if value is None or value == "" else clip(value, 200)
