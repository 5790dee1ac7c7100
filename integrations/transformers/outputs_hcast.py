"""Outputs of the models, in forms that transformers can index, split and gather."""

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor
from transformers.utils import ModelOutput

from hcast_zoo.network.model import segment_map


@dataclasses.dataclass(init=False, eq=False)
class TensorSequence(ModelOutput):
    """Tensors of several levels or stages: a tuple, in a form that transformers can split by picture.

    Indexing by number, ``len`` and iteration are those of a tuple; the keys are ``"0"``, ``"1"`` and so on.
    transformers' pipelines can only split tensors and ``ModelOutput`` objects.

    Args:
        tensors: The tensors, in order or by key.
        named: Tensors by key, which is how PyTorch reassembles outputs.
    """

    def __init__(self, tensors: Iterable[Tensor] | Mapping[str, Tensor] = (), **named: Tensor):
        super().__init__()
        pairs = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
        for key, tensor in (*pairs, *named.items()):
            self[str(key)] = tensor

    def __iter__(self):
        return iter(self.to_tuple())

    def __reversed__(self):
        return reversed(self.to_tuple())


class SegmentedOutput(ModelOutput):
    """What every output has in common: ``segments``, and the maps that follow from them."""

    def segment_map(self, stage: int) -> Tensor:
        """Return the (B, H, W) int64 segmentation of a stage (1 to 4), each token in its most probable cluster."""
        superpixels, *assignments = self.segments
        return segment_map(superpixels, tuple(assignments), stage)


@dataclasses.dataclass
class HCastModelOutput(SegmentedOutput):
    """Features, and the segmentations that they were read from.

    Attributes:
        last_hidden_state: (B, 1 + N, C) normalised class token and segment tokens of the last stage.
        pooler_output: (B, C) normalised class token of the last stage, which sees the whole object.
        level_features: One (B, C) tensor per level, coarse to fine: the class token that the level reads.
        segments: What the tokens of each stage stand for. First the (B, H, W) int64 superpixel of each pixel; then one
            (B, N, M) tensor per pooling: the probability that each of the N tokens of stage s is in each of the M
            clusters that are the tokens of stage s + 1.
        hidden_states: On request, the (B, 1 + N, C) tokens entering stage 1 and leaving each block.
        attentions: On request and with eager attention, (B, heads, 1 + N, 1 + N) probabilities of each block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    level_features: TensorSequence | None = None
    segments: TensorSequence | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class HierarchicalImageClassifierOutput(SegmentedOutput):
    """Labels of every level.

    Attributes:
        loss: With labels, a scalar: cross-entropy of every level plus the Tree-path KL.
        logits: (B, classes) of the finest level.
        level_logits: One (B, classes) tensor per level, coarse to fine; the last one is ``logits``.
        paths: On request, (B, L) int64 node of each level; -1 below a shallow leaf.
        segments: As in :class:`HCastModelOutput`.
        hidden_states: As there.
        attentions: As there.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    level_logits: TensorSequence | None = None
    paths: Tensor | None = None
    segments: TensorSequence | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


__all__ = ["HCastModelOutput", "HierarchicalImageClassifierOutput", "TensorSequence"]
