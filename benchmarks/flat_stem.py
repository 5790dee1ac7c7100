"""A flat classifier with the stem of an H-CAST: its leaf head reads the whole picture at once.

The levels above are sums of the leaves' probabilities. The head reads what the H-CAST's class token starts from; there
are no stages and segments. benchmarks/focus.py compares the two.
"""

import torch
from torch import Tensor, nn

from hcast_zoo import HCast, HCastOutput, Taxonomy
from hcast_zoo.network.stems import weighted_mean
from hcast_zoo.segments.explain import Explanation
from hcast_zoo.taxonomy.rollup import roll_up


class FlatStem(nn.Module):
    """The leaf head on the stem's evidence, averaged over the picture.

    Args:
        model: An H-CAST with a pretrained stem and evidence.
        taxonomy: Its tree.
    """

    def __init__(self, model: HCast, taxonomy: Taxonomy):
        super().__init__()
        if model.config.stem == "conv":
            raise ValueError("expected a model with a pretrained stem, got the paper's stem")

        self.model, self.taxonomy = model, taxonomy
        self.leaves = [path[-1] for path in taxonomy.paths]

    def forward(self, images: Tensor, segments: Tensor) -> HCastOutput:
        """Classify (B, C, H, W) images; (B, H, W) superpixels only divide the picture."""
        return self.read(*self.evidence(images, segments), segments)

    def evidence(self, images: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return the evidence of each superpixel, (B, N, C), and its share of the picture's area, (B, N)."""
        means = self.model.superpixel_means(images, segments, self.model.config.num_superpixels)
        return self.model.stem(means.features)[1], means.area / means.area.sum(1, keepdim=True)

    def read(self, evidence: Tensor, area: Tensor, segments: Tensor) -> HCastOutput:
        """Return the output for evidence; the logits are log-probabilities."""
        feature = weighted_mean(evidence, area)[:, 0]
        leaves = self.model.heads[-1](feature)[:, self.leaves].softmax(-1)
        levels = tuple(level.clamp(min=1e-12).log() for level in roll_up(leaves, self.taxonomy))
        return HCastOutput(
            level_logits=levels, segments=segments, assignments=(), level_features=(feature,) * len(levels)
        )

    def explain(self, images: Tensor, segments: Tensor) -> tuple[HCastOutput, Explanation]:
        """Say where each level looks: the positive part of what each superpixel adds to its most probable node."""
        with torch.no_grad():
            evidence, area = self.evidence(images, segments)

        evidence.requires_grad_()
        output = self.read(evidence, area, segments)
        targets = torch.stack([logits.argmax(-1) for logits in output.level_logits], 1)
        shares = []
        for level, logits in enumerate(output.level_logits):
            score = logits.gather(1, targets[:, level, None]).sum()
            (gradient,) = torch.autograd.grad(score, evidence, retain_graph=True)
            added = (gradient * evidence).sum(-1).clamp(min=0).detach() + 1e-12 * area
            shares.append(added / added.sum(1, keepdim=True))

        return output.detach(), Explanation(targets, tuple(shares), torch.stack(shares, 1))
