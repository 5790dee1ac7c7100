"""The models that timm's registry lists, and their pretrained tags.

This runs on every ``import timm``, so the network is only imported when the first model is made.
"""

import importlib
from typing import TYPE_CHECKING, Any

from timm.models import generate_default_cfgs, register_model

from .cfgs import make_cfgs

if TYPE_CHECKING:
    from .model import TimmHCast

__all__: list[str] = []  # register_model adds the models

default_cfgs = generate_default_cfgs(make_cfgs())


def _create(variant: str, pretrained: bool, **kwargs: Any) -> "TimmHCast":
    return importlib.import_module(f"{__package__}.model").create_hcast(variant, pretrained, **kwargs)


@register_model
def hcast_tiny(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 192 channels (ours, not the paper's)."""
    return _create("hcast_tiny", pretrained, **kwargs)


@register_model
def hcast_small(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 384 channels and 3 + 3 + 3 + 2 blocks, the paper's main model."""
    return _create("hcast_small", pretrained, **kwargs)


@register_model
def hcast_small_deep(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 384 channels and 6 + 3 + 3 + 3 blocks."""
    return _create("hcast_small_deep", pretrained, **kwargs)


@register_model
def hcast_base(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 768 channels."""
    return _create("hcast_base", pretrained, **kwargs)


@register_model
def hcast_lite(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 192 channels on the features of EfficientNet-Lite0 (ours)."""
    return _create("hcast_lite", pretrained, **kwargs)


@register_model
def hcast_lite_384(pretrained: bool = False, **kwargs) -> "TimmHCast":
    """Return H-CAST with 384 channels and 1 + 2 + 2 + 1 blocks on the features of EfficientNet-Lite0 (ours)."""
    return _create("hcast_lite_384", pretrained, **kwargs)
