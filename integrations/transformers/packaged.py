"""Names of packaged weights for transformers: ``from_pretrained("hcast_zoo/hcast_small.emoji_art")``, with no network.

Everything that transformers loads from a repository goes through ``cached_files``. For a packaged name, we redirect it
to a temporary folder with the two JSON files and a link to the weights in the package.
"""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

OWNER = "hcast_zoo"


def register(module: ModuleType) -> None:
    """Wrap ``cached_files`` of ``transformers.utils.hub``, once."""
    if not isinstance(module.cached_files, wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(module, "cached_files", _cached_files)


def register_backbone(auto: ModuleType) -> None:
    """Let ``AutoBackbone`` load packaged names and our folders without asking the Hub; wraps it once."""
    if not isinstance(vars(auto.AutoBackbone).get("from_pretrained"), wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(auto, "AutoBackbone.from_pretrained", _backbone_from_pretrained)


def _backbone_from_pretrained(wrapped: Callable, auto_class: Any, args: tuple, kwargs: dict) -> Any:
    """Do not ask whether the Hub has such a repository; if not, transformers would take the name for a timm model."""
    source = args[0] if args else kwargs.get("pretrained_model_name_or_path", "")
    if packaged_name(source) is None and not _is_our_folder(source):
        return wrapped(*args, **kwargs)

    from transformers.models.auto.auto_factory import _BaseAutoBackboneClass

    kwargs.pop("use_timm_backbone", None)
    return super(_BaseAutoBackboneClass, auto_class).from_pretrained(*args, **kwargs)


def _is_our_folder(source: str | os.PathLike) -> bool:
    try:
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") == "hcast"
    except (OSError, ValueError, AttributeError):
        return False


def packaged_name(source: str | os.PathLike) -> str | None:
    """Return the name of the packaged weights that a repository name stands for, or None."""
    owner, _, name = str(source).rpartition("/")
    if owner not in ("", OWNER) or not name.startswith("hcast_"):
        return None

    from hcast_zoo.weights.file import packaged_weights  # imports torch, which `import transformers` alone does not

    return name if name in packaged_weights() and not os.path.isdir(source) else None


def _cached_files(wrapped: Callable, instance: Any, args: tuple, kwargs: dict) -> Any:
    def call(path_or_repo_id, *rest, **options):
        name = packaged_name(path_or_repo_id)
        return wrapped(path_or_repo_id if name is None else _folder(name).name, *rest, **options)

    return call(*args, **kwargs)


@functools.cache
def _folder(name: str) -> tempfile.TemporaryDirectory:
    """Return a folder that transformers can load; it is removed when this process ends."""
    from hcast_zoo.weights.file import find_weights, read_weights

    from .configuration_hcast import HCastConfig
    from .image_processing_hcast import HCastImageProcessor

    file = find_weights(name)
    weights = read_weights(file, tensors=False)
    folder = tempfile.TemporaryDirectory(prefix="hcast_zoo-")
    path = Path(folder.name)
    config = HCastConfig.from_core(weights.config, weights.taxonomy, weights.calibration, dtype="float32")
    config.architectures = ["HCastForImageClassification"]
    config.save_pretrained(path)
    HCastImageProcessor.from_core(weights.config).save_pretrained(path)

    try:
        (path / "model.safetensors").symlink_to(file)
    except OSError:  # the system has no symbolic links, or we may not make them
        shutil.copyfile(file, path / "model.safetensors")

    return folder


__all__ = ["OWNER", "packaged_name", "register", "register_backbone"]
