"""Composites whose masks are known: drawings of EmojiArt at random places over crops of photographs.

The photographs are those of Debian's packages lomiri-wallpapers-16.04, lomiri-wallpapers-20.04 and ukui-wallpapers
(CC0, CC-BY, CC-BY-SA), unpacked by ``dpkg -x``.
"""

import argparse
import dataclasses
import io
import random

import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.network.config import HCastConfig

SIZE = 224  # pixels of a composite
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass
class Scene:
    """A composite.

    Attributes:
        image: (1, 3, H, W), normalised.
        mask: (H, W) bool, the drawing.
        row: The drawing's row in the table.
    """

    image: Tensor
    mask: Tensor
    row: dict


def make_scenes(args: argparse.Namespace, config: HCastConfig) -> list[Scene]:
    """Return composites of random drawings of a split and random photographs, of a config's picture size."""
    files = sorted(file for file in args.photographs.rglob("*") if file.suffix.lower() in SUFFIXES)
    photographs = [Image.open(file).convert("RGB") for file in files]
    rows = pq.read_table(args.data, filters=[("split", "=", args.split)]).to_pylist()
    rows = random.Random(args.seed).sample(rows, args.limit or len(rows))
    transform = eval_transform(config)

    scenes = []
    for row in tqdm(rows, "draw"):
        rng = random.Random(row["emoji"])
        picture, mask = compose(Image.open(io.BytesIO(row["image"])).convert("RGBA"), rng.choice(photographs), rng)
        shape = transform(mask.convert("RGB"))[0]
        scenes.append(Scene(image=transform(picture)[None], mask=shape > (shape.min() + shape.max()) / 2, row=row))

    return scenes


def compose(drawing: Image.Image, photograph: Image.Image, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Return a crop of a photograph with a drawing at a random place, and the drawing's mask."""
    side = round(min(photograph.size) * rng.uniform(0.4, 1.0))
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    ground = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))

    drawing = drawing.crop(drawing.getchannel("A").getbbox())
    scale = SIZE * rng.uniform(0.5, 0.8) / max(drawing.size)
    drawing = drawing.resize([max(1, round(length * scale)) for length in drawing.size], Image.Resampling.BICUBIC)
    place = rng.randint(0, SIZE - drawing.width), rng.randint(0, SIZE - drawing.height)
    mask = Image.new("L", ground.size)
    mask.paste(255, place, drawing)
    ground.paste(drawing, place, drawing)
    return ground, mask
