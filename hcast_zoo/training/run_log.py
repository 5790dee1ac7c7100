"""The log of a training run: ``log.jsonl`` and TensorBoard's files."""

import contextlib
import importlib.util
import json
import math
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from tqdm import tqdm

from ..common.files import write_whole
from ..common.text import from_json

PROJECT = "hcast-zoo"  # name of the project in the trackers


class RunLog:
    """Metrics of a run by step, in ``log.jsonl``, in the trackers' own files or services, and on stderr.

    Args:
        folder: Folder of the run.
        is_main: Whether this process is the one that writes.
        trackers: accelerate's trackers: ``tensorboard``, ``wandb``, ``mlflow``.
        settings: Settings of the run, for the trackers.

    Raises:
        ImportError: if a tracker is not installed.
    """

    def __init__(self, folder: Path, is_main: bool, trackers: Sequence[str], settings: dict):
        self.folder, self.is_main = folder, is_main
        self.file = folder / "log.jsonl"
        self.names, self.settings = trackers, settings
        self.trackers: list[GeneralTracker] = []
        for name in trackers:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f"--track {name}: pip install {name}")

    @contextlib.contextmanager
    def open_at(self, step: int) -> Iterator[None]:
        """Write from a step on; drop later lines of an interrupted run, which will be written again."""
        if not self.is_main:
            yield
            return

        if self.file.exists():
            lines = self.file.read_text().splitlines(keepends=True)
            write_whole(self.file, "".join(line for line in lines if _line_step(line) <= step))

        self.trackers = [self._start(name, step) for name in self.names]
        try:
            yield
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def _start(self, name: str, step: int) -> GeneralTracker:
        """Return a tracker that continues the run of an earlier process, if there was one."""
        id_file = self.folder / f"{name}.id"
        run_id = id_file.read_text().strip() if id_file.exists() else None
        tracker: GeneralTracker
        if name == "tensorboard":
            tracker = TensorBoardTracker(name, logging_dir=str(self.folder), purge_step=step)
        elif name == "wandb":
            run_id = run_id or secrets.token_hex(4)
            tracker = WandBTracker(PROJECT, id=run_id, name=self.folder.name, resume="allow", dir=str(self.folder))
        else:
            tracker = MLflowTracker(PROJECT, run_name=self.folder.name, run_id=run_id)

        if hasattr(tracker, "start"):  # earlier versions of accelerate start the tracker in its constructor
            tracker.start()
        if name != "tensorboard":
            write_whole(id_file, run_id or tracker.tracker.info.run_id)
            tracker.store_init_configuration(self.settings)

        return tracker

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values by name; those that are not finite are null in ``log.jsonl``."""
        if not self.is_main:
            return

        line: dict[str, float | None] = {"step": step}
        for name, value in values.items():
            line[name] = value if math.isfinite(value) else None  # JSON has no NaN
        with open(self.file, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

        for tracker in self.trackers:
            tracker.log(values, step=step)

        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()), file=sys.stderr)


def _line_step(line: str) -> float:
    try:
        return from_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # the line was being written when the process was killed
