"""H-CAST as a timm model: ``timm.create_model("hcast_small")`` after ``import hcast_zoo``."""

import importlib
from types import ModuleType


def register(timm: ModuleType) -> None:
    """Add the models to timm's registry; called as soon as ``timm`` is imported, with that module."""
    importlib.import_module(f"{__name__}.hcast")
