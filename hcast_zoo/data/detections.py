"""Files of detectors: MegaDetector's JSON, COCO's JSON, and tables like DeepForest's."""

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

MAX_BYTES = 2**31  # largest file of detections, which is read whole
LABELS, SCORES, NUMBERS = ("label", "class", "category"), ("score", "confidence", "conf"), ("detection_id", "id")


@dataclasses.dataclass
class Detections:
    """Boxes of a survey.

    Attributes:
        source: The detector's file.
        names: Names of its pictures, in its order; also of those without a box.
        boxes: The boxes, in the order of the file; those of COCO's JSON are grouped by picture.
        problems: Entries that cannot become boxes, because their picture is unknown.
        failures: Why the detector could not read a picture, by the picture's name.
    """

    source: Path
    names: list[str] = dataclasses.field(default_factory=list)
    boxes: list[Box] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def choose(self, least: float = 0.0, labels: Sequence[str] | None = None) -> list[Box]:
        """Return the boxes that are used.

        Args:
            least: Smallest confidence; boxes without a confidence are always used.
            labels: The labels to use; all by default.

        Raises:
            ValueError: if no box has one of the labels.
        """
        existing = {box.label for box in self.boxes}
        for label in labels or ():
            if label not in existing:
                known = ", ".join(sorted(name for name in existing if name))
                raise ValueError(f"{self.source}: no box has the label {brief(label)}; there are {clip(known)}")

        chosen = []
        for box in self.boxes:
            is_sure = box.confidence is None or box.confidence >= least
            if is_sure and (not labels or box.label in labels):
                chosen.append(box)

        return chosen


def read_detections(path: str | Path) -> Detections:
    """Read a detector's file.

    Args:
        path: ``.json`` of MegaDetector (relative edges) or COCO (edges in pixels); or a table like DeepForest's, with a
            column for the picture, ``xmin``, ``ymin``, ``xmax``, ``ymax`` in pixels, and perhaps a label and a score.

    Raises:
        ValueError: if the file is none of these. For an invalid box there is no error: it has a ``problem``.
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

    detections = Detections(path)
    if isinstance(data.get("annotations"), list):
        _add_coco(detections, data)
    else:
        _add_megadetector(detections, data)
    return detections


def _add_megadetector(detections: Detections, data: dict) -> None:
    categories = data.get("detection_categories")
    labels = categories if isinstance(categories, dict) else {}
    for entry in data["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            detections.problems.append(f"an image without a file: {brief(entry)}")
            continue

        name = entry["file"]
        detections.names.append(name)
        if entry.get("failure"):
            detections.failures[name] = str(entry["failure"])

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
            detections.boxes.append(box)


def _add_coco(detections: Detections, data: dict) -> None:
    labels, images = {}, {}
    for category in _list(data.get("categories")):
        if isinstance(category, dict):
            labels[brief(category.get("id"))] = _text(category.get("name"))

    for image in data["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            detections.problems.append(f"an image without a file_name: {brief(image)}")
            continue
        images[brief(image.get("id"))] = image
        detections.names.append(image["file_name"])

    by_name: dict[str, list[Box]] = {}
    for position, annotation in enumerate(data["annotations"]):
        annotation = annotation if isinstance(annotation, dict) else {}
        number, image_id = _text(annotation.get("id")) or f"#{position}", annotation.get("image_id")
        image = images.get(brief(image_id))
        if image is None:
            detections.problems.append(f"box {number} of image {brief(image_id)}, which is not in the list")
            continue

        width, height = image.get("width"), image.get("height")
        has_size = type(width) is int and type(height) is int and width and height
        box = Box.from_numbers(
            image["file_name"],
            _edges(annotation.get("bbox")),
            number=number,
            label=labels.get(brief(annotation.get("category_id"))),
            confidence=_confidence(annotation.get("score")),
            size=(width, height) if has_size else None,
        )
        by_name.setdefault(box.name, []).append(box)

    for name in dict.fromkeys(detections.names):  # boxes of a picture together, so that it is decoded once
        detections.boxes += by_name.get(name, [])


def _read_table(path: Path) -> Detections:
    header, rows = read_table(path)
    picture = find_column(header, PICTURES)
    if picture is None or not set(COLUMNS) <= columns_by_name(header).keys():
        raise ValueError(f"{path}: expected columns of a picture and {', '.join(COLUMNS)}, got {brief(list(header))}")

    label, score, number = (find_column(header, names) for names in (LABELS, SCORES, NUMBERS))
    detections = Detections(path)
    counts: dict[str, int] = {}
    for line, row in rows:
        name = str(row[picture] or "").strip()
        if not name:
            detections.problems.append(f"line {line}: a box without a picture")
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
        detections.boxes.append(box)

    detections.names = list(dict.fromkeys(box.name for box in detections.boxes))
    return detections


def boxed_pictures(boxes: Sequence[Box], folder: str | Path) -> list[BoxedPicture]:
    """Return the boxes as pictures; their names are those of files in a folder."""
    return [BoxedPicture(os.path.join(folder, box.name), box) for box in boxes]


def box_listing(listing: Listing, boxes: Sequence[Box], folder: str | Path) -> tuple[Listing, int]:
    """Replace the pictures of a listing by the boxes in them, each with its picture's labels.

    Args:
        listing: Labelled pictures.
        boxes: Boxes in pictures, some of which the listing has.
        folder: Folder of the files that the boxes name.

    Returns:
        The listing of the boxes, and how many pictures have no box and are left out.

    Raises:
        ValueError: if no picture has a box.
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
    """Turn left, top, width, height into left, top, right, bottom; anything else is returned as it is."""
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
