"""Transformer parts of H-CAST: convolutional stem, attention, block."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def is_vmapped(x: Tensor) -> bool:
    """Return whether this is a tensor inside ``torch.vmap``, where control flow cannot depend on values."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return False
    return torch._C._functorch.is_batchedtensor(x)


def is_plain(x: Tensor) -> bool:
    """Return whether this is a plain tensor with values, not one handled by a compiler, transform or mode."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._len_torch_dispatch_stack():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


# Matrix products, whose results are kept when the rest is recomputed; those of attention are kept, too.
COSTLY = ("addmm", "mm", "bmm", "baddbmm")


def recomputed(function: Callable, *inputs: Any) -> Any:
    """Call a function of which autograd keeps only the inputs, matrix products and attention.

    The rest (norms, GELU, dropout) is recomputed in the backward pass, from the same random numbers.
    """
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    name = operator.__name__.partition(".")[0]
    is_costly = name in COSTLY or "attention" in name
    return CheckpointPolicy.MUST_SAVE if is_costly else CheckpointPolicy.PREFER_RECOMPUTE


class ConvNorm(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, **dd):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_chans, **dd)

    def forward(self, x: Tensor) -> Tensor:
        # Safe in place: the backward pass of the norm needs only its input.
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def train(self, mode: bool = True) -> "ConvNorm":
        """Set the mode; a norm whose parameters are frozen keeps its statistics.

        Otherwise training an adapter (LoRA), which is saved without the statistics, would change the frozen network.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.norm.parameters()):
            self.norm.eval()
        return self

    def fuse(self) -> nn.Sequential:
        """Return the fused convolution and norm, and ReLU; timm's ``reparameterize_model`` replaces this module."""
        return nn.Sequential(fuse_conv_bn_eval(self.conv, self.norm), nn.ReLU(inplace=True))


class ConvStem(nn.Sequential):
    """Embed an image in a grid of features, one for each cell of 8x8 pixels.

    Shape: (B, in_chans, H, W) -> (B, C, ceil(H / 8), ceil(W / 8)); with ``stride`` 4, twice as many each way.

    Source: official modules.py:47-92.
    """

    def __init__(self, in_chans: int, embed_dim: int, stride: int = 8, **dd):
        widths = (in_chans, embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim)
        layers = [ConvNorm(i, o, stride, **dd) for i, o, stride in zip(widths, widths[1:], (2, 2, stride // 4, 1))]
        super().__init__(*layers, nn.Conv2d(embed_dim, embed_dim, 1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        # On CPUs, channels-last convolutions are faster, and give an image the same bits in any batch. With channels
        # first, the algorithm and therefore the rounding depend on the batch size.
        if not is_vmapped(x):  # torch.vmap does not support this layout
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)

    def maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features as a list of one, and the maps of the first two convolutions (strides 2 and 4)."""
        x = x.contiguous(memory_format=torch.channels_last)
        early = []
        for layer in list(self)[:2]:
            x = layer(x)
            early.append(x)
        for layer in list(self)[2:]:
            x = layer(x)
        return [x], early


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, heads, N, N) attention probabilities of (B, heads, N, d) queries and keys."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


@torch.fx.wrap  # a tracer keeps it whole, since it looks at the tensors
def mix_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the (B, heads, N, d) averages of the values, weighted by the attention probabilities.

    This is torch's fused kernel, except in a training step in bfloat16 on a CPU, where the kernel's backward pass takes
    several times as long as two products and a softmax.
    """
    if q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return attention_weights(q, k, mask) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    """Multi-head self-attention over tokens, fused unless its weights are requested."""

    def __init__(self, dim: int, num_heads: int, **dd):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(
        self, x: Tensor, key_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let tokens attend to each other.

        Args:
            x: (B, N, C) tokens.
            key_mask: (B, N) bool, False for tokens that must not be attended to.
            need_weights: Return the attention probabilities, which rules out the fused kernel.

        Returns:
            (B, N, C) tokens, and (B, heads, N, N) probabilities or None.
        """
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        mask = None if key_mask is None else key_mask[:, None, None, :]  # [B, 1, 1, N]
        x, weights = self.attend(q, k, v, mask, need_weights)  # [B, heads, N, C / heads]
        return self.proj(x.transpose(1, 2).reshape(b, n, c)), weights

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values (B, heads, N, d); a separate method, so that a framework can use its own kernels."""
        if not need_weights:
            return mix_values(q, k, v, mask), None
        weights = attention_weights(q, k, mask)
        return weights @ v, weights


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, **dd):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class StochasticDepth(nn.Module):
    """Drop a branch of some pictures in training, and scale the others up: torchvision's, one row per picture.

    Only training imports torchvision, because the import takes as long as torch's.

    Args:
        p: Probability in [0, 1] that a branch is dropped.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        from torchvision.ops import stochastic_depth

        return stochastic_depth(x, self.p, "row")

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Block(nn.Module):
    """Pre-norm transformer block (DeiT's: LN eps 1e-6, no layer scale).

    Shape: (B, N, C) -> (B, N, C), and attention probabilities (B, heads, N, N) or None.
    """

    attention_class = Attention  # a framework's subclass can replace its parts; the same in all modules

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, **dd):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = self.attention_class(dim, num_heads, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = StochasticDepth(drop_path)

    def forward(
        self, x: Tensor, key_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        update, weights = self.attn(self.norm1(x), key_mask, need_weights)
        x = x + self.drop_path(update)
        return x + self.drop_path(self.mlp(self.norm2(x))), weights


def init_block_weights(module: nn.Module) -> None:
    """Initialise as DeiT does: truncated normal (std 0.02) matrices, zero biases, norms of 1 and 0."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            m.reset_parameters()


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, N, C) tokens over N, keeping the axis; with ``mask`` (B, N) bool, over its True tokens."""
    if mask is None:
        return x.mean(1, keepdim=True)
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
