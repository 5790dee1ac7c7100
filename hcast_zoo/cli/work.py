"""What `hcast-zoo predict` has to answer: pictures, or the boxes in them, and their groups."""

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..common.files import check_file
from ..common.text import brief, printable
from .answer import find_files

STDIN = "-"  # in place of a list's name


@dataclasses.dataclass
class Work:
    """What has to be answered.

    Attributes:
        pictures: Files, or boxes in them; those of a group are adjacent.
        groups: The group of each; None if each is answered by itself.
        detections: Where the boxes come from; None for whole pictures.
        missed: How many items cannot be pictures at all; they have already been reported.
    """

    pictures: list
    groups: list[str] | None = None
    detections: Any = None
    missed: int = 0

    @property
    def boxed(self) -> bool:
        """Whether pictures are boxes."""
        return self.detections is not None


def list_work(args: argparse.Namespace) -> Work:
    """Return the work that the arguments of `predict` name.

    Raises:
        ValueError: if there is nothing to answer, or the arguments disagree.
    """
    if args.boxes:
        work, rows = _list_boxes(args)
    else:
        if args.box_confidence is not None or args.box_labels:
            raise ValueError("--box-confidence and --box-labels go with --boxes")
        work, rows = _list_files(args)

    if args.group_by == "folder":
        work.groups = [os.path.dirname(picture) for picture in work.pictures]
    elif args.group_by:
        if rows is None:
            raise ValueError(
                f"--group-by {args.group_by}: expected a table with that column (--files-from, --boxes), or `folder`"
            )
        work.groups = rows
    if work.groups is not None:
        _order_by_group(work)
    return work


def _order_by_group(work: Work) -> None:
    """Order pictures so that those of a group are adjacent, with groups in the order of their first picture."""
    assert work.groups is not None
    members: dict[str, list[int]] = {}
    for index, group in enumerate(work.groups):
        members.setdefault(group, []).append(index)

    order = list(itertools.chain.from_iterable(members.values()))
    work.pictures = [work.pictures[index] for index in order]
    work.groups = [work.groups[index] for index in order]


def _list_files(args: argparse.Namespace) -> tuple[Work, list[str] | None]:
    """Return the requested files, and the group of each if a table gives it."""
    files, missed = find_files(args.pictures)
    groups = None
    if args.files_from:
        if args.files_from != STDIN:
            check_file(args.files_from)
        if args.group_by and args.group_by != "folder":
            if files:
                raise ValueError("--group-by with a column: expected --files-from alone, got other pictures too")
            files, groups = _read_groups(args.files_from, args.group_by)
        else:
            source = 0 if args.files_from == STDIN else args.files_from
            with open(source, encoding="utf-8-sig", errors="surrogateescape", closefd=source != 0) as names:
                files += filter(None, (line.rstrip("\r\n") for line in names))
        if any("\0" in name for name in files):
            raise ValueError(f"{args.files_from}: expected a text file that names a picture per line, got NUL bytes")

    if not files:
        raise ValueError("expected pictures, or --files-from with a list of them")
    return Work(files, missed=missed), groups


def _read_groups(path: str, column: str) -> tuple[list[str], list[str]]:
    """Return the pictures of a table, relative to its folder, and the group of each; one without is its own group."""
    from ..taxonomy.columns import PICTURES, find_column
    from ..taxonomy.sources import read_table

    header, rows = read_table(path)
    picture = find_column(header, PICTURES)
    if picture is None or column not in header:
        raise ValueError(
            f"{path}: expected a column of pictures, such as file, and {column}; got {brief(list(header))}"
        )

    folder, files, groups = os.path.dirname(path), [], []
    for line, row in rows:
        if name := str(row[picture] or "").strip():
            files.append(os.path.join(folder, name))
            groups.append(str(row[column] or "").strip() or f"row {line}")
    return files, groups


def _list_boxes(args: argparse.Namespace) -> tuple[Work, list[str] | None]:
    """Return the requested boxes, and the group of each if a table gives it."""
    from ..data.detections import boxed_pictures, read_detections

    if args.files_from:
        raise ValueError("--boxes names the pictures: leave --files-from out")
    if len(args.pictures) > 1 or not all(map(os.path.isdir, args.pictures)):
        raise ValueError("--boxes: expected at most one folder, which names of pictures are relative to")

    detections = read_detections(args.boxes)
    chosen = detections.choose(args.box_confidence or 0.0, args.box_labels)
    for problem in detections.problems:
        print(f"{printable(args.boxes)}: {printable(problem)}", file=sys.stderr)
    if len(chosen) < len(detections.boxes):
        print(f"{len(detections.boxes) - len(chosen)} of {len(detections.boxes)} boxes left out", file=sys.stderr)
    if not chosen:
        raise ValueError(f"{args.boxes}: expected boxes, got none with this confidence and these labels")

    folder = args.pictures[0] if args.pictures else os.path.dirname(args.boxes)
    pictures = boxed_pictures(chosen, folder)
    groups = None
    if args.group_by and args.group_by != "folder":
        groups = _groups_of_boxes(args.boxes, args.group_by, chosen)
    return Work(pictures, detections=detections, missed=len(detections.problems)), groups


def _groups_of_boxes(path: str, column: str, boxes: Sequence) -> list[str]:
    if os.path.splitext(path)[1].lower() == ".json":
        raise ValueError(f"--group-by {column}: expected boxes in a table with that column, got {path}")
    files, groups = _read_groups(path, column)
    folder = os.path.dirname(path)
    by_name: dict[str, str] = {}
    for file, group in zip(files, groups):
        by_name.setdefault(file, group)
    return [by_name[os.path.join(folder, box.name)] for box in boxes]
