"""The exponential moving average (EMA) of a model's weights: timm's, or the official code's."""

import copy

import torch
from timm.utils import ModelEmaV3

from .settings import TrainConfig


class OfficialAverage(torch.nn.Module):
    """EMA as in the authors' code: constant decay, and blocks averaged twice per step.

    Their state dict holds every block under two names, and the average goes over the names. The statistics of batch
    norms are averaged too; their integer counters stay 0.

    Args:
        model: The model to average.
        decay: Decay per step.

    Source: timm 0.4.12's ModelEma; docs/official_differences.md, 39.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int | None = None) -> None:
        """Move the average towards ``model``; ``step`` is not used, as the decay is constant."""
        new = model.state_dict()
        for name, value in self.module.state_dict().items():
            for _ in range(2 if ".blocks." in name else 1):
                value.copy_(value * self.decay + (1.0 - self.decay) * new[name])


def make_average(model: torch.nn.Module, settings: TrainConfig) -> torch.nn.Module | None:
    """Return the EMA of the settings, or None; its attribute ``module`` is the averaged model."""
    if not settings.ema_decay:
        return None
    if settings.paper_exact:
        return OfficialAverage(model, settings.ema_decay)

    return ModelEmaV3(model, settings.ema_decay, use_warmup=True)
