"""Teachers: models whose probabilities at every level of the tree a student learns from, beside the labels."""

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
    """A teacher does not know the leaves of the tree."""


class Teacher(nn.Module):
    """A model that tells the probability of every node; it never learns.

    Args:
        taxonomy: The student's tree.
        config: Of the student, whose images the teacher is given.
        mean: Channel means that the teacher's own pictures are normalised by.
        std: Channel deviations of the same.
        image_size: Height and width of the teacher's own pictures.
    """

    def __init__(self, taxonomy: Taxonomy, config: HCastConfig, mean: Sequence, std: Sequence, image_size: int):
        super().__init__()
        self.taxonomy, self.image_size = taxonomy, image_size
        student_mean, student_std = torch.tensor(config.mean), torch.tensor(config.std)
        own_mean, own_std = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (student_std / own_std).view(-1, 1, 1))
        self.register_buffer("shift", ((student_mean - own_mean) / own_std).view(-1, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the probabilities of the nodes, one (B, C_l) float32 tensor a level.

        Args:
            images: (B, C, H, W), normalised for the student.
            temperature: That the teacher's logits are divided by.
        """
        images = images * self.scale + self.shift
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return self.probabilities(images, temperature)

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return what :meth:`forward` does, for images as the teacher wants them."""
        raise NotImplementedError


class HierarchicalTeacher(Teacher):
    """A teacher that is an H-CAST model with the same tree."""

    def __init__(self, content: Weights, taxonomy: Taxonomy, config: HCastConfig):
        own = content.config
        super().__init__(taxonomy, config, own.mean, own.std, own.image_size)
        self.model = build_model(content).requires_grad_(False)

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the nodes' probabilities by best_path, the levels' logits divided by the temperature."""
        logits = [x.float() / temperature for x in self.model(images).level_logits]
        return node_probabilities(logits, self.taxonomy, path_temperature=len(logits))


class FlatTeacher(Teacher):
    """A timm model of the tree's leaves.

    Args:
        model: The classifier.
        order: The model's class of each leaf, in the order of ``taxonomy.paths``.
        taxonomy: The student's tree.
        config: Of the student.
    """

    def __init__(self, model: nn.Module, order: Sequence[int], taxonomy: Taxonomy, config: HCastConfig):
        own = model.pretrained_cfg
        super().__init__(taxonomy, config, own["mean"], own["std"], own["input_size"][-1])
        self.model = model.requires_grad_(False)
        self.register_buffer("order", torch.tensor(order))

    def probabilities(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return the leaves' probabilities, summed up the tree."""
        logits = self.model(images).float() / temperature
        return roll_up(logits.softmax(-1)[:, self.order], self.taxonomy)


def load_teacher(source: str, taxonomy: Taxonomy, config: HCastConfig) -> Teacher:
    """Return a teacher for a tree.

    Args:
        source: ``timm:NAME`` for a classifier of timm's (``timm:local-dir:FOLDER`` for one on disk), or H-CAST weights.
        taxonomy: The student's tree.
        config: The student's.

    Raises:
        TeacherError: if the teacher's classes are not the tree's leaves.
        ValueError: if it cannot be loaded.
    """
    if not source.startswith(TIMM):
        content = load_weights(source)
        own = content.taxonomy
        if own is None or (own.names, own.paths) != (taxonomy.names, taxonomy.paths):
            raise TeacherError(
                f"teacher: the tree of {source} is not the one to be learned: expected a teacher with the same levels "
                f"and nodes ({_sizes(taxonomy)}), got {_sizes(own)}"
            )
        return HierarchicalTeacher(content, taxonomy, config).eval()

    name = source.removeprefix(TIMM)
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # of timm, the Hub or the network
        raise ValueError(f"teacher: timm cannot load {name!r}: {clip(error)}") from error

    return FlatTeacher(model, _order_leaves(model, name, taxonomy), taxonomy, config).eval()


def _order_leaves(model: nn.Module, name: str, taxonomy: Taxonomy) -> list[int]:
    """Return the class of a timm model for each leaf.

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
            "expected a model of the same names (label_names in its configuration), or of ImageNet for its tree"
        )

    places = {label: index for index, label in enumerate(labels)}
    return [places[leaf] for leaf in leaves]


def _sizes(taxonomy: Taxonomy | None) -> str:
    return "none" if taxonomy is None else " > ".join(map(str, taxonomy.level_classes))


def distillation_loss(level_logits: Sequence[Tensor], told: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum over the levels of the cross-entropy with a teacher's probabilities, times temperature squared.

    Args:
        level_logits: One (B, C_l) tensor a level: the student's.
        told: One (B, C_l) tensor a level: the teacher's, at the same temperature.
        temperature: That the student's logits are divided by.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    losses = [level_cross_entropy(x / temperature, t) for x, t in zip(level_logits, told, strict=True)]
    return temperature**2 * torch.stack(losses).sum()
