"""Distillation: a student learns from a teacher's probabilities at every level of the tree, and from the labels."""

from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.text import brief, clip
from ..network.config import HCastConfig
from ..network.stems import TIMM
from ..paper.trees import load_tree
from ..taxonomy.decode import node_probabilities
from ..taxonomy.rollup import roll_up
from ..taxonomy.tree import Taxonomy
from ..weights.file import Weights, build_model, load_weights
from .losses import level_cross_entropy

IMAGENET = "imagenet"  # the tree whose leaves are in the order of ImageNet's classes


class TeacherError(ValueError):
    """A teacher's classes are not the leaves of the tree."""


class Teacher(nn.Module):
    """A frozen model that gives the probability of every node.

    Args:
        taxonomy: The student's tree.
        config: The student's config; the teacher is given the student's images.
        mean: Channel means of the teacher's normalisation.
        std: Channel deviations of the teacher's normalisation.
        image_size: Height and width of the teacher's input.
    """

    def __init__(self, taxonomy: Taxonomy, config: HCastConfig, mean: Sequence, std: Sequence, image_size: int):
        super().__init__()
        self.taxonomy, self.image_size = taxonomy, image_size
        student_mean, student_std = torch.tensor(config.mean), torch.tensor(config.std)
        teacher_mean, teacher_std = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (student_std / teacher_std).view(-1, 1, 1))
        self.register_buffer("shift", ((student_mean - teacher_mean) / teacher_std).view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the probabilities of the nodes, one (B, C_l) float32 tensor per level.

        Args:
            images: (B, C, H, W), normalised for the student.
            temperature: Divides the teacher's logits.
        """
        images = images * self.scale + self.shift
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return self.probabilities(images, temperature)

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return what :meth:`forward` does, for images with the teacher's normalisation and size."""
        raise NotImplementedError


class HierarchicalTeacher(Teacher):
    """A teacher that is an H-CAST model with the same tree."""

    def __init__(self, weights: Weights, taxonomy: Taxonomy, config: HCastConfig):
        super().__init__(taxonomy, config, weights.config.mean, weights.config.std, weights.config.image_size)
        self.model = build_model(weights).requires_grad_(False)

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the nodes' probabilities by best_path, with the logits of all levels divided by the temperature."""
        logits = [x.float() / temperature for x in self.model(images).level_logits]
        return node_probabilities(logits, self.taxonomy, path_temperature=len(logits))


class FlatTeacher(Teacher):
    """A timm model that classifies the leaves of the tree.

    Args:
        model: The classifier.
        order: The model's class for each leaf, in the order of ``taxonomy.paths``.
        taxonomy: The student's tree.
        config: The student's config.
    """

    def __init__(self, model: nn.Module, order: Sequence[int], taxonomy: Taxonomy, config: HCastConfig):
        cfg = model.pretrained_cfg
        super().__init__(taxonomy, config, cfg["mean"], cfg["std"], cfg["input_size"][-1])
        self.model = model.requires_grad_(False)
        self.register_buffer("order", torch.tensor(order))

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the leaves' probabilities, summed up the tree."""
        logits = self.model(images).float() / temperature
        return roll_up(logits.softmax(-1)[:, self.order], self.taxonomy)


def load_teacher(source: str, taxonomy: Taxonomy, config: HCastConfig) -> Teacher:
    """Return a teacher for a tree.

    Args:
        source: ``timm:NAME`` for a timm classifier (``timm:local-dir:FOLDER`` for one on disk), or H-CAST weights.
        taxonomy: The student's tree.
        config: The student's config.

    Raises:
        TeacherError: if the teacher's classes are not the tree's leaves.
        ValueError: if it cannot be loaded.
    """
    if not source.startswith(TIMM):
        weights = load_weights(source)
        tree = weights.taxonomy
        if tree is None or (tree.names, tree.paths) != (taxonomy.names, taxonomy.paths):
            raise TeacherError(
                f"teacher: the tree of {source} is not the student's: expected a teacher with the same levels and "
                f"nodes ({_sizes(taxonomy)}), got {_sizes(tree)}"
            )
        return HierarchicalTeacher(weights, taxonomy, config).eval()

    name = source.removeprefix(TIMM)
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # from timm, the Hub or the network
        raise ValueError(f"teacher: timm cannot load {name!r}: {clip(error)}") from error

    return FlatTeacher(model, _order_leaves(model, name, taxonomy), taxonomy, config).eval()


def _order_leaves(model: nn.Module, name: str, taxonomy: Taxonomy) -> list[int]:
    """Return a timm model's class for each leaf.

    Raises:
        TeacherError: if the classes are not the leaves.
    """
    leaves = [taxonomy.path_names(path)[-1] for path in taxonomy.paths]
    classes = model.num_classes
    labels = model.pretrained_cfg.get("label_names")
    if labels is None and classes == 1000:
        tree = load_tree(IMAGENET)
        labels = [tree.path_names(path)[-1] for path in tree.paths]

    if classes != len(leaves) or labels is None or sorted(labels) != sorted(leaves):
        other = None if labels is None else next((label for label in labels if label not in leaves), None)
        known = "" if other is None else f", such as {brief(other)},"
        raise TeacherError(
            f"teacher: the {classes} classes of timm's {name}{known} are not the {len(leaves)} leaves of the tree: "
            "expected a model with the same names (label_names in its configuration), or an ImageNet model for "
            "ImageNet's tree"
        )

    class_of = {label: index for index, label in enumerate(labels)}
    return [class_of[leaf] for leaf in leaves]


def _sizes(taxonomy: Taxonomy | None) -> str:
    return "none" if taxonomy is None else " > ".join(map(str, taxonomy.level_classes))


def distillation_loss(level_logits: Sequence[Tensor], probabilities: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum over the levels of the cross-entropy with a teacher's probabilities, times temperature squared.

    Args:
        level_logits: One (B, C_l) tensor per level, the student's.
        probabilities: One (B, C_l) tensor per level, the teacher's at the same temperature.
        temperature: Divides the student's logits.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    losses = [level_cross_entropy(x / temperature, p) for x, p in zip(level_logits, probabilities, strict=True)]
    return temperature**2 * torch.stack(losses).sum()
