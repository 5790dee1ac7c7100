"""Provenance of the weights of a run: metadata about their training, which their model card shows."""

import dataclasses
import json
from pathlib import Path

from .. import __version__
from ..data.dataset import HierarchicalDataset
from ..weights.file import Weights, find_weights, packaged_weights, read_weights
from ..weights.hub import parse_repository
from .settings import CHANGEABLE, TrainConfig

TIMM_STEM = "timm"  # source of a stem that timm downloads
PATHS = ("stem_weights", "teacher")  # settings that may be files on this machine


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
    """Return metadata for the weights of a run: ``training``, ``data``, ``settings``, and those of its start weights.

    The metadata has the start weights' name (``base_model``), licence (``base_license``) and attribution. Unless a
    licence is given, the new weights have that of the start weights. Paths are reduced to file names.

    Args:
        settings: How the run trains.
        train_set: Training pictures.
        val_set: Validation pictures, which choose the weights.
        data: Name of the data.
        start: Start weights.
        start_name: Name of the start weights on the command line.
        stem_source: Source of a new model's pretrained stem; see :func:`.start.stem_source`.
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

    facts = {
        "training": f"By hcast-zoo {__version__} train, {origin}, at most {settings.epochs} epochs.",
        "settings": json.dumps(_changed_settings(settings), ensure_ascii=False),
        "data": f"{data}: {len(train_set)} pictures to train on, {len(val_set)} to choose the weights.",
    }
    if base_name:
        facts["base_model"] = base_name
    if base is not None:
        facts["base_license"] = base.metadata.get("license", "")
        facts["attribution"] = base.metadata.get("attribution", "")

    facts["license"] = license or facts.get("base_license", "")
    facts["name"] = title or ""
    return {key: value for key, value in facts.items() if value}


def describe_choice(epoch: int, criterion: str, value: float) -> str:
    """Return the sentence of a card that says from which epoch the weights are.

    Args:
        epoch: Number of epochs trained; 0 if only the heads were fitted.
        criterion: Metric on the validation pictures that chooses the weights.
        value: Its value for these weights, in percent.
    """
    when = f"of epoch {epoch}" if epoch else "of the start, with fitted heads"
    metric = "the whole path" if criterion == "fpa" else criterion.removeprefix("accuracy/")
    return f"These are the weights {when}: {value:.2f} % right on the validation pictures ({metric})."


def _base_name(base: Weights | None, source: str | None) -> str | None:
    """Return the name of the start weights for a card; for a file, the name in its metadata, if it has one."""
    if source is None:
        return None

    short = _short(source)
    if short == source or base is None:
        return short
    return base.metadata.get("name") or short


def _changed_settings(settings: TrainConfig) -> dict:
    """Return the settings that differ from the defaults and affect the weights."""
    changed = {}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(settings, field.name)
        if value != field.default and field.name not in CHANGEABLE:
            changed[field.name] = _short(value) if field.name in PATHS else value

    return changed


def _read_header(source: str) -> Weights | None:
    """Return hcast-zoo weights without their tensors; None for a file of timm's."""
    if Path(source).exists() and Path(source).suffix != ".safetensors":
        return None

    return read_weights(find_weights(source), tensors=False)


def _short(source: str) -> str:
    """Return a name or a repository as it is, and the last part of a path."""
    if source in packaged_weights() or (not Path(source).exists() and parse_repository(source)):
        return source
    return Path(source).name
