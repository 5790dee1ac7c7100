"""A tiny model with a taxonomy, and pictures for it, for the fixtures and the checks of reliability."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, save_weights

TREE = [
    ("bird", "owl", "barn owl"),
    ("bird", "owl", "snowy owl"),
    ("bird", "gull", "herring gull"),
    ("mammal", "cat", "lion"),
    ("mammal", "cat", "tiger"),
    ("mammal", "dog", "wolf"),
]
LEVELS = ("class", "family", "species")

# The smallest config that has all parts, for the taxonomy's levels.
FIELDS = dict(
    level_classes=(2, 4, 6),
    image_size=32,
    embed_dim=48,
    depths=(1, 1, 1, 1),
    num_heads=3,
    num_superpixels=16,
    num_clusters=(8, 4, 2, 2),
    crop_pct=1.0,
)
# The same on a stem of timm, grouped on its descriptor.
HYBRID = {
    **FIELDS,
    "image_size": 64,
    "mask_empty": True,
    "stem": "timm:test_efficientnet",
    "stem_strides": (8, 16),
    "stem_final": True,
    "grouping": "descriptor",
}

# Options of `train` for a tiny model and one short epoch.
TRAIN = "--model hcast_tiny --image-size 32 --num-superpixels 16 --num-clusters 8 6 4 2".split()
TRAIN += "--epochs 1 --warmup-epochs 0 --batch-size 4 --workers 0".split()


def make_taxonomy() -> Taxonomy:
    """Return six animals in three levels."""
    return Taxonomy.from_paths(TREE, LEVELS, "animals")


def make_config(**changes) -> HCastConfig:
    """Return the smallest config that has all parts, with some fields changed."""
    return HCastConfig(**{**FIELDS, **changes})


def make_model() -> HCast:
    """Return a random model, the same in every call."""
    torch.manual_seed(0)
    return HCast(make_config()).eval()


def make_weights(path: Path) -> Path:
    """Write weights of a random model whose answers differ from picture to picture."""
    model, taxonomy = make_model(), make_taxonomy()
    state = model.state_dict()
    # The heads of a new model are nearly zero, and would give every picture the same answer.
    state = {k: torch.randn_like(v) if k.startswith("heads.") else v for k, v in state.items()}
    save_weights(Weights(model.config, taxonomy, state, {"name": "tiny", "license": "CC0-1.0"}), path)
    return path


def draw(number: int, size: int = 40) -> Image.Image:
    """Return a picture of coloured blocks that is unique to the number."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def make_pictures(folder: Path, count: int, broken: float = 0.0) -> list[str]:
    """Write ``count`` PNG files, a share ``broken`` of them truncated; return their names in order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06}.png" for number in range(count)]
    rng = np.random.default_rng(0)
    bad = set(rng.choice(count, round(count * broken), replace=False).tolist())
    for number, file in enumerate(files):
        draw(number).save(file)
        if number in bad:
            data = file.read_bytes()
            file.write_bytes(data[: int(rng.integers(len(data) - 20))])
    return [str(file) for file in files]


def make_tree(folder: Path) -> Path:
    """Write a folder tree of labelled pictures, four per leaf in each of train and val."""
    for offset, split in ((0, "train"), (1000, "val")):
        for leaf, path in enumerate(TREE):
            for number in range(4):
                file = folder / split / Path(*path) / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(offset + leaf * 4 + number).save(file)
    return folder
