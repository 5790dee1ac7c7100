"""One picture in formats that readers treat differently."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1] / "pictures"
ORIENTATION = 0x0112  # tag of EXIF


def write_formats(folder: Path, name: str = "lion") -> dict[str, Path]:
    """Write a picture with transparent parts as files of several formats; return them by what is special about each."""
    rgba = Image.open(ROOT / f"{name}.png").convert("RGBA")
    pixels = np.array(rgba)
    pixels[..., :3][pixels[..., 3] == 0] = (200, 30, 30)  # shown by a reader that ignores transparency
    rgba = Image.fromarray(pixels)
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    rgb = white.convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # upright after a turn of 90 degrees
    grey16 = (np.asarray(rgb.convert("L"), np.uint16) * 257).astype(np.uint16)

    palette = rgb.quantize(200)
    clear = palette.getpixel((0, 0))
    colours = palette.getpalette()
    colours[3 * clear : 3 * clear + 3] = (200, 30, 30)
    palette.putpalette(colours)

    pictures = {
        "transparent": (rgba, "png", {}),
        "grey": (rgb.convert("L"), "png", {}),
        "grey_transparent": (rgba.convert("LA"), "png", {}),
        "16_bit": (Image.fromarray(grey16), "png", {}),
        "cmyk": (rgb.convert("CMYK"), "jpg", {}),
        "exif_rotated": (rgb.transpose(Image.Transpose.ROTATE_90), "jpg", {"exif": exif}),
        "palette": (palette, "png", {"transparency": clear}),
    }

    files = {}
    for kind, (picture, suffix, options) in pictures.items():
        files[kind] = folder / f"{kind}.{suffix}"
        picture.save(files[kind], **options)

    return files
