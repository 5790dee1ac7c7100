"""What training needs of each picture, computed once: the stem's averages over superpixels, the teacher's logits."""

from pathlib import Path

import numpy as np
import torch
from pictures import SIZE, Studio
from PIL import Image
from teacher import Teacher
from torch import Tensor

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast

SHARD = 100  # pictures in a file
BATCH = 20
KINDS = ("photograph", "composite")
HELD_OUT = ("development", "fresh")
FIRST_SEED = {"train": 400, "development": 10_000_000, "fresh": 20_000_000}


def make_shards(folder: Path, pictures: Path, emoji: Path, model: HCast, teacher: Teacher, samples: int) -> None:
    """Draw pictures, and write what training and measuring need of them; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": samples // SHARD, **dict.fromkeys(HELD_OUT, 2 * len(KINDS))}
    for part, count in counts.items():
        studio = None
        for number in range(count):
            kind = None if part == "train" else KINDS[number // 2]
            file = folder / (f"train_{number:04}.pt" if kind is None else f"{part}_{kind}_{number % 2}.pt")
            if file.exists():
                continue

            studio = studio or Studio(pictures, emoji, part)
            first = FIRST_SEED[part] + number * SHARD
            make_shard(file, model, teacher, studio, list(range(first, first + SHARD)), kind)
            print(f"{file.name}, {number + 1} of {count}", flush=True)


@torch.inference_mode()
def make_shard(
    file: Path, model: HCast, teacher: Teacher, studio: Studio, seeds: list[int], kind: str | None = None
) -> None:
    """Draw the pictures of some seeds, and write what training and measuring need of them into one file."""
    count = model.config.num_superpixels
    parts = []
    for start in range(0, len(seeds), BATCH):
        drawn = [studio.draw(seed, kind) for seed in seeds[start : start + BATCH]]
        images = to_tensor([picture for picture, _ in drawn], model.config)
        segments = model.prepare_segments(images, None, count)
        means = model.superpixel_means(images, segments, count)
        masks = [np.zeros((SIZE, SIZE), dtype=bool) if mask is None else mask for _, mask in drawn]
        parts.append(
            {
                "features": means.features.half(),
                "descriptor": means.descriptor.half(),
                "area": means.area,
                "segments": segments.to(torch.uint8),
                "logits": teacher.logits(means.features, means.area),
                "masks": torch.from_numpy(np.stack(masks)),
            }
        )

    temporary = file.with_suffix(".new")
    torch.save({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, temporary)
    temporary.replace(file)


def to_tensor(pictures: list[Image.Image], config: HCastConfig) -> Tensor:
    """Return pictures as normalised (B, 3, H, W) float32 images."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]


def load(files: list[Path]) -> dict[str, Tensor]:
    """Read shards, and put them together."""
    parts = [torch.load(file, weights_only=True) for file in files]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
