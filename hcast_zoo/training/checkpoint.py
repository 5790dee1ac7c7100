"""Verified checkpoints: ``progress.json`` holds the hashes of all files, and its own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..common.claim import digest_of
from ..common.files import MAX_TEXT, check_file, sha256, write_whole
from ..common.processes import Processes
from ..common.text import from_json

PROGRESS = "progress.json"
NEWEST, PREVIOUS = "checkpoint", "checkpoint.old"
UNFINISHED = "checkpoint.new"  # while it is being written


class CheckpointError(ValueError):
    """A checkpoint is damaged; the message says what is wrong with it."""


def seal(folder: Path, progress: dict) -> None:
    """Flush the files of a complete checkpoint to disk, and write ``progress.json`` with their hashes.

    Args:
        folder: The checkpoint.
        progress: Data that JSON can hold.
    """
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[file.relative_to(folder).as_posix()] = sha256(file)
        with open(file, "rb") as written:
            os.fsync(written.fileno())

    record = json.loads(json.dumps({**progress, "files": files}))
    write_whole(folder / PROGRESS, json.dumps({**record, "sha256": digest_of(record)}))


def promote(folder: Path) -> None:
    """Make a sealed checkpoint the newest of its run; the newest so far, if any, becomes the previous one."""
    newest, previous = folder.with_name(NEWEST), folder.with_name(PREVIOUS)
    if newest.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(newest, previous)
    os.replace(folder, newest)


def verify(folder: Path) -> dict:
    """Return the progress of a checkpoint after comparing its files with their hashes (version 0.1 wrote none).

    Raises:
        CheckpointError: if a file is missing, or has changed since it was written.
    """
    check_file(folder / PROGRESS, MAX_TEXT, CheckpointError)
    try:
        progress = from_json((folder / PROGRESS).read_bytes())
        step = progress["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / PROGRESS} cannot be read: {error}") from error

    if not isinstance(step, int):
        raise CheckpointError(f"{folder / PROGRESS}: expected a number of steps, got {step!r}")

    digest = progress.pop("sha256", None)
    if digest is None and "files" not in progress:
        return progress
    if digest != digest_of(progress):
        raise CheckpointError(f"{folder / PROGRESS} has changed since it was written")

    for name, expected in progress["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if sha256(file) != expected:
            raise CheckpointError(f"{file} has changed since it was written")

    return progress


def find_checkpoint(output: Path) -> tuple[Path, dict, str | None] | None:
    """Return the newest intact checkpoint of a run, its progress, and what is wrong with a newer one.

    None if the run has no checkpoint.

    Raises:
        CheckpointError: if all are damaged.
    """
    problem = None
    for folder in (output / NEWEST, output / PREVIOUS):
        if not folder.exists():
            continue
        try:
            return folder, verify(folder), problem
        except CheckpointError as error:
            problem = f"{problem}; {error}" if problem else str(error)

    if problem:
        raise CheckpointError(
            f"no checkpoint of this run is intact ({problem}): restore one, or delete {output / NEWEST} and "
            f"{output / PREVIOUS} to start over"
        )

    return None


def agree_on_checkpoint(output: Path, processes: Processes) -> tuple[Path, dict, str | None] | None:
    """Return, in every process, the checkpoint that :func:`find_checkpoint` finds in the first one."""
    checkpoint: Any = None
    if processes.is_main:
        try:
            checkpoint = find_checkpoint(output)
        except CheckpointError as error:
            checkpoint = error

    checkpoint = processes.gather(checkpoint)[0]
    if isinstance(checkpoint, CheckpointError):
        raise checkpoint

    return checkpoint
