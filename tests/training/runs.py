"""Training runs on tiny data: making them, stopping them, and reading their logs."""

import json
from pathlib import Path

import pytest

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer

SETTINGS = dict(epochs=2, batch_size=4, workers=0, warmup_epochs=1, lr=0.1, ema_decay=0.9, checkpoint_steps=2)


def make_run(folder, taxonomy, config, output, init=None, accept_changes=False, **settings) -> Trainer:
    """Return a run on the parts train and val of a folder."""
    train, val = (HierarchicalDataset.load(folder, taxonomy, split) for split in ("train", "val"))
    return Trainer(
        config, TrainConfig(**{**SETTINGS, **settings}), train, val, output, init, accept_changes=accept_changes
    )


def stop_at(run: Trainer, stop: int) -> None:
    """Train until Ctrl-C comes before step ``stop`` + 1."""
    step = run._train_step

    def interrupt(batch):
        if run.step == stop:
            raise KeyboardInterrupt
        return step(batch)

    run._train_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.train()


def read_log(folder: Path) -> list[dict]:
    """Return the lines of a run's log, which must be JSON without NaN or infinity."""

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "log.jsonl").read_text().splitlines()]
