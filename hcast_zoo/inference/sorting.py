"""Sort pictures into folders, one for each answer's node."""

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..common.claim import claim, own_folder
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .prediction import Prediction

PLAN = ".sorted.json"
NO_ANSWER = "(no answer)"
LONGEST_NAME = 120  # bytes, so that six levels and a file's name fit into the 1,024 or so of a path
# Device names of Windows, whatever suffix follows.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def sort_into(
    predictions: Iterable[Prediction], output: str | Path, taxonomy: Taxonomy, plan: dict, *, copy: bool = False
) -> Iterator[Prediction]:
    """Yield predictions unchanged, and put a link to or a copy of each picture into the folder of its node.

    Rerun the same command to resume. A picture that failed is left out; one without an answer goes into the folder
    ``(no answer)``.

    Args:
        predictions: Predictions for pictures that are files.
        output: Folder to sort into; created if it does not exist.
        taxonomy: The model's taxonomy.
        plan: Plain data that identifies the model and its settings: sections ``settings`` and ``made_of``. A folder
            that was sorted with another plan is refused.
        copy: Copy pictures instead of linking to them.

    Raises:
        ValueError: if the folder holds other files, was sorted with another plan, or is in use.
        OSError: if a link or a copy cannot be made.
    """
    output = Path(output)
    with own_folder(output):
        others = [path.name for path in output.iterdir() if path.name not in (PLAN, ".lock")]
        if others and not (output / PLAN).exists():
            raise ValueError(f"{output} holds other files, such as {min(others)}: choose an empty folder")
        claim(
            output / PLAN,
            plan,
            holds="pictures that were sorted with another model or other options",
            mend="sort with the same model and options, or choose another folder",
        )

        folders = NodeFolders(taxonomy)
        for prediction in predictions:
            if prediction.error is None:
                place(Path(prediction.file), output / folders.folder(prediction.path), copy=copy)
            yield prediction


def place(file: Path, folder: Path, *, copy: bool = False) -> Path:
    """Put a link to or a copy of a file into a folder, under the same name if that is free; return its path.

    A link or copy that is already there stays. Another file of the same name gets a suffix that depends only on its
    path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(os.path.abspath(file))
    stem, suffix = os.path.splitext(safe_name(file.name))
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:10]

    for name in (f"{stem}{suffix}", f"{stem}~{digest}{suffix}"):
        target = folder / name
        if _is_same(source, target, copy):
            return target
        if not os.path.lexists(target):
            break

    if copy:
        partial = folder / f".{digest}.partial"
        shutil.copy2(source, partial)
        os.replace(partial, target)
        return target

    try:
        target.symlink_to(source)
    except OSError as error:
        raise OSError(f"{target}: no link can be made ({error.strerror or error}): use --sort-as copy") from error

    return target


def _is_same(source: Path, target: Path, copy: bool) -> bool:
    """Return whether a target is already the link to, or the copy of, a source."""
    if target.is_symlink():
        return not copy and os.readlink(target) == str(source)
    if not copy or not target.exists():
        return False

    old, new = target.stat(), source.stat()
    return (old.st_size, int(old.st_mtime)) == (new.st_size, int(new.st_mtime))


class NodeFolders:
    """Names of the folders of a taxonomy's nodes: safe on every system, and different for different nodes."""

    def __init__(self, taxonomy: Taxonomy):
        self.taxonomy = taxonomy
        self._names: dict[tuple[int, int], str] = {}
        for level, names in enumerate(taxonomy.names):
            taken: set[tuple[int, str]] = set()
            for index, name in enumerate(names):
                parent = taxonomy.parents[level - 1][index] if level else UNKNOWN
                safe, number = safe_name(name), 1
                unique = safe
                while (parent, unique.casefold()) in taken or unique == NO_ANSWER:
                    number += 1
                    unique = f"{safe} ({number})"

                taken.add((parent, unique.casefold()))
                self._names[level, index] = unique

    def folder(self, path: tuple[str, ...]) -> Path:
        """Return the relative folder of a path of names."""
        if not path:
            return Path(NO_ANSWER)

        labels = [index for index in self.taxonomy.labels(path) if index != UNKNOWN]
        return Path(*(self._names[level, index] for level, index in enumerate(labels)))


def safe_name(name: str) -> str:
    """Return a name that a file or a folder can have on every system.

    Example:
        >>> safe_name("Larus a/b:c"), safe_name("../x"), safe_name("CON"), safe_name("a. ")
        ('Larus a_b_c', '_._x', 'CON_', 'a')
    """
    name = unicodedata.normalize("NFC", name.encode(errors="replace").decode())
    name = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in name)
    name = name.strip().rstrip(". ")
    if name.startswith("."):
        name = "_" + name[1:]
    if RESERVED.fullmatch(name):
        name += "_"

    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        stem, suffix = os.path.splitext(name)
        suffix = suffix if len(suffix.encode()) <= 10 else ""
        room = LONGEST_NAME - len(suffix.encode()) - 9
        name = stem.encode()[:room].decode(errors="ignore") + "~" + digest + suffix

    return name or "_"
