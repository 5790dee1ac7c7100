"""Thumbnails for pages, as text that HTML can hold, with an outline of the part that the model saw."""

import base64
import io

from PIL import Image, ImageDraw

from ..network.config import HCastConfig
from .pictures import Picture, read_picture
from .transforms import view_box

SIDE = 192  # pixels
OUTLINE = (255, 196, 0)


def make_thumbnail(picture: Picture, config: HCastConfig | None = None, side: int = SIDE) -> str:
    """Return a thumbnail as a ``data:`` URI of about 6 KB; see :func:`draw_thumbnail`."""
    sink = io.BytesIO()
    draw_thumbnail(picture, config, side).save(sink, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def draw_thumbnail(picture: Picture, config: HCastConfig | None = None, side: int = SIDE) -> Image.Image:
    """Return a small copy of a picture.

    Args:
        picture: A file, bytes or an image; see :func:`.pictures.open_picture`.
        config: A model's config; if the model does not see the whole picture, the part that it sees is outlined.
        side: Pixels of the longer side.

    Raises:
        PictureError: if the picture cannot be read.
    """
    whole = read_picture(picture)
    small = whole.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    if config is not None:
        _draw_outline(small, view_box(config, whole.size), small.width / whole.width)

    return small


def _draw_outline(small: Image.Image, box: tuple[float, float, float, float], scale: float) -> None:
    """Draw a box, in pixels of the large picture, unless it lies at or beyond all edges."""
    left, top, right, bottom = (round(value * scale) for value in box)
    if left <= 0 and top <= 0 and right >= small.width and bottom >= small.height:
        return

    inside = max(left, 0), max(top, 0), min(right, small.width) - 1, min(bottom, small.height) - 1
    if inside[0] < inside[2] and inside[1] < inside[3]:
        ImageDraw.Draw(small).rectangle(inside, outline=OUTLINE, width=2)
