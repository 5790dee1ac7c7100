"""The optimiser of a run: timm's, with optional lower learning rates for early layers and a pretrained stem."""

from collections.abc import Iterable

import timm.optim
import torch
from torch import Tensor

from ..network.stems import PretrainedStem
from .settings import TrainConfig


def make_optimizer(model: torch.nn.Module, settings: TrainConfig, pictures: int) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that are not frozen.

    Args:
        model: The model to train; with ``layer_decay`` it needs timm's ``group_matcher``.
        settings: Optimiser and learning rates.
        pictures: Pictures per step; the settings' rates are for 512.

    Raises:
        ValueError: if nothing is left to train, or a rate is given for a stem that the model does not have.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("expected a model with parameters to train, got one that is frozen completely")

    optimizer = timm.optim.create_optimizer_v2(
        model,
        settings.opt,
        lr=settings.lr * pictures / 512,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
    )
    if settings.stem_lr is not None:
        stem = getattr(model, "stem", None)
        if not isinstance(stem, PretrainedStem):
            raise ValueError("stem_lr: expected a model with a pretrained stem (timm:NAME), got the paper's stem")
        scale_rate(optimizer, stem.body.parameters(), settings.stem_lr / settings.lr)

    return optimizer


def scale_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply the learning rate of some parameters by a factor, which timm's schedulers respect."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        scaled = [p for p in group["params"] if id(p) in chosen]
        if not scaled:
            continue
        rest = [p for p in group["params"] if id(p) not in chosen]
        new = {**group, "params": scaled, "lr_scale": factor * group.get("lr_scale", 1.0)}
        if rest:
            group["params"] = rest
            optimizer.add_param_group(new)
        else:
            group.update(new)
