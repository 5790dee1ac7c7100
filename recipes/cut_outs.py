"""Build a small set of cut-outs, as a newcomer has it: 280 pictures of 40 things in a tree of folders.

    python recipes/emoji_art.py --output emoji_art
    python recipes/cut_outs.py --emoji emoji_art/emoji_art.parquet --output cut_outs [--split]
    python recipes/cut_outs.py --emoji emoji_art/emoji_art.parquet --output composites --photographs photographs

Each thing (animal, plant, food, vehicle) is drawn by seven artists, on transparent ground, or with ``--photographs`` at
a random place over a crop of a photograph. Pictures are in no parts; or with ``--split`` of each thing five are to
train on, one to validate and one to test, chosen by the thing's name and ``--seed``. With ``--imagenet`` the things
are those that classes of ImageNet name, by any of the artists, and the folders are ImageNet's tree. Licences are
EmojiArt's (see its builder) and the photographs' own.
"""

import argparse
import hashlib
import io
import random
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from hcast_zoo.paper.trees import load_tree

ARTISTS = ("noto", "fluent-emoji", "fluent-emoji-flat", "emojione", "openmoji", "twemoji", "fxemoji")
KINDS = ("animal-", "plant-", "food-", "transport-")  # how the subgroups begin that photographs show, too
THINGS = 40
OTHER_THINGS = {"cricket", "mouse", "notebook", "pick", "ram", "wing"}  # of the same name in ImageNet
SIZE = 224  # pixels of a composite
SUFFIXES = (".jpg", ".jpeg", ".png")


def chosen_folders(rows: list[dict]) -> dict[str, Path]:
    """Return the folder of each thing that all artists have drawn, of the first ``THINGS`` in an order by hash."""
    artists: dict[str, set] = {}
    folders = {}
    for row in rows:
        if row["subgroup"].startswith(KINDS) and row["artist"] in ARTISTS:
            artists.setdefault(row["emoji"], set()).add(row["artist"])
            folders[row["emoji"]] = Path(row["group"], row["subgroup"], row["emoji"])

    whole = [thing for thing in folders if len(artists[thing]) == len(ARTISTS)]
    whole.sort(key=lambda thing: hashlib.sha256(thing.encode()).hexdigest())
    return {thing: folders[thing] for thing in whole[:THINGS]}


def imagenet_folders(rows: list[dict]) -> dict[str, Path]:
    """Return the folder of each thing that a class of ImageNet names: its path in ImageNet's tree."""
    tree = load_tree("imagenet")
    folders = {}
    for path in tree.paths:
        *above, thing = tree.path_names(path)
        folders[thing] = Path(*above, thing)

    drawn = {row["emoji"] for row in rows}
    return {thing: folder for thing, folder in folders.items() if thing in drawn - OTHER_THINGS}


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
    parser.add_argument("--artists", nargs="+", choices=ARTISTS, default=ARTISTS, help="whose drawings to take (all)")
    parser.add_argument("--imagenet", action="store_true", help="things that ImageNet's classes name")
    parser.add_argument("--split", action="store_true", help="put the pictures into train, val and test")
    parser.add_argument("--seed", type=int, default=0, help="of the parts (%(default)s)")
    args = parser.parse_args()

    rows = pq.read_table(args.emoji).to_pylist()
    photographs = []
    for folder in args.photographs:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        photographs += [Image.open(file).convert("RGB") for file in files]

    folders = imagenet_folders(rows) if args.imagenet else chosen_folders(rows)
    kept = [row for row in rows if row["emoji"] in folders and row["artist"] in args.artists]
    for row in kept:
        picture = Image.open(io.BytesIO(row["image"])).convert("RGBA")
        if photographs:
            rng = random.Random(f"{row['emoji']} {row['artist']}")
            picture = put_on(picture, rng.choice(photographs), rng)

        folder = args.output / part_of(row, args.seed) if args.split else args.output
        file = folder / folders[row["emoji"]] / f"{row['artist']}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)

    print(f"{len(folders)} things, {len(kept)} pictures in {args.output}")


if __name__ == "__main__":
    main()
