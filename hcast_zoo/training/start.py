"""What a training starts from: weights of a model, a pretrained stem, and heads fitted to the training pictures."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network.config import HCastConfig
from ..network.stems import TIMM, PretrainedStem
from ..taxonomy.tree import UNKNOWN
from ..weights import file as weights

FITTED_STEPS = 100  # of L-BFGS, at most
PENALTY = 1e-3  # on the squares of a fitted head's weights, for features of unit deviation


def load_stem(model: torch.nn.Module, source: str | None) -> str | None:
    """Load the pretrained part of a new model's stem; return where it came from.

    Args:
        model: A new model; one with the paper's stem is left as it is.
        source: Weights of an H-CAST model with the same stem; a file of timm's model; ``timm`` for what timm downloads;
            ``none`` for random values. By default packaged weights with that stem if there are any, else timm's.

    Raises:
        ValueError: if the source has another stem.
    """
    stem = getattr(model, "stem", None)
    if not isinstance(stem, PretrainedStem) or source == "none":
        return None

    config: HCastConfig = model.config
    source = source or packaged_stem(config) or "timm"
    if source == "timm":
        state = _download(config)
    elif Path(source).suffix == ".pth":
        state = torch.load(source, map_location="cpu", weights_only=True)
    else:
        content = weights.load(source)
        if content.config.stem != config.stem:
            raise ValueError(f"stem_weights: expected weights with the stem {config.stem}, got {content.config.stem}")
        state = {
            key.removeprefix("stem.body."): value
            for key, value in content.state_dict.items()
            if key.startswith("stem.body.")
        }

    own = stem.body.state_dict()
    state = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    if missing := sorted(set(own) - set(state)):
        raise ValueError(
            f"stem_weights: {source} is not of {config.stem.removeprefix(TIMM)}: it has no fitting {missing[0]}, nor "
            f"{len(missing) - 1} others"
        )
    stem.body.load_state_dict(state)
    return source


def packaged_stem(config: HCastConfig) -> str | None:
    """Return the name of packaged weights that have a config's stem, or None."""
    names = (name for name, entry in weights.packaged().items() if name.split(".")[0].startswith("hcast_lite"))
    return next((name for name in names if weights.load_config(name).stem == config.stem), None)


def _download(config: HCastConfig) -> dict[str, Tensor]:
    import timm

    name = config.stem.removeprefix(TIMM)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, in_chans=config.in_chans).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"stem_weights: timm cannot get the weights of {name} ({error}): give a file with --stem-weights, or none "
            "to start from random values"
        ) from error
