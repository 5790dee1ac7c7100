"""Resume a table: its answers are stored in a folder beside it until the table is complete."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common.claim import claim, own_folder
from ..common.text import from_json
from ..data.boxes import Box, BoxedPicture
from ..data.pictures import Picture
from .prediction import Prediction
from .sets import NodeSet

PLAN, ANSWERS = "plan.json", "answers.jsonl"


def waiting_folder(output: str | Path) -> Path:
    """Return the folder that stores answers for a table."""
    output = Path(output)
    return output.with_name(f".{output.name}.unfinished")


def resume_predictions(
    predict: Callable[[int], Iterable[Prediction]],
    pictures: Sequence[Picture],
    output: str | Path,
    plan: dict[str, dict],
    batch_size: int,
    groups: Sequence[str] | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each picture, in order; those that a killed run has stored are not computed again.

    Computation resumes at the start of a batch, so that each row is bit for bit what an uninterrupted run gives. Call
    :func:`forget` when the table is written.

    Args:
        predict: Returns the predictions from a position on.
        pictures: All pictures.
        output: The table.
        plan: Plain data that identifies the model and its settings: sections ``settings`` and ``made_of``.
        batch_size: Pictures that are computed together.
        groups: The group of each picture, if pictures of a group are answered together.

    Raises:
        ValueError: if the folder holds answers for other pictures or settings, or another process is using it.
    """
    folder = waiting_folder(output)
    made_of = {**describe_list(pictures, groups or ()), **plan["made_of"]}

    begun, answered = False, 0
    try:
        with own_folder(folder):
            claim(
                folder / PLAN,
                {"settings": plan["settings"], "made_of": made_of},
                holds="answers of an unfinished run with other pictures or options",
                mend=f"go on with the same, or remove {folder}",
            )
            begun = True

            known = _read(folder / ANSWERS)
            answered = start = restart(len(known), batch_size, groups)
            with open(folder / ANSWERS, "w", encoding="utf-8") as sink:
                for prediction in known[:start]:
                    sink.write(_to_line(prediction))
            yield from known[:start]

            with open(folder / ANSWERS, "a", encoding="utf-8", buffering=1) as sink:  # a line at a time
                for prediction in predict(start):
                    sink.write(_to_line(prediction))
                    answered += 1
                    yield prediction
    finally:
        if begun and not answered:  # nothing to resume from
            shutil.rmtree(folder, ignore_errors=True)


def forget(output: str | Path) -> None:
    """Remove the stored answers of a table that has been written."""
    shutil.rmtree(waiting_folder(output), ignore_errors=True)


def restart(done: int, batch_size: int, groups: Sequence[str] | None = None) -> int:
    """Return the latest answered position at which both a batch and a group begin.

    Example:
        >>> restart(11, 4), restart(11, 4, list("aaaabbbbbbbbcc")), restart(3, 4)
        (8, 4, 0)
    """
    start = done // batch_size * batch_size
    while groups is not None and 0 < start < len(groups) and groups[start] == groups[start - 1]:
        start -= batch_size

    return max(start, 0)


def picture_key(picture: Picture) -> str:
    """Return the key of a picture in a list: its file, and its box if it has one."""
    return picture.key if isinstance(picture, BoxedPicture) else str(picture)


def describe_list(pictures: Sequence[Picture], groups: Iterable[str] = ()) -> dict:
    """Return what a plan says about its pictures: their number, and a SHA-256 of their names, boxes and groups."""
    digest = hashlib.sha256()
    for text in itertools.chain(map(picture_key, pictures), groups):
        digest.update(text.encode(errors="surrogatepass") + b"\0")

    return {"pictures": len(pictures), "list_sha256": digest.hexdigest()}


def _to_line(prediction: Prediction) -> str:
    return json.dumps(dataclasses.asdict(prediction)) + "\n"


def _read(file: Path) -> list[Prediction]:
    """Return the answers of a file, up to the first incomplete line."""
    known: list[Prediction] = []
    if not file.exists():
        return known

    with open(file, encoding="utf-8", errors="replace") as source:
        for line in source:
            try:
                known.append(_from_data(from_json(line)))
            except (ValueError, TypeError, KeyError, AttributeError):  # the process was killed while writing it
                break

    return known


def _from_data(data: dict[str, Any]) -> Prediction:
    fields = {**data}
    for name in ("path", "probabilities", "runner_up"):
        fields[name] = tuple(fields[name])
    fields["top"] = tuple((tuple(path), probability) for path, probability in fields["top"])

    if fields["node_set"] is not None:
        node_set = fields["node_set"]
        fields["node_set"] = NodeSet(tuple(node_set["nodes"]), node_set["leaves"], tuple(node_set["subtree"]))
    if fields["box"] is not None:
        box = fields["box"]
        box["edges"] = tuple(box["edges"])
        box["size"] = None if box["size"] is None else tuple(box["size"])
        fields["box"] = Box(**box)

    return Prediction(**fields)
