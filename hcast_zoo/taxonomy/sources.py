"""Sources of a taxonomy: tables and folder trees."""

import codecs
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr

from ..common.files import check_file
from ..common.formats import is_picture_name
from ..common.text import brief
from ..common.walk import LeftOut, Skipped, walk
from .columns import SPECIESNET, UUID
from .names import clean_name, first_duplicate

SNIFFED = 65_536  # characters in which to look for a table's separator
MAX_LEVELS = 100  # the tree of life has about 40 ranks; a hostile file could ask for paths of any length
MAX_LINE = 2**24  # characters per line of a table
MAX_COLUMNS = 10_000


class TaxonomyError(ValueError):
    """The given levels, names and parents do not form a tree; the message names the node."""


def read_table(
    path: str | Path, max_columns: int | None = None
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the header of a table, and its rows with their line numbers; short rows are filled with empty cells.

    Cells are separated by commas, semicolons, tabs or bars, whichever fits the first rows; the text is UTF-8, or UTF-16
    with a byte order mark. Spaces around names in the header, and empty columns at the end, are dropped. SpeciesNet's
    taxonomy, which has no header, gets one.

    Args:
        path: The file.
        max_columns: Largest number of columns, as a guard against hostile files; ``MAX_COLUMNS`` by default.

    Raises:
        TaxonomyError: if it is not text or not a table, a column's name occurs twice, or a row has too many cells.
    """
    rows = read_cells(path)
    line, header = next(rows, (0, []))
    if len(header) == len(SPECIESNET) and UUID.match(header[0]):
        rows, header = itertools.chain([(line, header)], rows), list(SPECIESNET)

    max_columns = MAX_COLUMNS if max_columns is None else max_columns
    if len(header) > max_columns:
        raise TaxonomyError(f"{path}: expected {max_columns:,} columns at most, got {len(header):,}")

    header = [clean_name(name) for name in header]
    while header and not header[-1]:
        header.pop()
    if duplicate := first_duplicate(header):
        raise TaxonomyError(f"{path}: column {brief(duplicate)} occurs twice")

    def records() -> Iterator[tuple[int, dict[str, str]]]:
        for line, cells in rows:
            if not cells:
                continue

            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) > len(header):
                raise TaxonomyError(
                    f"{path} line {line}: expected {len(header)} cells, got {len(cells)}: put quotes "
                    "around a name with a comma"
                )
            yield line, dict(itertools.zip_longest(header, cells, fillvalue=""))

    return header, records()


def read_cells(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row of a table, with or without a header; see :func:`read_table`."""
    check_file(path, error=TaxonomyError)
    with open(path, encoding=text_encoding(path), newline="") as file:
        line = 0
        try:
            delimiter = find_delimiter(file.read(SNIFFED), str(path))
            file.seek(0)
            reader = csv.reader(bounded_lines(file, path), delimiter=delimiter)
            for cells in reader:
                line = reader.line_num
                yield line, cells
        except (csv.Error, UnicodeError) as error:
            raise TaxonomyError(
                f"{path} after line {line}: expected CSV in UTF-8: {error}. A spreadsheet saves it as 'CSV UTF-8'"
            ) from error


def text_encoding(path: str | Path) -> str:
    """Return the encoding of a text file: UTF-16 if it has that byte order mark, else UTF-8."""
    with open(path, "rb") as file:
        start = file.read(4)
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def find_delimiter(text: str, name: str = "") -> str:
    """Return the separator of a table: the character that gives most of the first rows the same number of cells.

    Args:
        text: The beginning of the table.
        name: Name of the file; tabs are the default for a ``.tsv``.
    """
    rows = list(itertools.islice(filter(str.strip, text.splitlines()), 20))
    if len(text) == SNIFFED and len(rows) > 1:
        rows.pop()  # it may be incomplete

    best = (0, "\t" if name.lower().endswith(".tsv") else ",")
    for delimiter in ",;\t|":
        try:
            counts = [len(cells) for cells in csv.reader(rows, delimiter=delimiter)]
        except csv.Error:
            continue
        fits = sum(1 for count in counts if 1 < count <= counts[0])
        if counts and counts[0] > 1 and fits > best[0]:
            best = (fits, delimiter)

    return best[1]


def bounded_lines(file: IO[AnyStr], path: str | Path) -> Iterator[AnyStr]:
    """Yield the lines of a file; a line that is too long is refused before it fills the memory.

    Raises:
        TaxonomyError: if a line has more than ``MAX_LINE`` characters.
    """
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise TaxonomyError(f"{path}: expected lines of {MAX_LINE:,} characters at most: is it a table?")
        yield line


def walk_tree(root: Path, skipped: Skipped | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder of a tree, and the names of its folders and files, sorted, without hidden ones.

    Broken links, pipes and devices are among the files, so that reading them reports the error.

    Raises:
        TaxonomyError: if a folder cannot be read, if links lead to a folder twice (as circular links do), or if there
            are too many levels.
    """
    odd: list[str] = []

    def leave_out(left: LeftOut) -> None:
        if left.seen_before:
            raise TaxonomyError(f"{left.path} is {left.reason}: expected a tree, in which no folder is reached twice")
        if left.folder:
            raise TaxonomyError(f"{brief(str(left.path))}: {left.reason}")
        if not left.hidden:
            odd.append(left.path.name)
        elif skipped is not None:
            skipped.add("hidden files" if left.path.name.startswith(".") else left.path.name)

    for folder, folders, files in walk(root, leave_out):
        yield folder, folders, sorted(files + odd)
        odd.clear()


def label_folders(root: Path) -> list[tuple[str, ...]]:
    """Return the paths of the folders that are leaves of a tree of labels: those without sub-folders.

    Folders without a picture in or below them are left out, unless no folder has any; a warning says how many.

    Raises:
        TaxonomyError: see :func:`walk_tree`.
    """
    skipped = Skipped()
    folders = []
    with_pictures: set[tuple[str, ...]] = set()
    for folder, _, names in walk_tree(root, skipped):
        path = folder.relative_to(root).parts
        folders.append(path)
        if any(is_picture_name(name) for name in names):
            with_pictures.update(path[:depth] for depth in range(len(path) + 1))

    kept = [path for path in folders if path in with_pictures] if with_pictures else folders
    inner = {path[:-1] for path in kept if path}
    for _ in range(len(folders) - len(kept)):
        skipped.add("folders without a picture")
    skipped.warn(root)

    return [path for path in kept if path not in inner]
