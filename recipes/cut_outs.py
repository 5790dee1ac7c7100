"""Build a small set of cut-outs, as a newcomer has it: 280 pictures of 40 things in a tree of folders.

    python recipes/emoji_art.py --output emoji_art
    python recipes/cut_outs.py --emoji emoji_art/emoji_art.parquet --output cut_outs [--split]
    python recipes/cut_outs.py --emoji emoji_art/emoji_art.parquet --output composites --photographs photographs

Each thing (animal, plant, food, vehicle) is drawn by seven artists, on transparent ground, or with ``--photographs`` at
a random place over a crop of a photograph. Pictures are in no parts; or with ``--split`` of each thing five are to
train on, one to validate and one to test, chosen by the thing's name and ``--seed``. Licences are EmojiArt's (see its
builder) and the photographs' own.
"""

import argparse
import hashlib
import io
import random
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

ARTISTS = ("noto", "fluent-emoji", "fluent-emoji-flat", "emojione", "openmoji", "twemoji", "fxemoji")
KINDS = ("animal-", "plant-", "food-", "transport-")  # how the subgroups begin that photographs show, too
THINGS = 40
SIZE = 224  # pixels of a composite
SUFFIXES = (".jpg", ".jpeg", ".png")


def choose(rows: list[dict]) -> list[str]:
    """Return the things that all artists have drawn, so many of them, in an order by hash."""
    drawn: dict[str, set] = {}
    for row in rows:
        if row["subgroup"].startswith(KINDS) and row["artist"] in ARTISTS:
            drawn.setdefault(row["emoji"], set()).add(row["artist"])

    whole = [thing for thing, artists in drawn.items() if len(artists) == len(ARTISTS)]
    return sorted(whole, key=lambda thing: hashlib.sha256(thing.encode()).hexdigest())[:THINGS]


def part_of(row: dict, seed: int) -> str:
    """Return the part that a picture is in."""
    order = list(ARTISTS)
    random.Random(f"{row['emoji']} {seed}" if seed else row["emoji"]).shuffle(order)
    return {0: "test", 1: "val"}.get(order.index(row["artist"]), "train")


def put_on(cut_out: Image.Image, photograph: Image.Image, rng: random.Random) -> Image.Image:
    """Return a crop of a photograph with a cut-out at a random place."""
    side = round(min(photograph.size) * rng.uniform(0.4, 1.0))
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    ground = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))

    cut_out = cut_out.crop(cut_out.getchannel("A").getbbox())
    scale = SIZE * rng.uniform(0.5, 0.85) / max(cut_out.size)
    cut_out = cut_out.resize([max(1, round(side * scale)) for side in cut_out.size], Image.Resampling.BICUBIC)
    place = rng.randint(0, SIZE - cut_out.width), rng.randint(0, SIZE - cut_out.height)
    ground.paste(cut_out, place, cut_out)
    return ground


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", type=Path, required=True, help="parquet file of recipes/emoji_art.py")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--photographs", type=Path, nargs="+", default=[], help="folders of photographs to put them on")
    parser.add_argument("--split", action="store_true", help="put the pictures into train, val and test")
    parser.add_argument("--seed", type=int, default=0, help="of the parts (%(default)s)")
    args = parser.parse_args()

    rows = pq.read_table(args.emoji).to_pylist()
    photographs = []
    for folder in args.photographs:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        photographs += [Image.open(file).convert("RGB") for file in files]

    things = set(choose(rows))
    for row in rows:
        if row["emoji"] not in things or row["artist"] not in ARTISTS:
            continue
        picture = Image.open(io.BytesIO(row["image"])).convert("RGBA")
        if photographs:
            rng = random.Random(f"{row['emoji']} {row['artist']}")
            picture = put_on(picture, rng.choice(photographs), rng)

        folder = args.output / part_of(row, args.seed) if args.split else args.output
        file = folder / row["group"] / row["subgroup"] / row["emoji"] / f"{row['artist']}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)

    print(f"{len(things)} things, {len(things) * len(ARTISTS)} pictures in {args.output}")


if __name__ == "__main__":
    main()
