"""Estimate the memory that a config needs before a model is built: one budget for all frameworks."""

import os
from typing import Any

BUDGET = 8.0  # GiB, unless the environment says otherwise
VARIABLE = "HCAST_ZOO_MEMORY_GIB"
LONGEST = 20  # largest ratio of the sides of a resized picture: see data/transforms.py
LABEL = 600  # bytes that the tables of a framework take for the name of one class


class MemoryBudgetError(ValueError):
    """Something asks for more memory than the budget; the message names the field, the figure and the budget."""


def memory_budget() -> int:
    """Return the bytes that a model with one picture, or a table of pictures, may take.

    Raises:
        ValueError: if the environment variable is not a positive number.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        number = float(text) if text else BUDGET
    except ValueError:
        number = 0.0
    if not 0 < number < 2**20:
        raise ValueError(f"{VARIABLE}: expected a number of GiB such as 16, got {text[:100]!r}")
    return int(number * 2**30)


def check_memory(size: int, field: str, subject: str) -> None:
    """Raise MemoryBudgetError if a number of bytes is above the budget.

    Args:
        size: The number of bytes.
        field: The field or file that a user can change, which begins the message.
        subject: What takes the memory, the subject of the message.
    """
    budget = memory_budget()
    if size > budget:
        raise MemoryBudgetError(
            f"{field}: {subject} would take {gibibytes(size)} of memory, expected at most {gibibytes(budget)}: "
            f"choose less, or raise the budget with the environment variable {VARIABLE}"
        )


def gibibytes(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**30:,.1f} GiB"


def check_config(config: Any, stem: int = 0) -> None:
    """Check that the model of a config, and what it computes of one picture, fit into the budget.

    Args:
        config: The config.
        stem: Bytes of a pretrained stem and of one picture in it, which cannot be read from the config.

    Raises:
        MemoryBudgetError: with the name of the field that asks for most.
    """
    parts = [("stem", stem), *parameter_bytes(config).items(), *picture_bytes(config).items()]
    total = sum(size for _, size in parts)
    if total <= memory_budget():
        return

    field, largest = max(parts, key=lambda part: part[1])
    value = getattr(config, field)
    needs = "the model and one picture" if len(str(value)) > 60 else f"{value}: the model and one picture"
    check_memory(total, field, f"{needs}, most of it ({gibibytes(largest)}) because of this,")


def parameter_bytes(config: Any) -> dict[str, int]:
    """Return the bytes of the parameters and labels, by the field that they grow with."""
    dim, classes = config.embed_dim, sum(config.level_classes)
    block = int((4 + 2 * config.mlp_ratio) * dim * dim)
    return {
        "level_classes": classes * (4 * (dim + 1) + LABEL),
        "depths": 4 * block * (sum(config.depths) - len(config.depths)),
        # One block and one pooling per stage, and the stem.
        "embed_dim": 4 * (len(config.depths) * (block + 13 * dim * dim + 32 * dim) + 8 * dim * dim),
        "image_size": 4 * dim * (config.image_size // 8) ** 2,
    }


def picture_bytes(config: Any) -> dict[str, int]:
    """Return the bytes that one picture takes from resizing to logits, by the field that they grow with."""
    dim, side, heads = config.embed_dim, config.image_size, max(config.num_heads, config.pool_heads)
    tokens, clusters = config.num_superpixels, max(config.num_clusters)
    hidden = int(dim * max(4, config.mlp_ratio))
    return {
        "crop_pct": resized_bytes(side / config.crop_pct) - resized_bytes(side),
        # The picture as float32 several times, superpixels, and the stem's feature maps.
        "image_size": resized_bytes(side) + side * side * (32 * max(config.in_chans, 3) + 64 + dim),
        # Attention, and the float64 distances between tokens with the terms of their sum.
        "num_superpixels": tokens * tokens * (4 * heads + 24) + 12 * tokens * clusters + 12 * tokens * (dim + hidden),
    }


def resized_bytes(short_side: float) -> int:
    """Return the bytes of the longest picture that is resized to a short side, with what Pillow needs meanwhile."""
    return int(short_side * short_side * LONGEST * 3)


def pictures_at_once(config: Any, wanted: int) -> int:
    """Return how many pictures of a batch fit into the budget together, from 1 to ``wanted``."""
    left = memory_budget() - sum(parameter_bytes(config).values())
    return max(1, min(wanted, left // max(1, sum(picture_bytes(config).values()))))
