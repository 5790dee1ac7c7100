"""Registration: what happens when the user's own code imports mmengine or mmpretrain (see hcast_zoo/__init__.py)."""

import sys
from pathlib import Path
from types import ModuleType

from hcast_zoo import _INTEGRATIONS

MIM = Path(__file__).parent / ".mim"


def register_configs(mmengine: ModuleType) -> None:
    """Let ``_base_ = 'hcast_zoo::hcast/...'`` find the configs in ``.mim/configs``.

    mmengine asks pkg_resources, then importlib, where a package is. A distribution's location is wrong for an editable
    install, so we name the module that has the folder beside it, which no distribution is called.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE["hcast_zoo"] = __package__


def register_checkpoints(checkpoint: ModuleType) -> None:
    """Teach mmengine to read our weights, and to write checkpoints that torch's ``weights_only`` lets it read again."""
    import copyreg

    from mmengine.logging import HistoryBuffer

    from .checkpoint import load_from_hcast_zoo, load_from_local, reduce_history

    copyreg.pickle(HistoryBuffer, reduce_history)

    checkpoint.CheckpointLoader.register_scheme("hcast-zoo://", load_from_hcast_zoo, force=True)
    checkpoint.CheckpointLoader.register_scheme("", load_from_local, force=True)


def register(module: ModuleType) -> None:
    """Register the modules with mmpretrain's registries, and the models with its model index.

    Args:
        module: That was imported: mmpretrain, or one of ours that a user imported first. The latter is not complete yet
            when it imports mmpretrain; then its own hook comes later.
    """
    others = [x for name, x in sys.modules.items() if name.startswith(f"{__package__}.") and x is not module]
    if any(x.__name__ in _INTEGRATIONS and getattr(x.__spec__, "_initializing", False) for x in others):
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
