"""Where the weights of a run come from: what their metadata, and so their card, tells of the training."""

import dataclasses
import json
from pathlib import Path

from .. import __version__
from ..data.dataset import HierarchicalDataset
from ..weights.file import Weights, find_weights, packaged_weights, read_weights
from ..weights.hub import parse_repository
from .settings import CHANGEABLE, TrainConfig

TIMM_STEM = "timm"  # a stem's source: what timm downloads
PATHS = ("stem_weights", "teacher")  # settings that may be files of this machine


def describe_run(
    settings: TrainConfig,
    train_set: HierarchicalDataset,
    val_set: HierarchicalDataset,
    *,
    data: str,
    start: Weights | None = None,
    start_name: str | None = None,
    stem_source: str | None = None,
    title: str | None = None,
    license: str | None = None,
) -> dict[str, str]:
    """Return metadata for the weights of a run: ``training``, ``data``, ``settings``, and what they started from.

    Weights that start from others keep their name (``base_model``), licence (``base_license``) and attribution. Without
    a licence of their own they have the one of what they started from. Paths are reduced to file names.

    Args:
        settings: How the run trains.
        train_set: What it learns from.
        val_set: What chooses its weights.
        data: Name of the data.
        start: Weights it starts from.
        start_name: What the user called them.
        stem_source: Where a pretrained stem of a new model comes from; see :func:`.start.stem_source`.
        title: Name of the new weights.
        license: Their licence.
    """
    base = start
    if start is None and stem_source not in (None, TIMM_STEM):
        base = _read_header(str(stem_source))
    base_name = _base_name(base, start_name or stem_source)

    origin = f"from {base_name or 'random values'}"
    if start is None and base_name:
        origin = f"from random values, but for the pretrained stem of {base_name}"
    told = {
        "training": f"By hcast-zoo {__version__} train, {origin}, at most {settings.epochs} epochs.",
        "settings": json.dumps(_changed_settings(settings), ensure_ascii=False),
        "data": f"{data}: {len(train_set)} pictures to train on, {len(val_set)} to choose the weights.",
    }
    if base_name:
        told["base_model"] = base_name
    if base is not None:
        told["base_license"] = base.metadata.get("license", "")
        told["attribution"] = base.metadata.get("attribution", "")
    told["license"] = license or told.get("base_license", "")
    told["name"] = title or ""
    return {key: value for key, value in told.items() if value}


def describe_choice(epoch: int, criterion: str, value: float) -> str:
    """Return the sentence of a card about the epoch that weights are of.

    Args:
        epoch: How many were trained; 0 where only heads were fitted.
        criterion: What chooses weights, a metric on the validation pictures.
        value: What they reach, in percent.
    """
    when = f"of epoch {epoch}" if epoch else "of the start, with fitted heads"
    metric = "the whole path" if criterion == "fpa" else criterion.removeprefix("accuracy/")
    return f"These are the weights {when}: {value:.2f} % right on the validation pictures ({metric})."


def _base_name(base: Weights | None, source: str | None) -> str | None:
    """Return what a card calls the weights that a training started from: the name they have, if they are a file."""
    if source is None:
        return None
    short = _short(source)
    return short if short == source else (base.metadata.get("name") if base else None) or short


def _changed_settings(settings: TrainConfig) -> dict:
    """Return the settings that are not the defaults, and that make a difference to the weights."""
    changed = {}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(settings, field.name)
        if value != field.default and field.name not in CHANGEABLE:
            changed[field.name] = _short(value) if field.name in PATHS else value
    return changed


def _read_header(source: str) -> Weights | None:
    """Return what weights of ours tell of themselves; None for a file of timm's."""
    if Path(source).exists() and Path(source).suffix != ".safetensors":
        return None
    return read_weights(find_weights(source), tensors=False)


def _short(source: str) -> str:
    """Return a name or a repository as it is, and of a path the last part."""
    if source in packaged_weights() or (not Path(source).exists() and parse_repository(source)):
        return source
    return Path(source).name
