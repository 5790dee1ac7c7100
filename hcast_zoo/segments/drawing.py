"""Draw segmentations: label maps, average colours, boundaries, focus.

A label map is an int (H, W) array of segment numbers from 0; -1 marks pixels that the model did not see.
"""

import colorsys
import dataclasses

import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.pictures import Picture, read_picture
from ..data.transforms import view_box
from ..inference.predictor import forward_picture
from ..network.config import HCastConfig
from ..network.model import HCast, HCastOutput
from ..network.superpixels import load_cv2
from .metrics import boundaries

OUTSIDE = -1
PANEL = 224  # pixels: side of a picture in a strip
GAP = 12  # pixels between the pictures
INK, WHITE, EDGE = (32, 33, 36), (255, 255, 255), (255, 255, 0)
PADDING = (124, 116, 104)  # about the mean colour of ImageNet
GOLDEN = (5**0.5 - 1) / 2  # step between hues, with which consecutive numbers get very different ones


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segmentations of one picture, each coarser than the one before and made of its segments.

    Attributes:
        picture: The picture, RGB.
        box: Left, top, right, bottom of the part that the model saw, in the picture's pixels.
        maps: One (h, w) int64 label map per stage, fine to coarse, in the pixels of the model's input.
    """

    picture: Image.Image
    box: tuple[float, float, float, float]
    maps: tuple[np.ndarray, ...]

    @classmethod
    def from_output(
        cls, picture: Image.Image, output: HCastOutput, config: HCastConfig, row: int = 0
    ) -> "Segmentation":
        """Take the segmentations of image ``row`` of an output; the model saw ``eval_transform(config)(picture)``."""
        stages = range(1, len(output.assignments) + 2)
        maps = tuple(output.segment_map(stage)[row].cpu().numpy() for stage in stages)
        return cls(picture, view_box(config, picture.size), maps)

    def labels(self, stage: int) -> np.ndarray:
        """Return the label map of a stage (from 1) in the picture's own pixels, (H, W) int32.

        Pixels that the model did not see are -1.
        """
        return self.in_picture(self.maps[stage - 1].astype(np.int32), OUTSIDE)

    def in_picture(self, values: np.ndarray, outside: float) -> np.ndarray:
        """Resize an (h, w) array of the model's input to the picture's pixels, by nearest neighbour."""
        left, top, right, bottom = self.box
        rows, row_in = _nearest(self.picture.height, top, bottom, values.shape[0])
        columns, column_in = _nearest(self.picture.width, left, right, values.shape[1])
        return np.where(row_in[:, None] & column_in, values[rows[:, None], columns], values.dtype.type(outside))

    def view(self, size: int = PANEL) -> Image.Image:
        """Return the part that the model saw, resized from the original picture to (size, size) pixels."""
        left, top, right, bottom = self.box
        width, height = self.picture.size  # rounding can put the box a fraction of a pixel outside
        box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        is_inside = box[2] - box[0] > right - left - 1 and box[3] - box[1] > bottom - top - 1
        if is_inside:
            return self.picture.resize((size, size), Image.Resampling.BICUBIC, box)

        # The model saw a padded picture.
        scale_x, scale_y = size / (right - left), size / (bottom - top)
        corner = round((box[0] - left) * scale_x), round((box[1] - top) * scale_y)
        sides = max(1, round((box[2] - box[0]) * scale_x)), max(1, round((box[3] - box[1]) * scale_y))
        square = Image.new("RGB", (size, size), PADDING)
        square.paste(self.picture.resize(sides, Image.Resampling.BICUBIC, box), corner)
        return square


def resize_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Return a label map resized to (size, size) by nearest neighbour."""
    rows, columns = (_nearest(size, 0, size, side)[0] for side in labels.shape)
    return labels[rows[:, None], columns]


def average_colours(picture: Image.Image, labels: np.ndarray) -> Image.Image:
    """Paint every segment in its average colour; pixels that the model did not see do not change.

    Args:
        picture: RGB, of the size of the label map.
        labels: (H, W) int.
    """
    pixels = _pixels(picture, labels)
    flat = labels.ravel() + 1
    count = np.bincount(flat).clip(1)
    channels = [np.bincount(flat, pixels[..., c].ravel()) / count for c in range(3)]
    painted = np.stack(channels, -1).round().astype(np.uint8)[flat].reshape(pixels.shape)
    return Image.fromarray(np.where((labels == OUTSIDE)[..., None], pixels, painted))


def draw_boundaries(
    picture: Image.Image, labels: np.ndarray, colour: tuple[int, int, int] = EDGE, width: int | None = None
) -> Image.Image:
    """Draw the lines between segments on a picture.

    Args:
        picture: RGB, of the size of the label map.
        labels: (H, W) int.
        colour: Colour of the lines, RGB in [0, 255].
        width: Width of the lines in pixels; by default it grows with the picture.
    """
    pixels = _pixels(picture, labels).copy()
    pixels[boundaries(labels, width or max(1, min(labels.shape) // 200))] = colour
    return Image.fromarray(pixels)


def label_picture(labels: np.ndarray) -> Image.Image:
    """Return a label map as a picture whose pixels are label + 1, and 0 outside.

    With up to 255 segments it has a palette of distinct colours; with more it is 16-bit grey.
    """
    values = labels + 1
    if values.max(initial=0) > 255:
        return Image.fromarray(values.astype(np.uint16))

    palette = [0, 0, 0]
    for i in range(255):
        colour = colorsys.hsv_to_rgb(i * GOLDEN % 1, 0.45 + 0.5 * (i % 3) / 2, 1 - 0.45 * (i % 2))
        palette += [round(255 * channel) for channel in colour]

    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(palette)
    return picture


def draw_focus(picture: Image.Image, focus: np.ndarray) -> Image.Image:
    """Colour a grey picture by where a level looks: grey (not at all), then dark violet to yellow (most).

    The colours are viridis, whose steps look equally large, also to colour-blind readers and in print. Their strength
    is the square root of the focus; otherwise only the highest peaks would be visible.

    Args:
        picture: RGB, of the size of the focus.
        focus: (H, W) float of 0 or more.
    """
    _pixels(picture, focus)
    strength = np.sqrt(focus / max(focus.max(initial=0), 1e-12))
    return _on_grey(picture, (255 * strength).astype(np.uint8))


def focus_scale(size: int = PANEL, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return the key to :func:`draw_focus`: its colours on grey, from no focus (left) to most (right)."""
    key, height = Image.new("RGB", (size, size), ground), size // 16
    levels = np.broadcast_to(np.linspace(0, 255, size).astype(np.uint8), (height, size))
    key.paste(_on_grey(Image.new("RGB", (size, height), (128, 128, 128)), levels), (0, size - height))
    return key


def _on_grey(picture: Image.Image, strength: np.ndarray) -> Image.Image:
    """Colour a grey picture by (H, W) uint8 values."""
    cv2 = load_cv2()
    colours = cv2.cvtColor(cv2.applyColorMap(np.ascontiguousarray(strength), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = Image.fromarray(np.ascontiguousarray(strength)).point(lambda value: value * 4 // 5)
    return Image.composite(Image.fromarray(colours), ImageOps.grayscale(picture).convert("RGB"), opacity)


@torch.inference_mode()
def segment_strip(model: HCast, picture: Picture, size: int = PANEL) -> Image.Image:
    """Return a picture and its segmentations side by side, fine to coarse.

    Args:
        model: A model in eval mode.
        picture: A file, an image or an array; see :func:`hcast_zoo.data.pictures.open_picture`.
        size: Side of each panel in pixels.

    Raises:
        PictureError: if the picture cannot be read.
    """
    picture = read_picture(picture, WHITE)
    output = forward_picture(model, picture)
    return strip(Segmentation.from_output(picture, output, model.config), size)


def strip(segmentation: Segmentation, size: int = PANEL) -> Image.Image:
    """Return the part that the model saw and its segmentations side by side, fine to coarse."""
    panels = [segmentation.view(size)]
    for stage in range(1, len(segmentation.maps) + 1):
        panels.append(stage_panel(segmentation, stage, size))

    gap = max(2, size * GAP // PANEL)
    canvas = Image.new("RGB", (len(panels) * (size + gap) - gap, size), WHITE)
    for i, panel in enumerate(panels):
        canvas.paste(panel, (i * (size + gap), 0))

    return canvas


def stage_panel(segmentation: Segmentation, stage: int, size: int = PANEL) -> Image.Image:
    """Return the part that the model saw, with a stage's (from 1) segments in average colours and lines between."""
    labels = resize_labels(segmentation.maps[stage - 1], size)
    return draw_boundaries(average_colours(segmentation.view(size), labels), labels, INK)


def _nearest(count: int, start: float, end: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the cell that each of ``count`` pixels is in, (count,) int64, and whether it is in one, bool.

    There are ``side`` cells between the coordinates ``start`` and ``end``.
    """
    index = np.floor((np.arange(count) + 0.5 - start) / (end - start) * side).astype(np.int64)
    return index.clip(0, side - 1), (index >= 0) & (index < side)


def _pixels(picture: Image.Image, labels: np.ndarray) -> np.ndarray:
    """Return the picture as (H, W, 3) uint8, if it is RGB and of the label map's size."""
    if picture.mode != "RGB" or picture.size != labels.shape[::-1]:
        raise ValueError(
            f"expected an RGB picture of the label map's size, {labels.shape[1]}x{labels.shape[0]} pixels, got "
            f"{picture.mode} {picture.width}x{picture.height}"
        )

    return np.asarray(picture)
