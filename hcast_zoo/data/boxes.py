"""Boxes in pictures, each treated as a picture; how a box becomes one is stored with the weights."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from ..common.choices import BOX_SHAPES
from ..common.text import brief, from_metadata

KEY = "boxes"  # of the weights' metadata
COLUMNS = ("xmin", "ymin", "xmax", "ymax")
UNIT = "box_unit"  # column that says "relative" where edges are fractions of the picture's sides
LEAST_INSIDE = 0.5  # part of a box's area that must be in the picture


@dataclasses.dataclass(frozen=True)
class Box:
    """A box, as a detector or a table gives it.

    Attributes:
        name: Of its picture, as it was given.
        edges: Left, top, right, bottom; pixels of the upright picture, or fractions of its sides.
        relative: Whether they are fractions.
        number: Tells it from the other boxes of its picture, or its number in the file that it is from.
        label: The detector's; None if it gives none.
        confidence: The detector's, in [0, 1].
        size: Width and height of the picture that the edges are for; None if nobody says.
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
        """Take the edges from what may be no numbers; then the box has a problem."""
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
        shape: ``square``: the shorter side then grows to the longer; ``rectangle``: it does not.
        min_size: Pixels that the sides have at least.

    Raises:
        ValueError: if a field is out of range.
    """

    padding: float = 0.1
    shape: str = "square"
    min_size: int = 0

    def __post_init__(self):
        number = isinstance(self.padding, (int, float)) and not isinstance(self.padding, bool)
        if not number or not 0 <= self.padding <= 10:
            raise ValueError(f"box padding: expected a fraction from 0 to 10, got {brief(self.padding)}")
        if self.shape not in BOX_SHAPES:
            raise ValueError(f"box shape: expected {' or '.join(BOX_SHAPES)}, got {brief(self.shape)}")
        if type(self.min_size) is not int or not 0 <= self.min_size <= 65536:
            raise ValueError(f"box min-size: expected 0 to 65536 pixels, got {brief(self.min_size)}")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "BoxGeometry | None":
        """Return what weights were trained on; None for those trained on whole pictures.

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
        file: The whole picture's.
        box: Where.
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
            ValueError: if the box is none in this picture; the message has the numbers.
        """
        return picture.crop(place(self.box, self.geometry, picture.size))


def with_geometry(pictures: Iterable, geometry: BoxGeometry | None) -> list:
    """Return the same pictures, with a way in which those that are boxes become pictures; None changes nothing."""
    if geometry is None:
        return list(pictures)
    return [
        dataclasses.replace(picture, geometry=geometry) if isinstance(picture, BoxedPicture) else picture
        for picture in pictures
    ]


def place(box: Box, geometry: BoxGeometry, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) that a box becomes in a picture of a size.

    The box is cut off at the picture's edges, padded, made square, made large enough, and moved into the picture as far
    as it fits, so that it may be no square where the picture is too small for one.

    Raises:
        ValueError: if the edges are not numbers, enclose nothing, are for a picture of another size, or less than half
            of the box is in the picture.

    Example:
        >>> place(Box("a", (0.5, 0.5, 0.75, 0.6), relative=True), BoxGeometry(padding=0.1), (400, 400))
        (190, 160, 310, 280)
        >>> place(Box("a", (0, 0, 20, 10)), BoxGeometry(padding=0.1), (400, 400))
        (0, 0, 24, 24)
    """
    if box.problem is not None:
        raise ValueError(box.problem)
    told = f"box {', '.join(f'{edge:g}' for edge in box.edges)}"
    if not all(map(math.isfinite, box.edges)):
        raise ValueError(f"{told}: expected finite numbers")
    if box.size is not None and box.size != size:
        raise ValueError(f"{told}: it is for a picture of {_by(box.size)} pixels, and this one has {_by(size)}")

    edges = [edge * side for edge, side in zip(box.edges, size * 2)] if box.relative else list(box.edges)
    width, height = edges[2] - edges[0], edges[3] - edges[1]
    if width <= 0 or height <= 0:
        raise ValueError(f"{told}: expected a width and a height above 0")

    left, top, right, bottom = (min(max(edge, 0.0), side) for edge, side in zip(edges, size * 2))
    inside = (right - left) * (bottom - top) / (width * height)
    if inside < LEAST_INSIDE:
        raise ValueError(f"{told}: {inside:.0%} of it is in the picture of {_by(size)} pixels")

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
