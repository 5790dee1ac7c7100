"""Training by config, for `hcast-zoo mm-train`: what mmpretrain's tools/train.py does."""

from argparse import ArgumentParser
from pathlib import Path

import mmpretrain  # noqa: F401  registers us with it
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.runner import Runner

import hcast_zoo  # noqa: F401


def load_config(source: str, options: list[str] | None = None) -> Config:
    """Return a config.

    Args:
        source: A file, or ``hcast_zoo::hcast/NAME.py`` for one of ours.
        options: Overrides, such as ``["train_cfg.max_epochs=2", "train_dataloader.batch_size=8"]``.

    Raises:
        ValueError: if an override is not KEY=VALUE.
        FileNotFoundError: if there is no such config.
    """
    config = get_config(source) if "::" in source else Config.fromfile(source)
    if wrong := [option for option in options or () if "=" not in option]:
        raise ValueError(f"expected KEY=VALUE, got {', '.join(wrong)}")

    if options:
        parser = ArgumentParser()
        parser.add_argument("--cfg-options", nargs="+", action=DictAction)
        config.merge_from_dict(parser.parse_args(["--cfg-options", *options]).cfg_options)

    return config


def train(
    source: str, work_dir: str | None = None, resume: str | None = None, options: list[str] | None = None
) -> Path:
    """Train from a config; return the folder of the run.

    Args:
        source: See :func:`load_config`.
        work_dir: Folder of the run; ``work_dirs/NAME`` by default.
        resume: ``"auto"`` to resume from the folder's latest checkpoint if there is one; or a checkpoint.
        options: See :func:`load_config`.
    """
    config = load_config(source, options)
    if work_dir is not None:
        config.work_dir = work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(source.rpartition("::")[2]).stem)

    if resume is not None:
        config.resume, config.load_from = True, None if resume == "auto" else resume
    Runner.from_cfg(config).train()
    return Path(config.work_dir)
