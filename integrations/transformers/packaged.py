"""Names of packaged weights for transformers: ``from_pretrained("hcast_zoo/hcast_small.emoji_art")``, with no network.

All of transformers' loading asks ``cached_files`` for the files of a repository. Where the repository is a packaged
name, the answer is a folder of this process that holds the two JSON files and leads to the weights in the package.
"""

import functools
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


def packaged_name(source: str | os.PathLike) -> str | None:
    """Return the packaged weights that a repository's name stands for, or None."""
    owner, _, name = str(source).rpartition("/")
    if owner not in ("", OWNER) or not name.startswith("hcast_"):
        return None

    from hcast_zoo.weights import file as weights  # imports torch, which `import transformers` alone does not

    return name if name in weights.packaged() and not os.path.isdir(source) else None


def _cached_files(wrapped: Callable, instance: Any, args: tuple, kwargs: dict) -> Any:
    def call(path_or_repo_id, *rest, **options):
        name = packaged_name(path_or_repo_id)
        return wrapped(path_or_repo_id if name is None else _folder(name).name, *rest, **options)

    return call(*args, **kwargs)


@functools.cache
def _folder(name: str) -> tempfile.TemporaryDirectory:
    """Return a folder that transformers can load; it is removed when this process ends."""
    from hcast_zoo.weights import file as weights

    from .configuration_hcast import HCastConfig
    from .image_processing_hcast import HCastImageProcessor

    file = weights.resolve(name)
    content = weights.read(file, tensors=False)
    folder = tempfile.TemporaryDirectory(prefix="hcast_zoo-")
    path = Path(folder.name)
    config = HCastConfig.from_core(content.config, content.taxonomy, content.calibration, dtype="float32")
    config.architectures = ["HCastForImageClassification"]
    config.save_pretrained(path)
    HCastImageProcessor.from_core(content.config).save_pretrained(path)

    try:
        (path / "model.safetensors").symlink_to(file)
    except OSError:  # a system without symbolic links, or without the right to make them
        shutil.copyfile(file, path / "model.safetensors")

    return folder


__all__ = ["OWNER", "packaged_name", "register"]
