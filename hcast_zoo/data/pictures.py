"""Read pictures of any common format as 8-bit RGB or RGBA."""

import functools
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.files import check_file, sha256
from ..common.formats import HINTS, formats
from ..common.text import brief, clip
from .boxes import BoxedPicture
from .tar_shards import open_member

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger picture is refused, not loaded
MAX_SIDE = 1_000_000  # pixels; Pillow keeps a pointer for each row
MAX_BYTES = 2**30  # more than MAX_PIXELS take without compression; a larger file is not read
NO_FILE = "no such file"  # the reason of an error
NO_NAME = "picture"  # name of a picture without a file, in messages and predictions

# What can be read: a file's name, its bytes, a binary file object, a PIL image, or an array for :func:`from_array`.
Picture = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray


class PictureError(ValueError):
    """A picture cannot be read.

    Args:
        reason: Why, without the picture's name.
        file: The picture's name, if it has one; ``str(error)`` begins with it.
    """

    def __init__(self, reason: str, file: str | None = None):
        super().__init__(reason, file)
        self.reason, self.file = reason, file

    def __str__(self) -> str:
        return self.reason if self.file is None else f"{self.file}: {self.reason}"


def is_picture(value: Any) -> TypeGuard[Picture]:
    """Return whether a value is one picture, not a collection; an array of more than 3 axes is a collection."""
    if isinstance(value, np.ndarray):
        return value.ndim <= 3
    return isinstance(value, (str, os.PathLike, bytes, Image.Image)) or hasattr(value, "read")


def picture_name(picture: Any) -> str:
    """Return the name of a picture's file, as it was given or as an image or a file object knows it; else "picture"."""
    if isinstance(picture, (str, os.PathLike)):
        return str(picture)

    for attribute in ("filename", "name"):  # of PIL's images and of open files; the latter may be a number
        name = getattr(picture, attribute, None)
        if isinstance(name, (str, Path)) and str(name):
            return str(name)

    return NO_NAME


def content_digest(picture: str | Path | bytes | BoxedPicture) -> str:
    """Return the SHA-256 of a picture's file or bytes; for a box, of the file, the edges and the geometry.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(picture, BoxedPicture):
        key = f"{content_digest(picture.file)} {picture.box.edges} {picture.geometry}"
        return hashlib.sha256(key.encode()).hexdigest()

    try:
        return hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else sha256(picture)
    except NotADirectoryError:  # perhaps in a tar shard
        return hashlib.sha256(picture_bytes(picture)).hexdigest()  # type: ignore[arg-type]


def picture_bytes(file: str | Path) -> bytes:
    """Return the bytes of a picture's file, which may lie in a tar shard.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is a pipe or a device, too large, or in a damaged shard.
    """
    check_file(file, MAX_BYTES)
    try:
        return Path(file).read_bytes()
    except NotADirectoryError:
        member = open_member(file, MAX_BYTES)
        if member is None:
            raise
        return member.read()


def open_picture(source: Picture, at_least: int | None = None) -> Image.Image:
    """Read a picture upright, as 8-bit RGB or RGBA; from an animated file, the first frame.

    Grey, palette, CMYK and 16-bit pictures are converted. 16-bit and float pictures are scaled to [0, 255], float ones
    by their own range if it exceeds [0, 1].

    Args:
        source: A file's name, its bytes or a file object (read from its current position); a PIL image (if animated,
            its current frame); an array, see :func:`from_array`; or a :class:`.boxes.BoxedPicture`, whose box is cut
            out. Images and arrays are not modified.
        at_least: Decode a JPEG file at 1/2, 1/4 or 1/8 of its size, as long as each side keeps this many pixels. This
            is faster, but the pixels differ from those of the whole picture resized. Boxes are cut out of whole
            pictures.

    Raises:
        PictureError: if there is no such file, it is not a complete picture, it has over 100 million pixels, or the
            box is not in it.
    """
    if isinstance(source, BoxedPicture):
        return _cut(source, open_picture)

    name = picture_name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: the limit below is ours
            if isinstance(source, np.ndarray):
                return from_array(source)
            if isinstance(source, Image.Image):
                return _upright(source.copy())
            with _open(source) as file, Image.open(file, formats=formats()) as picture:
                if at_least is not None:
                    _check_size(*picture.size)
                    picture.draft(None, (at_least, at_least))
                return _upright(picture)
    except PictureError as error:
        raise PictureError(error.reason, name) from error.__cause__
    except FileNotFoundError as error:
        raise PictureError(NO_FILE, name) from error
    except IsADirectoryError as error:
        raise PictureError("expected a picture, got a folder", name) from error
    except UnidentifiedImageError as error:
        hint = HINTS.get(os.path.splitext(name)[1].lower())
        told = "not a picture, or of an unknown format" + (f". {hint}" if hint else "")
        raise PictureError(told, name) from error
    except MemoryError as error:
        raise PictureError("this picture needs more memory than there is: make it smaller first", name) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError(f"cannot be read: {error.strerror}", name) from error
        raise PictureError(f"damaged or incomplete picture: {clip(error)}", name) from error


def _cut(boxed: BoxedPicture, read: Callable[[str], Image.Image]) -> Image.Image:
    """Return the picture in a box."""
    try:
        changed = os.stat(boxed).st_mtime_ns
    except (OSError, ValueError):  # no such file, or a name that cannot be a file's
        changed = 0

    whole = _read_whole(read, str(boxed), changed)
    try:
        return boxed.cut(whole)
    except ValueError as error:
        raise PictureError(str(error), str(boxed)) from error


@functools.lru_cache(maxsize=1)
def _read_whole(read: Callable[[str], Image.Image], file: str, changed: int) -> Image.Image:
    """Return a whole picture; it is decoded once if its boxes follow each other."""
    return read(file)


def open_as_official(source: Picture) -> Image.Image:
    """Read a picture as the authors' loader does: ignore EXIF orientation, and show the colour of transparent parts.

    If that fails, :func:`open_picture` reads the picture, or says why it cannot.

    Source: torchvision's ``default_loader``; docs/official_differences.md, 42.
    """
    if isinstance(source, BoxedPicture):
        return _cut(source, open_as_official)

    try:
        if isinstance(source, np.ndarray | Image.Image):
            return open_picture(source).convert("RGB")
        with _open(source) as file, Image.open(file, formats=formats()) as picture:
            _check_size(*picture.size)
            return picture.convert("RGB")
    except Exception:
        return open_picture(source).convert("RGB")


def from_array(pixels: np.ndarray) -> Image.Image:
    """Turn an array into a picture, 8-bit RGB or RGBA.

    Args:
        pixels: (H, W) or (H, W, 1) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8 in [0, 255], or uint16, which is
            scaled from [0, 65535].

    Raises:
        PictureError: if the array has another shape or type, is empty or too large.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in pixels.shape:
        hint = ""
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            hint = ": channels come last, array.transpose(1, 2, 0)"
        raise PictureError(
            f"expected an array of pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}{hint}"
        )

    if pixels.dtype not in (np.uint8, np.uint16):
        raise PictureError(
            f"expected pixels of uint8 in [0, 255] or uint16, got {pixels.dtype}: scale them and convert with "
            "array.astype('uint8')"
        )

    _check_size(pixels.shape[1], pixels.shape[0])
    if pixels.dtype == np.uint16:
        pixels = _to_uint8(pixels, 0.0, 65535.0)
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[..., 0]

    return to_8_bit(Image.fromarray(np.ascontiguousarray(pixels)))


def _upright(picture: Image.Image) -> Image.Image:
    """Decode a picture in place, apply its EXIF orientation, and return it as 8-bit RGB or RGBA."""
    _check_size(*picture.size)
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return to_8_bit(picture)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise PictureError(
            f"{width}x{height} pixels, expected {MAX_PIXELS:,} at most, {MAX_SIDE:,} per side: make it smaller first"
        )

    if not width or not height:
        raise PictureError(f"{width}x{height} pixels: expected at least one")


class _File(io.BufferedReader):
    """A file that never allocates more memory than its own size, whatever length a header in it claims."""

    def __init__(self, path: str | os.PathLike, size: int):
        super().__init__(io.FileIO(path))
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _open(source: str | os.PathLike | bytes | BinaryIO) -> BinaryIO:
    """Open a picture file; refuse pipes and devices, which can block or never end."""
    if isinstance(source, bytes):
        return io.BytesIO(source)

    if hasattr(source, "read"):
        data = source.read(MAX_BYTES + 1)
        if not isinstance(data, bytes):
            raise PictureError("expected a file object that gives bytes: open it with mode 'rb'")
        if len(data) > MAX_BYTES:
            raise PictureError(f"expected {MAX_BYTES:,} bytes at most, got more: is it a picture?")
        return io.BytesIO(data)

    if not isinstance(source, (str, os.PathLike)):
        raise PictureError(
            f"expected a picture (a name, bytes, an open file, a PIL image or an array), got {brief(source)}"
        )

    try:
        status = os.stat(source)
    except NotADirectoryError:
        member = _member(source)
        if member is None:
            raise
        return member

    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise PictureError("expected a file, got a pipe, a socket or a device")
    if status.st_size > MAX_BYTES:
        raise PictureError(f"{status.st_size:,} bytes, expected {MAX_BYTES:,} at most: is it a picture?")

    return cast(BinaryIO, _File(source, status.st_size))


def _member(path: str | os.PathLike) -> BinaryIO | None:
    """Open a picture in a tar shard; None if no part of its path is a shard."""
    try:
        return open_member(path, MAX_BYTES)
    except ValueError as error:
        raise PictureError(str(error)) from error


def read_picture(
    source: Picture, background: tuple[int, int, int] = (255, 255, 255), at_least: int | None = None
) -> Image.Image:
    """Read a picture as RGB, composited on ``background`` where it is transparent. See :func:`open_picture`."""
    return on_background(open_picture(source, at_least), background)


def on_background(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Composite an RGBA picture on one colour; an RGB picture is returned as it is."""
    if picture.mode != "RGBA":
        return picture

    canvas = Image.new("RGBA", picture.size, (*background, 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def to_8_bit(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB, or RGBA if parts of it are transparent."""
    if picture.mode.startswith(("I", "F")):
        pixels = np.asarray(picture)
        if picture.mode.startswith("I"):  # 16 bits; mode "I" of old files may have only 8
            low, high = 0.0, 65535.0 if picture.mode != "I" or pixels.max(initial=0) > 255 else 255.0
        else:
            low, high = 0.0, 1.0
            for band in _bands(pixels):
                values = np.nan_to_num(pixels[band], posinf=0.0, neginf=0.0)
                low, high = min(low, float(values.min())), max(high, float(values.max()))

        return Image.fromarray(_to_uint8(pixels, low, high)).convert("RGB")

    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("RGB")


def _to_uint8(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale an array of numbers from [low, high] to uint8, rounded."""
    out = np.empty(pixels.shape, np.uint8)
    for band in _bands(pixels):
        values = np.nan_to_num(pixels[band].astype(np.float64), posinf=high, neginf=low)
        out[band] = ((values - low) / (high - low) * 255).clip(0, 255).round()

    return out


def _bands(pixels: np.ndarray) -> list[slice]:
    """Return slices of 64 rows, to convert one after the other, because float64 takes 8 times the memory."""
    return [slice(y, y + 64) for y in range(0, len(pixels), 64)]
