"""Registration, which runs when the user's code imports mmengine or mmpretrain (see hcast_zoo/__init__.py)."""

import sys
from pathlib import Path
from types import ModuleType

from hcast_zoo import _INTEGRATIONS

MIM = Path(__file__).parent / ".mim"


def register_configs(mmengine: ModuleType) -> None:
    """Let ``_base_ = 'hcast_zoo::hcast/...'`` find the configs in ``.mim/configs``.

    mmengine asks pkg_resources, then importlib, where a package is. For an editable install, pkg_resources gives the
    wrong place; so we give the name of the module beside the folder, which is not the name of a distribution.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE["hcast_zoo"] = __package__


def register_checkpoints(checkpoint: ModuleType) -> None:
    """Let mmengine read our weights, and write checkpoints that it can read again under torch's ``weights_only``."""
    import copyreg

    from mmengine.logging import HistoryBuffer

    from .checkpoint import load_from_hcast_zoo, load_from_local, reduce_history

    copyreg.pickle(HistoryBuffer, reduce_history)

    checkpoint.CheckpointLoader.register_scheme("hcast-zoo://", load_from_hcast_zoo, force=True)
    checkpoint.CheckpointLoader.register_scheme("", load_from_local, force=True)


def register(module: ModuleType) -> None:
    """Register the modules with mmpretrain's registries, and the models with its model index.

    Args:
        module: The imported module: mmpretrain, or one of ours that the user imported first. Ours is still incomplete
            when it imports mmpretrain; its own hook then registers later.
    """
    for name in _INTEGRATIONS:
        other = sys.modules.get(name) if name.startswith(f"{__package__}.") else None
        if other is not None and other is not module and getattr(other.__spec__, "_initializing", False):
            return

    from mmpretrain.apis import ModelHub

    from . import (  # noqa: F401  importing registers
        backbone,
        classifier,
        dataset,
        head,
        hooks,
        inferencer,
        loss,
        metric,
        preprocessor,
        registry,
        transforms,
    )

    inferencer.register_stock_inferencers()
    if not ModelHub.has("hcast-small_emoji-art"):
        ModelHub.register_model_index(MIM / "model-index.yml", config_prefix=MIM)
