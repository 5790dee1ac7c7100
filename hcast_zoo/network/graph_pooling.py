"""Graph pooling: farthest point sampling of cluster centres, soft assignment, averaging of tokens by cluster."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, masked_mean, recomputed
from .stems import Carried

ASSIGN_SCALE = 5.0  # from cosine similarities to logits; fixed, not learned (docs/official_differences.md, 15)
DESCRIPTOR_SCALE = 15.0  # for descriptors: sharper, so that clusters of clusters keep their edges
# Points closer than this (squared distance over the image's largest squared norm) count as one: copies of a token
# differ by rounding, and a choice among them would make an answer depend on its batch.
SAME_POINT = 1e-10


@dataclasses.dataclass
class PoolingOutput:
    """The result of one graph pooling, for N tokens and M clusters.

    Attributes:
        tokens: (B, 1 + M, C) class token and clusters, the input of the next stage.
        assignment: (B, N, M) probability that a token belongs to a cluster; rows sum to 1.
        indices: (B, M) int64 tokens chosen as cluster centres.
        node_features: (B, N, C) features the similarity is computed on; (B, N, D) where a descriptor is compared.
        carried: What the clusters carry, if the tokens carry something.
    """

    tokens: Tensor
    assignment: Tensor
    indices: Tensor
    node_features: Tensor
    carried: Carried | None = None


@torch.no_grad()
def farthest_point_sampling(points: Tensor, num_samples: int, valid: Tensor | None = None) -> Tensor:
    """Choose points far from each other, starting from the one farthest from their mean.

    Ties go to the lowest index. With fewer distinct valid points than ``num_samples``, the first valid point is
    repeated. Differs from official: there, an assertion stops the whole batch (docs/official_differences.md, 14).

    Args:
        points: (B, N, C) float.
        num_samples: How many to choose, M.
        valid: (B, N) bool, False for points that are neither chosen nor part of the mean.

    Returns:
        (B, M) int64 indices.

    Source: official graph_pool.py:105-154; float64, as there (docs/official_differences.md, 13).
    """
    points = points.double()
    same = SAME_POINT * points.square().sum(-1).amax(1)[:, None]  # [B, 1]

    # With the mean as the origin, the distance of a point to the start is its norm.
    points = points - masked_mean(points, valid)
    squared_norm = points.square().sum(-1)  # [B, N]
    norms = squared_norm[:, None] + squared_norm[:, :, None]
    distances = torch.baddbmm(norms, points, points.transpose(1, 2), alpha=-2)
    nearest = squared_norm.masked_fill(squared_norm <= same, 0.0)
    if valid is not None:
        nearest = nearest.masked_fill(~valid, -1.0)

    choose: Callable[[Tensor, Tensor, Tensor, int], Tensor] = choose_step_by_step
    if points.is_cuda and not torch.compiler.is_exporting():
        choose = load_kernel() or choose

    return choose(distances, nearest, same, num_samples)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the (B, M, C) tokens at (B, M) int64 indices of (B, N, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


def choose_step_by_step(distances: Tensor, nearest: Tensor, same: Tensor, num_samples: int) -> Tensor:
    """Do what :func:`.sampling_kernel.choose_centres` does, in plain torch."""
    chosen = []
    for _ in range(num_samples):
        chosen.append(nearest.argmax(1))  # [B]
        row = distances.gather(1, chosen[-1][:, None, None].expand(-1, 1, distances.shape[2]))[:, 0]
        nearest = torch.minimum(nearest, row.masked_fill(row <= same, 0.0))

    return torch.stack(chosen, 1)


def load_kernel() -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
    """Return the kernel that takes the steps in one launch; None where Triton is not installed."""
    try:
        from .sampling_kernel import choose_centres
    except ImportError:
        return None
    return choose_centres


class CentroidProjection(nn.Module):
    """Features for comparing tokens with cluster centres: self-attention, then centring over the tokens.

    Source: official graph_pool.py:48-63 (docs/official_differences.md, 12).
    """

    attention_class = Attention

    def __init__(self, dim: int, num_heads: int, **dd):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = self.attention_class(dim, num_heads, **dd)
        self.bias = nn.Parameter(torch.empty(dim, **dd))
        self.init_bias()

    def init_bias(self) -> None:
        if not self.bias.is_meta:  # on the meta device torch would import its compiler, for nothing
            nn.init.normal_(self.bias, std=0.01)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm(x), valid)[0]
        return x - masked_mean(x, valid) + self.bias


class GraphPooling(nn.Module):
    """Pool N tokens into M clusters; the class token passes through the same MLP.

    ``Z_l = Z_init + MLP(P^T Z_(l-1) / P^T 1)``

    With ``grouping="descriptor"`` centres are sampled and tokens assigned by a descriptor that tokens carry; the
    equation stays.

    Source: paper equation 1; official graph_pool.py:66-187 (docs/official_differences.md, 11, 15, 16, 17).
    """

    projection_class = CentroidProjection

    def __init__(self, dim: int, num_heads: int = 12, drop_rate: float = 0.1, grouping: str = "tokens", **dd):
        super().__init__()
        self.centroid_fc = self.projection_class(dim, num_heads, **dd) if grouping == "tokens" else None
        self.fc1 = nn.Sequential(
            nn.LayerNorm(dim, **dd), nn.Linear(dim, 4 * dim, **dd), nn.GELU(), nn.Dropout(drop_rate)
        )
        self.fc2 = nn.Sequential(nn.LayerNorm(4 * dim, **dd), nn.Linear(4 * dim, dim, **dd))
        self.recompute_cheap = False  # in the backward pass: norms, GELU and dropout

    def forward(
        self,
        tokens: Tensor,
        num_clusters: int,
        valid: Tensor | None = None,
        mask_empty: bool = False,
        carried: Carried | None = None,
    ) -> PoolingOutput:
        """Pool tokens into clusters.

        Args:
            tokens: (B, 1 + N, C), class token first.
            num_clusters: M.
            valid: (B, N) bool, False for tokens without pixels, which are never centres.
            mask_empty: Leave those tokens out of attention and averages too.
            carried: What the tokens carry, if anything; a descriptor if that is compared.
        """
        cls, nodes = tokens[:, :1], tokens[:, 1:]
        before = None if carried is None else carried.seed()
        mask = valid if mask_empty else None
        if self.centroid_fc is None:
            assert carried is not None and carried.descriptor is not None
            node_features = compared = carried.descriptor
            scale = DESCRIPTOR_SCALE
        else:
            node_features, compared = self.centroid_fc(nodes, mask), nodes
            scale = ASSIGN_SCALE

        indices = farthest_point_sampling(compared, num_clusters, valid)

        unit = F.normalize(node_features, dim=-1)
        centres = take(unit, indices)  # [B, M, C]
        assignment = (scale * unit @ centres.transpose(1, 2)).softmax(-1).to(tokens.dtype)  # [B, N, M]
        weight = assignment if mask is None else assignment * mask[..., None].to(assignment.dtype)

        if self.recompute_cheap and torch.is_grad_enabled():
            update = recomputed(self.mix, tokens, weight)
        else:
            update = self.mix(tokens, weight)
        tokens = update + torch.cat([cls, take(nodes, indices)], 1)

        if carried is not None:
            carried = carried.pool(weight)
            after = carried.seed()
            if before is not None and after is not None:
                # The class token of the next stage starts from the mean evidence of that stage's own tokens.
                tokens = torch.cat([tokens[:, :1] + after - before, tokens[:, 1:]], 1)

        return PoolingOutput(
            tokens=tokens, assignment=assignment, indices=indices, node_features=node_features, carried=carried
        )

    def mix(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Return the (B, 1 + M, C) update of the class token and the clusters: the equation's MLP term.

        Args:
            tokens: (B, 1 + N, C), class token first.
            weight: (B, N, M) of each token in each average.
        """
        hidden = self.fc1(tokens)  # [B, 1 + N, 4C]

        # Averaging happens in the 4C space, between the two layers of the MLP.
        average = weight.transpose(1, 2) @ hidden[:, 1:] / weight.sum(1)[..., None]
        return self.fc2(torch.cat([hidden[:, :1], average], 1))

    def init_weights(self) -> None:
        """Initialise with PyTorch's defaults, as the official code does (built after the blocks' init)."""
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.LayerNorm)):
                m.reset_parameters()
        if self.centroid_fc is not None:
            self.centroid_fc.init_bias()
