"""The start of a training: a pretrained stem, fitted heads, and frozen parts."""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.text import clip
from ..network.config import HCastConfig
from ..network.stems import TIMM, PretrainedStem, weighted_mean
from ..taxonomy.tree import UNKNOWN
from ..weights.file import load_weights, packaged_weights, read_weights
from ..weights.header import header_path
from .imbalance import class_weights, level_priors, sample_weights
from .settings import TrainConfig

BODY = "stem.body."  # prefix of the pretrained part's tensor names
CHECKPOINTS = (".pth", ".pt", ".bin")  # suffixes of timm's files; other files are weights of hcast-zoo
FITTED_STEPS = 60  # steps of L-BFGS, at most
PENALTY = 3e-3  # L2 penalty on a fitted head's weights, for features of unit deviation


def load_stem(model: torch.nn.Module, source: str | None) -> str | None:
    """Load the pretrained part of a new model's stem; return where it came from.

    Args:
        model: A new model; a model with the paper's stem is not changed.
        source: Weights of an H-CAST model with the same stem; a file of timm's model; ``timm`` to download timm's
            weights; ``none`` for random values. By default packaged weights with that stem if there are any, else
            timm's.

    Raises:
        ValueError: if the source has another stem.
    """
    stem = getattr(model, "stem", None)
    if not isinstance(stem, PretrainedStem):
        return None

    config = cast(HCastConfig, model.config)
    source = stem_source(config, source)
    if source is None:
        return None
    if source == "timm":
        stem.body.load_state_dict(_download(config), strict=False)
    elif Path(source).suffix in CHECKPOINTS:
        _load_checkpoint(stem.body, source)
    else:
        weights = load_weights(source)
        if weights.config.stem != config.stem:
            raise ValueError(f"stem_weights: expected weights with the stem {config.stem}, got {weights.config.stem}")
        body = {}
        for name, tensor in weights.state_dict.items():
            if name.startswith(BODY):
                body[name.removeprefix(BODY)] = tensor
        stem.body.load_state_dict(body)

    return source


def stem_source(config: HCastConfig, source: str | None) -> str | None:
    """Return where :func:`load_stem` takes a stem from; None for the paper's stem, and for random values."""
    if config.stem == "conv" or source == "none":
        return None
    return source or packaged_stem(config) or "timm"


def packaged_stem(config: HCastConfig) -> str | None:
    """Return the name of packaged weights that have a config's stem, or None."""
    for name, entry in packaged_weights().items():
        if read_weights(header_path(entry), tensors=False).config.stem == config.stem:
            return name

    return None


def _load_checkpoint(body: torch.nn.Module, file: str) -> None:
    """Load a file of timm's model, matching tensors by name or, if the names differ, by order."""
    for by_order in (False, True):
        try:
            timm.models.load_checkpoint(body, file, strict=not by_order, remap=by_order)
            return
        except (RuntimeError, AssertionError) as error:
            reason = error

    raise ValueError(
        f"stem_weights: expected weights of {type(body).__name__}, but {file} does not fit: {clip(reason)}"
    ) from reason


def _download(config: HCastConfig) -> dict[str, Tensor]:
    name = config.stem.removeprefix(TIMM)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, in_chans=config.in_chans).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"stem_weights: timm cannot get the weights of {name} ({error}): give a file with --stem-weights, or "
            "--stem-weights none to start from random values"
        ) from error


@torch.no_grad()
def fit_evidence(model: torch.nn.Module, batches: Iterable[dict | None]) -> None:
    """Initialise a new model from its pretrained stem's features of the training pictures.

    Features are standardised by the superpixels of the first batch. A token's evidence is its projection on the
    principal components of the pictures' mean features. All residual branches start at zero, so the class token of
    every stage, the mean of its tokens' evidence, starts as the principal components of the whole picture.

    Args:
        model: A model with a pretrained stem.
        batches: ``images``, as averages over superpixels, of training pictures.
    """
    stem = model.stem
    device = next(model.parameters()).device
    pictures: list[Tensor] = []
    for batch in batches:
        if batch is None:
            continue
        means = batch["images"].to(device)
        if not pictures:
            stem.fit_statistics(means.features, means.area > 0)
        pictures.append(weighted_mean(means.features, means.area)[:, 0])

    rows = (torch.cat(pictures) - stem.feature_mean) / stem.feature_std
    centre, spread = rows.mean(0), rows.std(0).clamp(min=1e-3)  # among pictures, not among superpixels
    rows = (rows - centre) / spread
    components = torch.linalg.svd(rows, full_matrices=False).Vh[: model.config.embed_dim]  # [C or fewer, F]
    scale = (rows @ components.T).square().mean().sqrt().clamp(min=1e-6)
    components = components / spread

    torch.nn.init.zeros_(stem.evidence.weight)
    torch.nn.init.zeros_(stem.evidence.bias)
    stem.evidence.weight[: len(components)] = components / scale
    stem.evidence.bias[: len(components)] = -components @ centre / scale
    for stage in model.stages:
        last_layers = []
        for block in stage.blocks:
            last_layers += [block.attn.proj, block.mlp.fc2]
        if stage.pool is not None:
            last_layers.append(stage.pool.fc2[1])

        for layer in last_layers:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


def fit_heads(model: torch.nn.Module, batches: Iterable[dict | None], settings: TrainConfig) -> None:
    """Start each level's head from a logistic regression on its features.

    Training then starts from useful heads instead of random ones.

    Args:
        model: A model whose heads are linear layers.
        batches: ``images``, ``segments`` and ``labels`` (B, L) int64 of training pictures.
        settings: Label smoothing, and the settings for class imbalance.
    """
    training = model.training
    model.eval()
    features, labels = collect_features(model, batches)
    drawn = sample_weights(labels.cpu(), settings.sampler)
    priors = level_priors(labels.cpu(), model.config.level_classes, drawn)
    weights = class_weights(priors, settings.class_weights) or [torch.ones_like(prior) for prior in priors]

    for level, (head, values) in enumerate(zip(model.heads, features)):
        known = labels[:, level] != UNKNOWN
        if not known.any():
            continue

        target = labels[known, level]
        importance = weights[level].to(target.device)[target]
        if drawn is not None:
            importance = importance * drawn.to(target.device)[known]
        offset = settings.logit_adjustment * priors[level].log().to(target.device)
        fit_head(
            head,
            values[known],
            target,
            importance=importance / importance.sum(),
            offset=offset,
            smoothing=settings.smoothing,
        )

    model.train(training)


@torch.no_grad()
def collect_features(model: torch.nn.Module, batches: Iterable[dict | None]) -> tuple[list[Tensor], Tensor]:
    """Return the input of the heads, one (S, C) float32 tensor per level, and the (S, L) labels."""
    device = next(model.parameters()).device
    features, labels = [], []
    for batch in batches:
        if batch is None:
            continue
        output = model(batch["images"].to(device), batch["segments"].to(device))
        features.append([x.float() for x in output.level_features])
        labels.append(batch["labels"].to(device))

    if not labels:
        raise ValueError("none of the training pictures can be read")

    return [torch.cat(level) for level in zip(*features)], torch.cat(labels)


def fit_head(
    head: torch.nn.Linear,
    features: Tensor,
    labels: Tensor,
    *,
    importance: Tensor,
    offset: Tensor,
    smoothing: float = 0.0,
) -> None:
    """Set a head to the multinomial logistic regression of labels on features.

    Args:
        head: The head to set.
        features: (S, C).
        labels: (S,) int64.
        importance: (S,) weights of the samples, which sum to 1.
        offset: (classes,) added to the logits during the fit.
        smoothing: Label smoothing.
    """
    centre = features.mean(0)
    scale = (features - centre).square().mean().sqrt().clamp(min=1e-6)
    rows = (features - centre) / scale
    weight = torch.zeros_like(head.weight, dtype=rows.dtype).requires_grad_()
    bias = torch.zeros_like(head.bias, dtype=rows.dtype).requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=FITTED_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = rows @ weight.T + bias + offset
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        value = (importance * losses).sum() + PENALTY * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - weight @ centre / scale)


def freeze(model: torch.nn.Module, part: str) -> None:
    """Freeze a part of a model: ``stem``, ``encoder`` (all but the heads), or ``none``.

    Raises:
        ValueError: if the stem is to be frozen and is the paper's, which is not pretrained.
    """
    if part == "none":
        return
    if part == "stem" or isinstance(getattr(model, "stem", None), PretrainedStem):
        model.freeze_stem()
    if part == "encoder":
        model.requires_grad_(False)
        model.heads.requires_grad_(True)


def set_training(model: torch.nn.Module, frozen: str) -> None:
    """Put a model in training mode, except the part that is frozen; see :func:`freeze`."""
    model.train()
    if frozen == "encoder":
        for name, child in model.named_children():
            if name not in ("heads", "head_drop"):
                child.eval()
