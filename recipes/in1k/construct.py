"""Make the network the teacher's projection, then teach its class token what the coarser levels are."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from shards import load
from teacher import Teacher
from torch import Tensor, nn

from hcast_zoo.network.model import HCast

REGIONS = 24  # of each picture
COMPONENTS_FROM = 30_000  # regions
RIDGE = 1e-3
STAND_OUT = 6  # a leaf stands out if its logit is above the mean of the sixth best
VOTE = 0.3


def construct(model: HCast, teacher: Teacher, data: dict[str, Tensor], regions: Tensor) -> None:
    """Set evidence and leaf head to the principal components of the teacher's logits; residual branches to zero.

    The teacher's last features, averaged over superpixels, are each token's evidence; the class token is its mean by
    area, so that the leaf head's answer is the projection of the teacher's.

    Args:
        model: Its stem's last features are the teacher's.
        teacher: Its answer is projected.
        data: Cached superpixels, for the mean and standard deviation of their features.
        regions: (R, F) averages of the teacher's features over parts of pictures.
    """
    model.stem.fit_statistics(data["features"].float(), data["area"] > 0)
    weight, bias = teacher.classifier.weight.double(), teacher.classifier.bias.double()
    size = teacher.size
    centre = regions.double().mean(0)
    covariance = torch.cov(regions.double().T) + 1e-6 * torch.eye(size, dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    components = torch.linalg.svd(weight @ root, full_matrices=False)[0][:, : model.config.embed_dim]  # [1000, C]

    stem = model.stem
    projected = components.T @ weight  # [C, F]
    scale, shift = stem.feature_std[-size:].double(), stem.feature_mean[-size:].double()
    with torch.no_grad():
        stem.evidence.weight.zero_()
        stem.evidence.weight[:, -size:] = (projected * scale).float()
        stem.evidence.bias.copy_((projected @ (shift - centre)).float())
        model.heads[-1].weight.copy_(components.float())
        model.heads[-1].bias.copy_((weight @ centre + bias).float())
        model.cls_token.zero_()
        model.pos_embed[:, 0].zero_()

        for stage in model.stages:
            last_layers = [] if stage.pool is None else [stage.pool.fc2[1]]
            for block in stage.blocks:
                last_layers += [block.attn.proj, block.mlp.fc2]

            for layer in last_layers:
                layer.weight.zero_()
                layer.bias.zero_()


def sample_regions(files: list[Path], size: int) -> Tensor:
    """Return (pictures, REGIONS, size) half averages of the last features over blocks of superpixels.

    Blocks stand for crops; the first of each picture is all of it. Superpixels are numbered by rows, and start from a
    grid.
    """
    regions = []
    for number, file in enumerate(files):
        data = load([file])
        pictures, superpixels = data["area"].shape
        side = int(superpixels**0.5)
        generator = torch.Generator().manual_seed(number)
        extent = torch.randint(side // 3, side + 1, (2, pictures, REGIONS, 1), generator=generator)
        extent[:, :, 0] = side
        start = (torch.rand(extent.shape, generator=generator) * (side - extent + 1)).long()
        line = torch.arange(side)
        rows, columns = ((line >= a) & (line < a + n) for a, n in zip(start, extent))
        shown = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # [pictures, REGIONS, N]

        share = shown * data["area"][:, None]
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)
        means = [weights @ features[:, -size:].float() for weights, features in zip(share, data["features"])]
        regions.append(torch.stack(means).half())

    return torch.cat(regions)


def read_levels(model: HCast, teacher: Teacher, regions: Tensor) -> None:
    """Give poolings hidden units that say how much each leaf stands out, and let them vote for the node above it.

    A coarse probability is a sum over leaves, which no linear head can compute from their logits. So the pooling before
    the stage of a coarser level starts with one unit per leaf: its logit, minus what the sixth best leaf has.

    Args:
        model: As :func:`construct` leaves it.
        teacher: Gives the probabilities to regress.
        regions: (R, F) averages of the teacher's features.
    """
    leaf = model.heads[-1]
    with torch.no_grad():
        tokens = class_tokens(model, regions)[0]
        deviation = tokens.std(1, unbiased=False).mean()
        for level, head in enumerate(model.heads[:-1]):
            targets = teacher.roll_up(teacher.classifier(regions))[level]
            regress(head, tokens, targets)
            pool = model.stages[model.config.head_stages[level] - 2].pool
            norm, hidden = pool.fc1[0], pool.fc1[1]
            hidden.weight[: len(leaf.weight)] = deviation * leaf.weight
            hidden.bias[: len(leaf.bias)] = leaf.bias
            logits = F.linear(norm(tokens), deviation * leaf.weight, leaf.bias)
            hidden.bias[: len(leaf.bias)] -= logits.topk(STAND_OUT, dim=1).values[:, -1].mean()

            votes = F.normalize(head.weight, dim=1)[teacher.paths[:, level]]  # [leaves, C]
            pool.fc2[1].weight[:, : len(leaf.weight)] = VOTE * votes.T


def regress(head: nn.Linear, tokens: Tensor, targets: Tensor) -> None:
    """Set a head by ridge regression of the logarithms of probabilities."""
    rows = torch.cat([tokens, torch.ones_like(tokens[:, :1])], 1).double()
    gram = rows.T @ rows + RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, rows.T @ targets.double().clamp(min=1e-4).log()).float()
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])


def class_tokens(model: HCast, features: Tensor) -> list[Tensor]:
    """Return the (B, C) class token of each stage from (B, F) means of the last features; attention adds nothing."""
    stem, size = model.stem, features.shape[1]
    features = (features - stem.feature_mean[-size:]) / stem.feature_std[-size:]
    token = F.linear(features, stem.evidence.weight[:, -size:], stem.evidence.bias)
    token = token + (model.cls_token + model.pos_embed[:, :1])[0]
    tokens = []
    for stage in model.stages:
        for block in stage.blocks:
            token = token + block.mlp(block.norm2(token))
        tokens.append(token)
        if stage.pool is not None:
            token = token + stage.pool.fc2(stage.pool.fc1(token))

    return tokens


def distil_class_token(
    model: HCast, teacher: Teacher, regions: Tensor, *, steps: int, batch: int = 256, lr: float = 1e-3
) -> None:
    """Train the class token's way from the leaves to the coarser levels, on averages alone; the leaves do not change.

    A picture is one vector here, so that 256 take half a second. Half of them are mixed with another.

    Args:
        model: As :func:`read_levels` leaves it.
        teacher: Its probabilities are the levels' targets.
        regions: (pictures, R, F) averages of the teacher's features.
        steps: Batches.
        batch: Averages in each.
        lr: Highest learning rate.
    """
    leaf_stage = model.config.head_stages[-1]
    layers: list[nn.Module] = [*model.heads[:-1], model.norm, model.stages[leaf_stage - 1].pool]
    for stage in model.stages[leaf_stage:]:
        for block in stage.blocks:
            layers += [block.norm2, block.mlp]
        if stage.pool is not None:
            layers.append(stage.pool)

    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    rows = regions.flatten(0, 1)
    started = time.monotonic()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        first, second = rows[torch.randint(len(rows), (2, batch), generator=generator)].float()
        share = 0.5 + 0.5 * torch.rand(batch, 1, generator=generator)
        share[torch.rand(batch, generator=generator) < 0.5] = 1
        features = share * first + (1 - share) * second
        teacher.imagine_classes(features, generator)

        targets = teacher.roll_up(teacher.classifier(features))[:-1]
        logits = model.forward_heads(model.level_features(class_tokens(model, features)))
        losses = [F.kl_div(x.log_softmax(-1), y, reduction="batchmean") for x, y in zip(logits, targets)]
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            values = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"class token, step {step} of {steps}: {values}, {time.monotonic() - started:.0f} s", flush=True)
