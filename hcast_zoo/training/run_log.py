"""The log of a training run: ``log.jsonl`` and TensorBoard's files."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..common.files import write_whole


class RunLog:
    """Numbers of a run by step, in ``log.jsonl``, in ``tensorboard/`` and on stderr.

    Args:
        folder: Of the run.
        is_main: Whether this process is the one that writes.
    """

    def __init__(self, folder: Path, is_main: bool):
        self.folder, self.is_main = folder, is_main
        self.file = folder / "log.jsonl"

    @contextlib.contextmanager
    def open_at(self, step: int) -> Iterator[None]:
        """Write from a step on; what an earlier process logged after it is dropped, as it will be written again."""
        if not self.is_main:
            yield
            return

        if self.file.exists():
            lines = [line for line in self.file.read_text().splitlines() if _line_step(line) <= step]
            write_whole(self.file, "".join(line + "\n" for line in lines))

        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=step) as self.board:
            yield

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write numbers by their names; those that are not finite are null in ``log.jsonl``."""
        if not self.is_main:
            return

        line = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no NaN
        with open(self.file, "a") as file:
            file.write(json.dumps({"step": step, **line}, allow_nan=False) + "\n")

        for key, value in values.items():
            self.board.add_scalar(key, value, step)

        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()), file=sys.stderr)


def _line_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # the line that a kill cut short
