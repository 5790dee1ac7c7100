"""Class imbalance: sampling weights for pictures, and class weights and priors for the loss."""

import json

import torch
from torch import Tensor

from ..taxonomy.prior import KEY, trained_shares
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .losses import HierarchicalLoss
from .settings import TrainConfig

POWERS = {"natural": 0.0, "sqrt": 0.5, "balanced": 1.0}


def sample_weights(labels: Tensor, sampler: str) -> Tensor | None:
    """Return the probability of drawing each picture, (S,) float64 that sum to 1; None if all are equal.

    ``balanced`` draws all classes equally often, ``sqrt`` in proportion to the square root of their size. The class of
    a picture is the deepest known node of its label.

    Args:
        labels: (S, L) int64, -1 for unknown.
        sampler: ``natural``, ``sqrt`` or ``balanced``.

    Example:
        >>> sample_weights(torch.tensor([[0], [0], [0], [1]]), "balanced")
        tensor([0.1667, 0.1667, 0.1667, 0.5000], dtype=torch.float64)
    """
    power = POWERS[sampler]
    if not power:
        return None
    _, number, counts = labels.unique(dim=0, return_inverse=True, return_counts=True)
    weights = counts[number].double() ** -power
    return weights / weights.sum()


def level_priors(labels: Tensor, level_classes: tuple[int, ...], weights: Tensor | None = None) -> list[Tensor]:
    """Return the share of each class among the drawn pictures, one (C_l,) float32 tensor per level.

    A class without pictures counts as having one.

    Args:
        labels: (S, L) int64, -1 for unknown.
        level_classes: Classes of each level.
        weights: (S,) probability of drawing each picture; uniform by default.
    """
    weights = torch.full((len(labels),), 1.0 / len(labels), dtype=torch.float64) if weights is None else weights
    priors = []
    for column, classes in zip(labels.T, level_classes):
        known = column != UNKNOWN
        counts = torch.zeros(classes, dtype=torch.float64).index_add(0, column[known], weights[known] * len(labels))
        counts = counts.clamp(min=1.0)
        priors.append((counts / counts.sum()).float())

    return priors


def class_weights(priors: list[Tensor], kind: str) -> list[Tensor] | None:
    """Return the weight of each class in the loss, one (C_l,) float32 tensor per level; 1 on average over the pictures.

    Args:
        priors: See :func:`level_priors`.
        kind: ``balanced``, the inverse of the share; ``sqrt``, its square root; or ``none``.
    """
    if kind == "none":
        return None

    weights = []
    for prior in priors:
        weight = prior ** -POWERS[kind]
        weights.append(weight / (weight * prior).sum())

    return weights


def training_prior(labels: Tensor, taxonomy: Taxonomy, settings: TrainConfig) -> dict[str, str]:
    """Return the entry of the weights' metadata that says how frequent each leaf was for the model in training.

    Args:
        labels: (S, L) int64, -1 for unknown, of the training pictures.
        taxonomy: The tree.
        settings: How often pictures are drawn, and how far the loss makes up for rare classes.
    """
    balancing = 0.0 if settings.class_weights == "none" else POWERS[settings.class_weights]
    balancing = min(1.0, balancing + settings.logit_adjustment)
    shares = trained_shares(labels, taxonomy, sample_weights(labels, settings.sampler), balancing)
    return {KEY: json.dumps([float(f"{share:.4g}") for share in shares])}


def make_loss(
    labels: Tensor, level_classes: tuple[int, ...], settings: TrainConfig, weights: Tensor | None
) -> HierarchicalLoss:
    """Return the loss of the settings, for (S, L) training labels drawn with (S,) probabilities."""
    priors = level_priors(labels, level_classes, weights)
    return HierarchicalLoss(
        settings.kl_weight,
        smoothing=settings.smoothing,
        priors=priors if settings.logit_adjustment else None,
        adjustment=settings.logit_adjustment,
        class_weights=class_weights(priors, settings.class_weights),
    )
