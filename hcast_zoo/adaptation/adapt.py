"""Test-time adaptation in reverse hierarchy: a label corrects the segments that it was read from.

A loss on the labels is back-propagated from the heads through the poolings to the superpixels, selected tensors take a
few small steps, and the picture is fed forward again. The authors of H-CAST show one example of the idea and released
no code; the choice of tensors, the steps and their limits are our interpretation.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.choices import FEEDBACK
from ..network.model import HCast, HCastOutput
from ..segments.metrics import colour_contrast
from ..taxonomy.calibration import Calibration
from ..taxonomy.decode import path_scores
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .config import AdaptConfig

Loss = Callable[[Sequence[Tensor]], Tensor]


class AdaptationError(ValueError):
    """Adaptation reached a value that is not finite, or the labels do not depend on what it may change.

    The model is unchanged.
    """


@dataclasses.dataclass
class Adaptation:
    """A picture's answer before and after adaptation, and what changed.

    Attributes:
        before: The output of the model as stored.
        after: The output with the lowest loss of the steps that were kept; it is never higher than that of ``before``.
        losses: The loss before the first step and after each step.
        node: Level and index of the target, or None for feedback without a target.
        distances: How far each kind of tensor moved, as a fraction of its norm.
        token_offset: (1, N, C) offset that was added to the superpixels' tokens, or None.
        parameters: Adapted values by parameter name.
    """

    before: HCastOutput
    after: HCastOutput
    losses: tuple[float, ...]
    node: tuple[int, int] | None
    distances: dict[str, float]
    token_offset: Tensor | None
    parameters: dict[str, nn.Parameter]

    def applied(self, model: HCast) -> contextlib.AbstractContextManager[HCast]:
        """Return a context that yields the model adapted to this picture; the model itself does not change."""
        return contextlib.nullcontext(twin(model, self.parameters, self.token_offset))


def twin(model: HCast, parameters: dict[str, nn.Parameter], token_offset: Tensor | None = None) -> HCast:
    """Return a model that shares everything with another except the given parameters.

    Only the module objects are new: tensors are shared and never written to, so other threads can use the original at
    the same time. (``torch.func.functional_call`` swaps the tensors inside the original while it runs.)

    Args:
        model: The original, which does not change.
        parameters: Parameters of the twin that replace the original's, by name in ``model.named_parameters()``.
        token_offset: (1, N, C), added to the tokens that enter stage 1; empty superpixels get none.
    """
    new = _copy_modules(model, {})
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(owner), leaf, parameter)
    if token_offset is not None:
        new.stages[0].register_forward_pre_hook(functools.partial(_shift_tokens, token_offset))

    return new


def adapt(
    model: HCast,
    image: Tensor,
    taxonomy: Taxonomy,
    target: str | tuple[int, int] | None = None,
    *,
    feedback: str = "target",
    config: AdaptConfig | None = None,
    segments: Tensor | None = None,
    num_clusters: tuple[int, ...] | None = None,
    calibration: Calibration | None = None,
) -> Adaptation:
    """Adapt a copy of a model to one picture, by a loss on its labels.

    The model itself is never modified, so several threads can adapt it and predict with it at the same time.

    Args:
        model: A model in eval mode.
        image: (1, C, H, W) float, normalised.
        taxonomy: The model's labels.
        target: For feedback ``target``: a node at any level, by name (see :meth:`Taxonomy.find`), or level and index.
        feedback: ``target`` raises the probability of the node; ``path``, that of the path predicted before adaptation;
            ``agreement``, the probability that the levels, drawn independently, form a path of the tree. ``entropy``
            makes every level more confident.
        config: How far adaptation may go.
        segments: (1, H, W) superpixels; computed by the model if None.
        num_clusters: Cluster counts to use instead of the model's.
        calibration: Calibration of the weights; probabilities are then calibrated.

    Raises:
        AdaptationError: if the loss or its gradient is not finite, or does not depend on what may change.
        TaxonomyError: if the target is unknown; the message names similar nodes.
        ValueError: if another argument is invalid.
    """
    config = config or AdaptConfig()
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"expected one image (1, C, H, W), because parameters adapt to it, got {tuple(image.shape)}")
    if model.training:
        raise ValueError("expected a model in eval mode: training would change its statistics; call model.eval()")

    with torch.inference_mode(False), torch.enable_grad():
        image = image.clone()  # a tensor made in inference mode cannot be back-propagated through
        segments = model.prepare_segments(image, segments, model.config.num_superpixels)
        with torch.no_grad():
            before = model(image, segments, num_clusters=num_clusters)
            node = _find_node(before, taxonomy, target, feedback, calibration)
            tokens, _ = model.embed(image, segments, model.config.num_superpixels)

        loss = make_loss(feedback, taxonomy, node, calibration)
        groups = [_free_group(model, kind, tokens[:, 1:]) for kind in config.free]
        offset = next((g.values["tokens"] for g in groups if g.kind == "tokens"), None)
        parameters: dict[str, nn.Parameter] = {}
        for group in groups:
            if group.kind != "tokens":
                parameters |= group.values

        forward = functools.partial(twin(model, parameters, offset), image, segments, num_clusters=num_clusters)
        after, losses = _descend(forward, loss, image, groups, config)

    return Adaptation(
        before=before,
        after=after,
        losses=losses,
        node=node,
        distances={g.kind: g.distance() for g in groups},
        token_offset=None if offset is None else offset.detach(),
        parameters=parameters,
    )


def node_log_probability(
    level_logits: Sequence[Tensor], taxonomy: Taxonomy, node: tuple[int, int], calibration: Calibration | None = None
) -> Tensor:
    """Return the (B,) logarithm of a node's probability, summed over all paths through it as in ``best_path``.

    Args:
        level_logits: One (B, C_l) tensor per level.
        taxonomy: The tree.
        node: Level and index.
        calibration: Of the weights.
    """
    scores = _path_scores(level_logits, taxonomy, calibration)
    through = [i for i, path in enumerate(taxonomy.paths) if path[node[0]] == node[1]]
    return scores[:, through].logsumexp(-1) - scores.logsumexp(-1)


def make_loss(
    feedback: str, taxonomy: Taxonomy, node: tuple[int, int] | None = None, calibration: Calibration | None = None
) -> Loss:
    """Return the loss that adaptation minimises, as a function of the levels' logits; see :func:`adapt`.

    Raises:
        ValueError: if the feedback is unknown.
    """

    def entropy(level_logits: Sequence[Tensor]) -> Tensor:
        log_probs = [x.log_softmax(-1) for x in _scaled(level_logits, calibration)]
        return torch.stack([-(x.exp() * x).sum(-1) for x in log_probs]).mean()

    losses: dict[str, Loss] = {
        "entropy": entropy,
        "agreement": lambda x: -_path_scores(x, taxonomy, calibration, tempered=False).logsumexp(-1).mean(),
        "target": lambda x: -node_log_probability(x, taxonomy, node, calibration).mean(),  # type: ignore[arg-type]
    }
    losses["path"] = losses["target"]
    if feedback not in losses:
        raise ValueError(f"unknown feedback {feedback!r}: expected one of {', '.join(FEEDBACK)}")

    return losses[feedback]


@dataclasses.dataclass
class _FreeGroup:
    """One kind of tensors that may change: their values, their start, and the norm that scales the steps."""

    kind: str
    values: dict[str, nn.Parameter]
    start: dict[str, Tensor]
    scale: float

    def distance(self) -> float:
        return _norm([v.detach() - self.start[k] for k, v in self.values.items()]) / max(self.scale, 1e-12)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], config: AdaptConfig, factor: float) -> None:
        """Take a step of fixed length, times ``factor``, against the gradient; then project onto the trust region."""
        norm = _norm(gradients)
        if norm == 0:
            return

        for value, gradient in zip(self.values.values(), gradients):
            value.sub_(factor * config.step_size * self.scale / norm * gradient)

        if (distance := self.distance()) > config.radius:
            for name, value in self.values.items():
                value.copy_(self.start[name] + (value - self.start[name]) * (config.radius / distance))

    def copy_values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])


def _descend(
    forward: Callable[[], HCastOutput], loss: Loss, image: Tensor, groups: list[_FreeGroup], config: AdaptConfig
) -> tuple[HCastOutput, tuple[float, ...]]:
    """Take the steps, restore the best one, and return its output and all losses."""
    losses: list[float] = []
    gradients: list[list[Tensor]] = []
    best: _Point | None = None
    factor = 1.0  # of the length of a step
    for step in range(config.steps + 1):
        output = forward()
        value = loss(output.level_logits)
        if not value.isfinite():
            raise AdaptationError(
                f"the loss is {value.item()} after {step} steps, the model is unchanged: "
                + ("check the picture" if step == 0 else "try a smaller step_size or radius")
            )

        losses.append(value.item())
        point = _Point(
            loss=losses[-1],
            contrast=mean_contrast(output, image) if config.contrast else 0.0,
            output=output.detach(),
            values=[group.copy_values() for group in groups],
        )
        better = best is None or (point.loss < best.loss and (not config.contrast or point.contrast > best.contrast))
        if better:
            best = point
        if step == config.steps:
            break

        if better or not config.contrast:
            gradients = _gradients(value, groups, step)
        else:  # back to the last step that was kept, whose gradients still hold
            assert best is not None
            factor /= 2
            for group, values in zip(groups, best.values):
                group.restore(values)
        for group, group_gradients in zip(groups, gradients):
            group.step(group_gradients, config, factor)

        if step == 0 and losses[0] > 0 and not any(_norm(group_gradients) for group_gradients in gradients):
            kinds = ", ".join(group.kind for group in groups)
            raise AdaptationError(
                f"the labels of these weights do not depend on what may change ({kinds}): free other tensors, or "
                "adapt weights whose attention was trained, such as hcast_small.emoji_art"
            )

    assert best is not None  # at least the point before the first step
    for group, values in zip(groups, best.values):
        group.restore(values)

    return best.output, tuple(losses)


@dataclasses.dataclass
class _Point:
    """A point of the descent: the loss and the segments' contrast there, the output, and the groups' values."""

    loss: float
    contrast: float
    output: HCastOutput
    values: list[dict[str, Tensor]]


def _gradients(value: Tensor, groups: list[_FreeGroup], step: int) -> list[list[Tensor]]:
    """Return the gradients of a loss by each group's tensors."""
    tensors = list(itertools.chain.from_iterable(group.values.values() for group in groups))
    # Gradients are zero for tensors of stages after the one that the target's level reads.
    gradients = iter(torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True))
    by_group = [list(itertools.islice(gradients, len(group.values))) for group in groups]
    for group, group_gradients in zip(groups, by_group):
        if not math.isfinite(_norm(group_gradients)):
            raise AdaptationError(
                f"the gradient of {group.kind} is not finite after {step} steps; the model is unchanged"
            )
    return by_group


def mean_contrast(output: HCastOutput, image: Tensor) -> float:
    """Return the colour contrast of one image's segments, averaged over the stages after the first.

    Args:
        output: For the image.
        image: (1, C, H, W) float.

    Returns:
        In percent; see :func:`.metrics.colour_contrast`.
    """
    stages = range(2, len(output.assignments) + 2)
    return statistics.mean(colour_contrast(output.segment_map(stage)[0], image[0]) for stage in stages)


def _free_group(model: HCast, kind: str, tokens: Tensor) -> _FreeGroup:
    if kind == "tokens":
        start = {"tokens": torch.zeros_like(tokens)}
        scale = _norm([tokens])
    else:
        names = free_parameters(model, kind)
        start = {name: p.detach() for name, p in model.named_parameters() if name in names}
        scale = _norm(list(start.values()))

    values = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    return _FreeGroup(kind=kind, values=values, start=start, scale=scale)


def free_parameters(model: HCast, kind: str) -> set[str]:
    """Return the names of the parameters of a kind of ``FREE``, ``pooling`` or ``norms``."""
    if kind == "norms":
        # Not the norm before the coarsest heads, which comes after all segments.
        owners = [f"stages.{name}." for name, m in model.stages.named_modules() if isinstance(m, nn.LayerNorm)]
    else:
        # Not the pooling's MLP, which also feeds the class token, and not a last pooling, which reaches no head.
        owners = [f"stages.{i}.pool.centroid_fc." for i, s in enumerate(model.stages[:-1]) if s.pool is not None]

    return {name for name, _ in model.named_parameters() if name.startswith(tuple(owners))}


def _find_node(
    output: HCastOutput,
    taxonomy: Taxonomy,
    target: str | tuple[int, int] | None,
    feedback: str,
    calibration: Calibration | None,
) -> tuple[int, int] | None:
    if (target is None) == (feedback == "target"):
        raise ValueError(
            f"expected a target for the feedback 'target', and None for others, got {target!r} for {feedback!r}"
        )

    if isinstance(target, str):
        return taxonomy.find(target)

    if target is not None:
        level, index = target
        if not (0 <= level < len(taxonomy.levels) and 0 <= index < len(taxonomy.names[level])):
            raise ValueError(f"expected a target's level and index in levels of {taxonomy.level_classes}, got {target}")
        return level, index

    if feedback != "path":
        return None

    best = taxonomy.paths[_path_scores(output.level_logits, taxonomy, calibration)[0].argmax()]
    level = max(i for i, node in enumerate(best) if node != UNKNOWN)

    return level, best[level]


def _path_scores(
    level_logits: Sequence[Tensor], taxonomy: Taxonomy, calibration: Calibration | None, tempered: bool = True
) -> Tensor:
    scores = path_scores([x.log_softmax(-1) for x in _scaled(level_logits, calibration)], taxonomy)
    return scores / calibration.path_temperature if calibration is not None and tempered else scores


def _scaled(level_logits: Sequence[Tensor], calibration: Calibration | None) -> Sequence[Tensor]:
    return level_logits if calibration is None else calibration.logits(level_logits)


def _shift_tokens(offset: Tensor, stage: nn.Module, arguments: tuple) -> tuple:
    tokens, valid, *rest = arguments
    if tokens[:, 1:].shape != offset.shape:
        raise ValueError(
            f"expected the one picture, of {offset.shape[1]} tokens, that the model is adapted to, got {len(tokens)} "
            f"pictures of {tokens.shape[1] - 1} tokens"
        )

    return tokens + F.pad(offset * valid[..., None], (0, 0, 1, 0)), valid, *rest


def _copy_modules(module: nn.Module, copies: dict[int, nn.Module]) -> Any:
    """Copy a tree of modules: the objects, and the dictionaries that hold their tensors and hooks."""
    if id(module) in copies:
        return copies[id(module)]

    copy = copies[id(module)] = module.__new__(type(module))
    copy.__dict__ = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
    copy.__dict__.pop("_compiled_call_impl", None)  # of Module.compile(): it is bound to the original
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else _copy_modules(child, copies)

    return copy


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors))
