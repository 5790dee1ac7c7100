"""The paper's comparison: a flat ViT of H-CAST's size, with the heads of all levels on its one class token.

    python benchmarks/flat_vit.py --like runs/emoji/run.json --data emoji_art.parquet --taxonomy taxonomy.json \\
        --output runs/flat

trains it like an H-CAST run: by the same trainer, with the same picture size, settings, number of tokens and seed.
Rerun the same command to resume. Then benchmarks/focus.py compares the two.
"""

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from hcast_zoo import HCast, HCastConfig, HCastOutput, HierarchicalDataset, Taxonomy
from hcast_zoo.network.superpixels import grid_superpixels
from hcast_zoo.segments.explain import Explanation, explain_output
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer
from hcast_zoo.weights.file import Weights, load_weights


class FlatViT(nn.Module):
    """timm's ViT with a head per level; its tokens are square patches, one for each superpixel of an H-CAST.

    Args:
        config: Width, heads, picture size, number of tokens and levels; the ViT's depth is the sum of ``depths``.

    Raises:
        ValueError: if the tokens do not form a square grid of patches.
    """

    def __init__(self, config: HCastConfig):
        super().__init__()
        side = round(config.num_superpixels**0.5)
        if side**2 != config.num_superpixels or config.image_size % side:
            raise ValueError(
                f"num_superpixels: expected n * n with n dividing image_size={config.image_size}, got "
                f"{config.num_superpixels}"
            )

        self.config = config
        self.vit = VisionTransformer(
            config.image_size,
            config.image_size // side,
            config.in_chans,
            num_classes=0,
            embed_dim=config.embed_dim,
            depth=sum(config.depths),
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path_rate,
        )
        self.heads = nn.ModuleList(nn.Linear(config.embed_dim, n) for n in config.level_classes)

        for head in self.heads:
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def forward(self, images: Tensor, segments: Tensor | None = None) -> HCastOutput:
        """Classify (B, C, H, W) images at every level; ``segments`` are what the trainer passes, and are ignored."""
        return self.output(images, self.vit(images))

    def output(self, images: Tensor, feature: Tensor, attentions: Sequence[Tensor] = ()) -> HCastOutput:
        """Return the output of one (B, C) class token that all levels read; its segments are the patches."""
        patches = grid_superpixels(*images.shape[2:], self.config.num_superpixels).expand(len(images), -1, -1)
        logits = tuple(head(feature) for head in self.heads)
        return HCastOutput(
            level_logits=logits,
            segments=patches.to(images.device),
            assignments=(),
            level_features=(feature,) * len(logits),
            attentions=tuple(attentions) or None,
        )

    def explain(self, images: Tensor, targets: Tensor | None = None) -> tuple[HCastOutput, Explanation]:
        """Say where each level looks, as :func:`hcast_zoo.segments.explain.explain_levels` does."""
        attentions: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            for block in self.vit.blocks:
                block.attn.fused_attn = False  # the fused kernel does not return its attention
                hooks.enter_context(
                    block.attn.attn_drop.register_forward_hook(lambda module, inputs, result: attentions.append(result))
                )

            # Gradients start at the pixels, as in explain_levels.
            images = images.detach().clone().requires_grad_()
            output = self.output(images, self.vit(images), attentions)

        depths, stages = (len(attentions),), (1,) * len(self.heads)
        return output.detach(), explain_output(output, depths, stages, targets)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that weight decay should leave alone."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}


class FlatTrainer(Trainer):
    """Trains a flat ViT."""

    def make_model(self) -> FlatViT:
        return FlatViT(self.config)


def load(source: str) -> tuple[FlatViT, Weights]:
    """Return a trained flat ViT, in eval mode, and its weights file."""
    weights = load_weights(source)
    model = FlatViT(weights.config)
    model.load_state_dict({k: v.float() for k, v in weights.state_dict.items()})
    return model.eval(), weights


def flat_config(config: HCastConfig, depth: int | None = None) -> HCastConfig:
    """Return the config of the flat ViT to compare with an H-CAST.

    Args:
        config: Of the H-CAST.
        depth: Number of blocks; by default the one that brings the number of parameters nearest to the H-CAST's.
    """

    def flat(blocks: int) -> HCastConfig:
        return config.replace(depths=(blocks - 3, 1, 1, 1), superpixels="grid")

    if depth is not None:
        return flat(depth)

    wanted = parameters(HCast(config, device="meta"))
    with torch.device("meta"):
        return min(map(flat, range(4, 33)), key=lambda c: abs(parameters(FlatViT(c)) - wanted))


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", type=Path, required=True, help="run.json of the H-CAST run to compare with")
    parser.add_argument("--data", required=True, help="the same data set")
    parser.add_argument("--train-split", default="train", help="part to train on (%(default)s)")
    parser.add_argument("--val-split", default="val", help="part to validate on (%(default)s)")
    parser.add_argument("--taxonomy", help=".json or .csv file (default: from the training data)")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--depth", type=int, help="blocks (default: as many parameters as the H-CAST has)")
    parser.add_argument("--epochs", type=int, help="(default: those of the H-CAST run)")
    args = parser.parse_args()

    run = json.loads(args.like.read_text())
    settings = TrainConfig(**run["settings"] | ({"epochs": args.epochs} if args.epochs else {}))
    hcast = HCastConfig.from_dict(run["config"])
    config = flat_config(hcast, args.depth)
    with torch.device("meta"):
        print(
            f"{sum(config.depths)} blocks, {parameters(FlatViT(config)) / 1e6:.1f} M parameters; the H-CAST has "
            f"{parameters(HCast(hcast)) / 1e6:.1f} M"
        )

    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    train_set = HierarchicalDataset.load(args.data, taxonomy, args.train_split, cache=settings.cache)
    val_set = HierarchicalDataset.load(args.data, train_set.taxonomy, args.val_split, cache=settings.cache)
    best = FlatTrainer(config, settings, train_set, val_set, args.output).train()
    print(f"best validation FPA {best:.2f}: {args.output}/best.safetensors")


if __name__ == "__main__":
    main()
