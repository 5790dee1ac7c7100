"""Train the stages on cached superpixels: every level towards the teacher's probabilities, rolled up the tree."""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import COARSE_SCALE, LEAF_SCALE, agreement, run
from shards import load
from teacher import Teacher
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hcast_zoo.network.model import HCast

LOADED = 4  # shards in memory at a time
STEPS_LOADED = 24  # steps on them, before others are loaded
SAVE_SECONDS = 120
EMA_DECAY = 0.998


def train_stages(
    model: HCast, teacher: Teacher, held: dict, output: Path, *, steps: int, batch: int, lr: float
) -> None:
    """Train, with a checkpoint every other minute, from which the same call resumes.

    In the end, ``model`` has the averaged weights that agreed best with the teacher on the development pictures, or the
    weights that it started from if these agreed better.
    """
    slow = [*model.heads.parameters(), *model.stem.evidence.parameters()]
    slow_ids = {id(p) for p in slow}
    fast = [p for p in model.parameters() if p.requires_grad and id(p) not in slow_ids]
    groups = [{"params": slow, "lr": lr / 20}, {"params": fast, "lr": lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * min(step / steps, 1)))
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    checkpoint = output / "stages.pt"
    state = {"step": 0, "score": score(model, held, teacher, 0), "best": clone(model)}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])

    files = sorted((output / "shards").glob("train_*.pt"))
    data: dict[str, Tensor] = {}
    model.train()
    saved = time.monotonic()
    for step in range(state["step"], steps):
        generator = torch.Generator().manual_seed(step)
        if not data or step % STEPS_LOADED == 0:
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(step // STEPS_LOADED))
            data = load([files[i] for i in order[:LOADED]])

        losses = batch_losses(model, teacher, shown_parts(data, batch, teacher, generator))
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(fast, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 20 == 0:
            print(step, *(f"{loss.item():.3f}" for loss in losses), flush=True)

        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps:
            new_score = score(average.module, held, teacher, step + 1)
            if new_score > state["score"]:
                state.update(score=new_score, best=clone(average.module))
            state.update(
                step=step + 1,
                model=model.state_dict(),
                average=average.state_dict(),
                optimizer=optimizer.state_dict(),
                schedule=schedule.state_dict(),
            )
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            saved = time.monotonic()

    model.load_state_dict(state["best"])
    model.eval()


def clone(model: HCast) -> dict[str, Tensor]:
    """Return a copy of the model's tensors."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def score(model: HCast, held: dict, teacher: Teacher, step: int) -> float:
    """Return the mean agreement of the best path, over levels and kinds of development pictures."""
    training = model.training
    model.eval()
    values = []
    for kind, data in held.items():
        agreements = agreement(model, data, teacher, COARSE_SCALE / LEAF_SCALE)
        print(step, kind, agreements, flush=True)
        values += [value for name, value in agreements.items() if name.endswith("best path")]

    model.train(training)
    return sum(values) / len(values)


def shown_parts(data: dict[str, Tensor], batch: int, teacher: Teacher, generator: torch.Generator) -> dict[str, Tensor]:
    """Choose pictures; of half of them show only a block of superpixels, as a crop would.

    Superpixels are numbered by rows, and start from a grid. The features of some are moved towards a class, which
    stands for things that the pictures do not show.
    """
    chosen = torch.randint(len(data["area"]), (batch,), generator=generator)
    part = {name: data[name][chosen] for name in ("features", "descriptor", "area", "segments")}
    side = int(part["area"].shape[1] ** 0.5)
    extent = torch.randint(side // 3, side + 1, (2, batch, 1), generator=generator)
    extent[:, torch.rand(batch, generator=generator) < 0.5] = side
    start = (torch.rand(2, batch, 1, generator=generator) * (side - extent + 1)).long()
    line = torch.arange(side)
    rows, columns = ((line >= a) & (line < a + n) for a, n in zip(start, extent))
    part["area"] = part["area"] * (rows[:, :, None] & columns[:, None]).flatten(1)
    part["features"] = part["features"].float()
    teacher.imagine_classes(part["features"], generator)
    return part


def batch_losses(model: HCast, teacher: Teacher, part: dict[str, Tensor]) -> list[Tensor]:
    """Return the divergence of each level from the teacher, which sees the average of the same superpixels."""
    targets = teacher.roll_up(teacher.logits(part["features"], part["area"]))
    logits = model.forward_heads(run(model, part, slice(None)).level_features)
    return [F.kl_div(x.log_softmax(-1), y, reduction="batchmean") for x, y in zip(logits, targets)]
