"""The pictures: crops of photographs, and cut-outs over photographs or plain grounds."""

import hashlib
import io
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

SIZE = 224
PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "brick.png", "grass.png", "gravel.png", "rocket.jpg", "motorcycle_left.png"),
    "sklearn": ("china.jpg",),
    "lomiri-16.04": ("*.jpg",),
    "lomiri-20.04": ("Fossa*.jpg", "Infinite*.jpg"),
    "ukui": ("calla.png", "city.png", "desert.png", "goldfish.png", "rhythm.jpg", "the-mouse.jpg", "string.jpg"),
}
DEVELOPMENT = {  # never trained on; settings are tuned on them
    "skimage": ("chelsea.png", "coffee.png"),
    "sklearn": ("flower.jpg",),
    "lomiri-16.04": ("Bridge*.jpg", "Dragonfly*.jpg", "umang*.jpg", "Wine*.jpg"),
    "lomiri-20.04": ("Kleiber*.jpg",),
}
FORMATS = (".jpg", ".png", ".webp")
EMOJI_SPLIT = {"train": "train", "development": "none", "fresh": "test"}
NOT_DRAWN = ("computer/icons", "signs_and_symbols", "recreation/games/cards")  # clip art that shows no object
MAX_PIXELS = 20_000_000  # of a drawing
Image.MAX_IMAGE_PIXELS = None  # the files are a distribution's own, and some drawings are huge
MAX_SIDE = 1200  # pixels of a photograph that crops are cut from


class Studio:
    """Draws pictures for the teacher.

    Args:
        pictures: Folder with the packages' pictures.
        emoji: EmojiArt's parquet file: its training artists are drawn in training, its test artist in ``"fresh"``.
        part: ``"train"``; or ``"development"`` and ``"fresh"``, whose photographs and drawings are never trained on.
    """

    def __init__(self, pictures: Path, emoji: Path, part: str):
        self.photographs = [open_photograph(file) for file in find_photographs(pictures, part)]
        drawings = sorted((pictures / "openclipart").resolve().rglob("*.png"))
        drawings = [file for file in drawings if not any(folder in file.as_posix() for folder in NOT_DRAWN)]
        self.drawings = [file for file in drawings if part_of_drawing(file) == part]
        table = pq.read_table(emoji, filters=[("split", "=", EMOJI_SPLIT[part])], columns=["image"])
        self.emoji = table["image"].to_pylist()

    def draw(self, seed: int, kind: str | None = None) -> tuple[Image.Image, np.ndarray | None]:
        """Return a picture, and the (H, W) bool mask of its cut-out if it has one."""
        rng = random.Random(seed)
        kind = kind or rng.choices(("photograph", "composite", "plain"), (0.35, 0.4, 0.25))[0]
        if kind == "photograph":
            return self.crop(rng), None

        ground = self.crop(rng) if kind == "composite" else Image.new("RGB", (SIZE, SIZE), plain_colour(rng))
        cut_out = self.cut_out(rng)
        scale = SIZE * rng.uniform(0.5, 0.95) / max(cut_out.size)
        size = max(8, round(cut_out.width * scale)), max(8, round(cut_out.height * scale))
        cut_out = cut_out.resize(size, Image.Resampling.BICUBIC)

        place = rng.randint(0, SIZE - cut_out.width), rng.randint(0, SIZE - cut_out.height)
        ground.paste(cut_out, place, cut_out)
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(cut_out.getchannel("A"), place)
        return ground, np.asarray(mask) > 127

    def crop(self, rng: random.Random) -> Image.Image:
        """Return a random crop of a random photograph."""
        photograph = rng.choice(self.photographs)
        side = round(min(photograph.size) * rng.uniform(0.35, 1.0) ** 0.5)
        left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
        crop = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return mirror_half(crop, rng)

    def cut_out(self, rng: random.Random) -> Image.Image:
        """Return a random drawing on a transparent ground."""
        for _ in range(20):
            from_emoji = self.emoji and (rng.random() < 0.4 or not self.drawings)
            source = io.BytesIO(rng.choice(self.emoji)) if from_emoji else rng.choice(self.drawings)
            with Image.open(source) as file:
                if file.width * file.height > MAX_PIXELS:
                    continue
                picture = file.convert("RGBA")

            covered = np.asarray(picture.getchannel("A")) > 127
            # A full rectangle has no outline, and a few lines are not an object.
            if picture.getbbox() and 0.15 < covered.mean() < 0.9:
                break

        return mirror_half(picture.crop(picture.getchannel("A").getbbox()), rng)


def find_photographs(pictures: Path, part: str) -> list[Path]:
    """Return the files of a part; ``fresh`` is a separate folder."""
    if part == "fresh":
        return sorted(file for file in (pictures / "fresh").rglob("*.*") if file.suffix in FORMATS)

    kept = find(pictures, DEVELOPMENT)
    return kept if part == "development" else [file for file in find(pictures, PHOTOGRAPHS) if file not in kept]


def find(folder: Path, patterns: dict[str, tuple[str, ...]]) -> list[Path]:
    """Return the files that match the patterns of each package's folder."""
    files = []
    for name, globs in patterns.items():
        for glob in globs:
            files += sorted((folder / name).glob(glob))
    return files


def part_of_drawing(file: Path) -> str:
    """Divide drawings by a hash of their name: one in ten is for development."""
    number = int(hashlib.sha256(file.name.encode()).hexdigest()[:8], 16)
    return "development" if number % 10 == 0 else "train"


def open_photograph(file: Path) -> Image.Image:
    """Return a photograph of at most ``MAX_SIDE`` pixels a side."""
    with Image.open(file) as photograph:
        photograph.draft("RGB", (MAX_SIDE, MAX_SIDE))
        picture = photograph.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def mirror_half(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def plain_colour(rng: random.Random) -> tuple[int, ...]:
    return (255, 255, 255) if rng.random() < 0.5 else tuple(rng.randint(0, 255) for _ in range(3))
