"""Names of nodes as people write them: spaces, Unicode forms, open identifications ("Larus sp."), alternatives."""

import re
import unicodedata
from collections.abc import Sequence

from ..common.text import brief

MAX_NAME = 1000  # characters
INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFEFF))  # without the joiners, which emoji and Persian need
OPEN = re.compile(r"\s(?:sp|spp|spec|indet)\.?$|\s(?:cf|aff)\.?\s", re.IGNORECASE)  # "Larus sp. 1" is a name
ALTERNATIVES = re.compile(r"\s*/\s*|\s+or\s+")


def clean_name(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), with plain spaces and without invisible characters."""
    if name.isascii():
        return name.strip()
    name = unicodedata.normalize("NFC", name).translate(INVISIBLE)
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in name).strip()


def is_open(name: str) -> bool:
    """Return whether a name leaves the species open: ``Larus sp.``, ``Larus cf. argentatus``."""
    return OPEN.search(name) is not None


def genus_of(name: str) -> str:
    """Return the first word of a name, which is the genus of a species."""
    return name.split()[0]


def alternatives(name: str) -> list[str]:
    """Return the names in ``A/B`` or ``A or B``; none if it is a single name.

    A part that is one lower-case word takes the genus of the first: ``Larus argentatus/cachinnans``.

    Example:
        >>> alternatives("Larus argentatus/cachinnans"), alternatives("Larus argentatus")
        (['Larus argentatus', 'Larus cachinnans'], [])
    """
    parts = [part for part in ALTERNATIVES.split(name) if part]
    if len(parts) < 2:
        return []

    words = parts[0].split()
    if len(words) == 2:
        for index, part in enumerate(parts):
            if " " not in part and part.islower():
                parts[index] = f"{words[0]} {part}"

    return parts


def first_duplicate(values: Sequence[str]) -> str | None:
    """Return the first name that occurs a second time, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def fault_of(name: object) -> str | None:
    """Return why a value cannot be the name of a level or a node; None if it can."""
    if not isinstance(name, str) or not name.strip():
        return f"got {brief(name)}"
    if len(name) > MAX_NAME:
        return f"got {len(name)} characters, {brief(name)}: expected {MAX_NAME} at most"

    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return f"got {brief(name)}, which is not valid text: it has half of a surrogate pair"

    return None
