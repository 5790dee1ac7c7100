"""Folders that jobs write to: one job holds a folder at a time, and can resume only the plan that is stored in it."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

import torch.distributed as dist
from filelock import FileLock, Timeout

from .. import __version__
from .files import MAX_TEXT, check_file, write_whole
from .processes import ALONE, Processes
from .text import from_json

LOCK = ".lock"


@contextlib.contextmanager
def own_folder(folder: str | Path, processes: Processes = ALONE) -> Iterator[None]:
    """Lock a folder against other jobs, and create it if needed; the processes of one job share the lock.

    The lock is the operating system's, so it ends with its process, however that ends.

    Args:
        folder: The folder.
        processes: The processes of the job; the first holds the lock until all have reached the end.

    Raises:
        ValueError: if another job holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    connected = processes.count > 1 and dist.is_available() and dist.is_initialized()
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    error = None
    if processes.is_main:
        try:
            lock.acquire()
        except Timeout:
            error = f"{folder} is in use by another process: wait for its end, or choose another folder"

    if connected:
        error = processes.gather(error)[0]
    if error:
        raise ValueError(error)

    try:
        yield
        if connected:
            processes.gather(None)
    finally:
        if lock.is_locked:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


def claim(
    file: Path,
    plan: dict[str, dict],
    *,
    holds: str,
    mend: str,
    changeable: Collection[str] = (),
    defaults: dict[str, dict] | None = None,
    accept_changes: bool = False,
) -> list[str]:
    """Write the plan of a job, or check that the one in its folder is the same; several processes may do so at once.

    Args:
        file: File of the plan.
        plan: Sections of plain data. The section ``made_of``, digests of the job's inputs, may be missing in a plan of
            an earlier version.
        holds: What the folder holds, for the error about another plan.
        mend: How to go on, for the error.
        changeable: Keys whose values may differ.
        defaults: Values, by section, of keys that the plan in the folder lacks.
        accept_changes: Go on even if ``made_of`` differs.

    Returns:
        Notes for the user about changes that do not stop the job.

    Raises:
        ValueError: if the plans differ, or the one in the folder cannot be read.
    """
    wanted = {**json.loads(json.dumps(plan)), "version": __version__}
    text = json.dumps(wanted, indent=1)
    if not file.exists():
        write_whole(file, text)
        return []

    check_file(file, MAX_TEXT)
    try:
        earlier = from_json(file.read_bytes())
        if not isinstance(earlier, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): restore it, or choose another folder") from error

    if not set(plan) & set(earlier):  # a plan of 0.1 had no sections
        earlier = dict.fromkeys(plan, earlier)

    differ: list[str] = []
    changed: list[str] = []
    for section, values in wanted.items():
        if section == "version":
            continue

        before = {**(defaults or {}).get(section, {}), **earlier.get(section, {})}
        for key, value in values.items():
            if before.get(key) == value or key in changeable or (section == "made_of" and key not in before):
                continue

            difference = f"{key} {before.get(key)!r} -> {value!r}"
            if section == "made_of":
                changed.append(difference)
            else:
                differ.append(difference)

    if not accept_changes:
        differ += changed
    if differ:
        raise ValueError(f"{file.parent} holds {holds} ({'; '.join(differ)}): {mend}")

    notes = [f"accepted: {change}" for change in changed]
    if earlier.get("version", __version__) != __version__:
        notes.append(f"{file.parent} was begun with hcast-zoo {earlier['version']}, and continues with {__version__}")
    if earlier.get("version") != __version__ or changed or "made_of" not in earlier:
        write_whole(file, text)

    return notes


def digest_of(data: object) -> str:
    """Return the SHA-256 of plain data as JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
