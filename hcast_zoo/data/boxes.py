"""Boxes in pictures, each treated as a picture; how a box becomes a picture is stored with the weights."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from ..common.choices import BOX_SHAPES
from ..common.text import brief, from_metadata

KEY = "boxes"  # in the weights' metadata
COLUMNS = ("xmin", "ymin", "xmax", "ymax")
UNIT = "box_unit"  # column that says "relative" where edges are fractions of the picture's sides
LEAST_INSIDE = 0.5  # smallest fraction of a box's area that must lie in the picture


@dataclasses.dataclass(frozen=True)
class Box:
    """A box, as a detector or a table gives it.

    Attributes:
        name: Name of its picture, as given.
        edges: Left, top, right, bottom; in pixels of the upright picture, or as fractions of its sides.
        relative: Whether the edges are fractions.
        number: What tells it from other boxes of its picture: a count from 0, or an id in the file it was read from.
        label: The detector's label, or None.
        confidence: The detector's confidence in [0, 1], or None.
        size: Width and height of the picture that the edges are for; None if unknown.
        problem: What is wrong with the edges, or None.
    """

    name: str
    edges: tuple[float, float, float, float]
    relative: bool = False
    number: str = ""
    label: str | None = None
    confidence: float | None = None
    size: tuple[int, int] | None = None
    problem: str | None = None

    @classmethod
    def from_row(cls, name: str, row: Mapping, number: str = "", **fields) -> "Box":
        """Take the edges from the cells of a table: ``COLUMNS``, and ``UNIT`` if it is there."""
        cells = [row.get(column) for column in COLUMNS]
        return cls.from_numbers(name, cells, relative=row.get(UNIT) == "relative", number=number, **fields)

    @classmethod
    def from_numbers(cls, name: str, values: object, **fields) -> "Box":
        """Take the edges from values of any kind; if they are not four numbers, the box has a problem."""
        try:
            left, top, right, bottom = map(float, values)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            problem = f"expected a box of four numbers, got {brief(values)}"
            return cls(name, (math.nan,) * 4, problem=problem, **fields)
        return cls(name, (left, top, right, bottom), **fields)

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "edges": [edge if math.isfinite(edge) else None for edge in self.edges],
            "relative": self.relative,
            "number": self.number,
            "label": self.label,
            "confidence": self.confidence,
        }


@dataclasses.dataclass(frozen=True)
class BoxGeometry:
    """How a box becomes a picture.

    Args:
        padding: What is added at each edge, as a fraction of the box's width or height, 0 to 10.
        shape: ``square``: after padding, the shorter side grows to the length of the longer; ``rectangle``: not.
        min_size: Smallest length of a side in pixels.

    Raises:
        ValueError: if a field is out of range.
    """

    padding: float = 0.1
    shape: str = "square"
    min_size: int = 0

    def __post_init__(self):
        is_number = isinstance(self.padding, (int, float)) and not isinstance(self.padding, bool)
        if not is_number or not 0 <= self.padding <= 10:
            raise ValueError(f"box padding: expected a fraction from 0 to 10, got {brief(self.padding)}")
        if self.shape not in BOX_SHAPES:
            raise ValueError(f"box shape: expected {' or '.join(BOX_SHAPES)}, got {brief(self.shape)}")
        if type(self.min_size) is not int or not 0 <= self.min_size <= 65536:
            raise ValueError(f"box min-size: expected 0 to 65536 pixels, got {brief(self.min_size)}")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "BoxGeometry | None":
        """Return the geometry that weights were trained with; None if they were trained on whole pictures.

        Raises:
            ValueError: if the metadata are damaged.
        """
        return from_metadata(metadata, KEY, lambda fields: cls(**fields))

    def to_metadata(self) -> dict[str, str]:
        """Return the entry of the weights' metadata."""
        return {KEY: json.dumps(dataclasses.asdict(self))}

    def __str__(self) -> str:
        least = f", {self.min_size} pixels at least" if self.min_size else ""
        return f"boxes padded by {self.padding:.1%} at each edge, {self.shape}{least}"


@dataclasses.dataclass(frozen=True)
class BoxedPicture(os.PathLike):
    """The picture in a box; its name is that of the whole picture's file.

    Attributes:
        file: File of the whole picture.
        box: The box in it.
        geometry: How the box becomes a picture.
    """

    file: str | Path
    box: Box
    geometry: BoxGeometry = BoxGeometry()

    def __fspath__(self) -> str:
        return str(self.file)

    def __str__(self) -> str:
        return str(self.file)

    @property
    def key(self) -> str:
        """What tells this picture from others: the file, the edges, the geometry."""
        return f"{self.file}\0{self.box.edges}\0{self.box.relative}\0{self.box.number}\0{self.geometry}"

    def cut(self, picture: Image.Image) -> Image.Image:
        """Cut the box out of the whole picture.

        Raises:
            ValueError: if the box does not fit this picture; the message has the numbers.
        """
        return picture.crop(crop_edges(self.box, self.geometry, picture.size))


def with_geometry(pictures: Iterable, geometry: BoxGeometry | None) -> list:
    """Return the same pictures, with a new geometry for those that are boxes; None changes nothing."""
    changed = []
    for picture in pictures:
        if geometry is not None and isinstance(picture, BoxedPicture):
            picture = dataclasses.replace(picture, geometry=geometry)
        changed.append(picture)

    return changed


def crop_edges(box: Box, geometry: BoxGeometry, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) of a picture that become the picture of a box.

    The box is cut off at the picture's edges, padded, made square, made large enough, and moved into the picture. If
    the picture is too small for a square, the result is as large as fits.

    Args:
        box: The box.
        geometry: How it becomes a picture.
        size: Width and height of the whole picture.

    Raises:
        ValueError: if the edges are not numbers, enclose nothing, are for a picture of another size, or less than half
            of the box is in the picture.

    Example:
        >>> crop_edges(Box("a", (0.5, 0.5, 0.75, 0.6), relative=True), BoxGeometry(padding=0.1), (400, 400))
        (190, 160, 310, 280)
        >>> crop_edges(Box("a", (0, 0, 20, 10)), BoxGeometry(padding=0.1), (400, 400))
        (0, 0, 24, 24)
    """
    if box.problem is not None:
        raise ValueError(box.problem)

    numbers = ", ".join(f"{edge:g}" for edge in box.edges)
    if not all(map(math.isfinite, box.edges)):
        raise ValueError(f"box {numbers}: expected finite numbers")
    if box.size is not None and box.size != size:
        raise ValueError(f"box {numbers}: it is for a picture of {_by(box.size)} pixels, and this one has {_by(size)}")

    edges = [edge * side for edge, side in zip(box.edges, size * 2)] if box.relative else list(box.edges)
    width, height = edges[2] - edges[0], edges[3] - edges[1]
    if width <= 0 or height <= 0:
        raise ValueError(f"box {numbers}: expected a width and a height above 0")

    left, top, right, bottom = (min(max(edge, 0.0), side) for edge, side in zip(edges, size * 2))
    inside = (right - left) * (bottom - top) / (width * height)
    if inside < LEAST_INSIDE:
        raise ValueError(f"box {numbers}: {inside:.0%} of it is in the picture of {_by(size)} pixels")

    sides = [side * (1 + 2 * geometry.padding) for side in (right - left, bottom - top)]
    if geometry.shape == "square":
        sides = [max(sides)] * 2
    sides = [max(side, geometry.min_size, 1.0) for side in sides]

    starts, ends = [], []
    for middle, side, whole in zip(((left + right) / 2, (top + bottom) / 2), sides, size):
        length = min(round(side), whole)
        start = min(max(round(middle - side / 2), 0), whole - length)
        starts.append(start)
        ends.append(start + length)

    return starts[0], starts[1], ends[0], ends[1]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
