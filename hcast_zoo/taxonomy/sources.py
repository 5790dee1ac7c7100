"""Where a taxonomy is read from: CSV tables and folder trees."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..common.formats import is_picture_name
from ..common.text import brief
from ..common.walk import LeftOut, Skipped
from ..common.walk import walk as walk_folders

MAX_LEVELS = 100  # the tree of life has about 40 ranks; without a limit a path would be as long as a hostile file says


class TaxonomyError(ValueError):
    """The given levels, names and parents are no tree; the message names the node."""


def read_table(path: str | Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the header of a CSV file, and its rows with their line numbers; a short row's last cells are empty.

    Raises:
        TaxonomyError: if it is no UTF-8 text, no CSV, a column's name occurs twice, or a row has too many cells.
    """
    rows = _read_cells(path)
    _, header = next(rows, (0, []))
    if duplicate := _first_duplicate(header):
        raise TaxonomyError(f"{path}: column {brief(duplicate)} occurs twice")

    def table() -> Iterator[tuple[int, dict[str, str]]]:
        for line, cells in rows:
            if len(cells) > len(header):
                raise TaxonomyError(
                    f"{path} line {line}: expected {len(header)} cells, got {len(cells)}: put quotes "
                    "around a name with a comma"
                )
            if cells:
                yield line, dict(itertools.zip_longest(header, cells, fillvalue=""))

    return header, table()


def _read_cells(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise TaxonomyError(f"{path} after line {reader.line_num}: expected CSV in UTF-8: {error}") from error


def walk(root: Path, skipped: Skipped | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder of a tree, and the names of its folders and files, sorted, without hidden ones.

    Links that lead nowhere, pipes and devices are among the files, so that reading them tells the error.

    Raises:
        TaxonomyError: if a folder cannot be read, links lead to a folder twice, as they do in a circle, or there are
            too many levels.
    """
    odd: list[str] = []

    def leave_out(left: LeftOut) -> None:
        if left.again:
            raise TaxonomyError(f"{left.path} is {left.reason}: expected a tree, where links lead to no folder twice")
        if left.folder:
            raise TaxonomyError(f"{brief(str(left.path))}: {left.reason}")
        if not left.hidden:
            odd.append(left.path.name)
        elif skipped is not None:
            skipped.add("hidden files" if left.path.name.startswith(".") else left.path.name)

    for folder, folders, files in walk_folders(root, leave_out):
        yield folder, folders, sorted(files + odd)
        odd.clear()


def label_folders(root: Path) -> list[tuple[str, ...]]:
    """Return the paths of the folders that are leaves of a tree of labels: those without a folder below.

    Folders without a picture in or below them are left out, unless no folder has any; one warning says how many.

    Raises:
        TaxonomyError: see :func:`walk`.
    """
    skipped = Skipped()
    folders, with_pictures = [], set()
    for folder, _, names in walk(root, skipped):
        path = folder.relative_to(root).parts
        folders.append(path)
        if any(is_picture_name(name) for name in names):
            with_pictures.update(path[:depth] for depth in range(len(path) + 1))

    kept = [path for path in folders if path in with_pictures] if with_pictures else folders
    inner = {path[:-1] for path in kept if path}
    for _ in range(len(folders) - len(kept)):
        skipped.add("folders without a picture")
    skipped.tell(root)

    return [path for path in kept if path not in inner]


def trim_path(cells: Sequence[str | None], where: str) -> list[str]:
    """Return the cells of a path without trailing empty ones.

    Raises:
        TaxonomyError: if a cell before the last name is empty.
    """
    names = [(cell or "").strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        raise TaxonomyError(f"{where}: expected names without a gap, coarse to fine, got {brief(names)}")
    return names


def _first_duplicate(values: Sequence[str]) -> str | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
