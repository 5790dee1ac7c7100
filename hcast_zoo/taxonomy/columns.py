"""Columns of tables: which hold the levels, the picture and the split, by the names that common exports use."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from ..common.text import brief
from .names import clean_name

RANKS = (  # coarse to fine
    *("domain", "superkingdom", "kingdom", "subkingdom", "phylum", "subphylum", "superclass", "class", "subclass"),
    *("infraclass", "superorder", "order", "suborder", "infraorder", "superfamily", "family", "subfamily"),
    *("supertribe", "tribe", "subtribe", "genus", "subgenus", "species", "subspecies"),
)
PICTURES = (
    *("file", "file_name", "filename", "file_path", "filepath", "image_path", "image_file", "img_path", "image", "img"),
    *("picture", "photo", "path", "local_path"),
)
SPLITS = ("split", "subset", "partition")
# Columns of Darwin Core, GBIF and iNaturalist, and what collections note beside a label: in lower case, without
# underscores, blanks and punctuation.
NOTES = frozenset(
    """id uuid key count individualcount date time datetime eventdate eventtime year month day observedon timeobservedat
    createdat updatedat latitude longitude lat lon lng decimallatitude decimallongitude
    coordinateuncertaintyinmeters positionalaccuracy elevation depth geodeticdatum country countrycode stateprovince
    county municipality locality location site place placeguess habitat camera station sequence series sex lifestage age
    photographer observer recordedby identifiedby userlogin username license licence rights rightsholder url imageurl
    sourceurl soundurl description remarks comment comments note notes tags taglist common commonname vernacularname
    iconictaxonname scientificname scientificnameauthorship taxonrank taxonomicstatus basisofrecord
    occurrencestatus institutioncode collectioncode catalognumber datasetname publisher width height bbox
    confidence score qualitygrade verbatimscientificname acceptedscientificname genericname specificepithet
    infraspecificepithet canonicalname xmin ymin xmax ymax boxunit""".split()  # noqa: SIM905
)
INATURALIST = re.compile(r"^taxon_(\w+)_name$")
SPECIESNET = ("uuid", "class", "order", "family", "genus", "species", "common")  # its taxonomy file has no header
UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a table are.

    Attributes:
        levels: Level name to column, coarse to fine.
        picture: Column of the picture's file; None if there is none.
        split: Column that says train, val or test; None if there is none.
        unused: Columns that are none of these.
    """

    levels: dict[str, str]
    picture: str | None
    split: str | None
    unused: tuple[str, ...]

    def path(self, row: Mapping[str, object]) -> list:
        """Return a row's cells at each level; None where a cell is empty.

        A species given by its epithet alone is completed with its genus.
        """
        columns = list(self.levels.values())
        names = [_cell(row[column]) for column in columns]

        level_of = {level.lower(): index for index, level in enumerate(self.levels)}
        genus, species = level_of.get("genus"), level_of.get("species")
        if genus is not None and species is not None:
            if columns[species] == "scientificName":
                names[species] = _species_of(names[species])

            first, epithet = names[genus], names[species]
            if isinstance(first, str) and isinstance(epithet, str) and " " not in epithet and epithet.islower():
                names[species] = f"{first} {epithet}"

        return names


def find_columns(columns: Sequence[str], levels: Sequence[str] | None = None, reserved: Sequence[str] = ()) -> Columns:
    """Find the columns of the levels, the picture and the split.

    Without ``levels``: if two or more columns are named after ranks (``order``, or ``taxon_order_name`` as iNaturalist
    writes it), those are the levels, in the order of the ranks. Otherwise they are all columns except the picture, the
    split and known notes (``observation_id``, ``latitude`` ...), in the order of the table.

    Args:
        columns: The header.
        levels: Columns that are the levels, coarse to fine, in any case.
        reserved: Columns that are never levels.

    Raises:
        ValueError: if one of ``levels`` is missing; the message lists the columns.
    """
    by_name = columns_by_name(columns)
    picture, split = find_column(columns, PICTURES), find_column(columns, SPLITS)
    taken = {picture, split, *reserved}

    if levels is not None:
        if missing := [level for level in levels if level.lower() not in by_name]:
            raise ValueError(f"no column {', '.join(missing)}; it has {brief(list(columns))}")
        chosen = {level: by_name[level.lower()] for level in levels}
    elif len(ranks := _ranks(columns)) > 1:
        chosen = ranks
    else:
        chosen = {c: c for c in columns if c not in taken and not is_note(c)}

    taken.update(chosen.values())
    if picture in chosen.values():
        picture = None
    return Columns(levels=chosen, picture=picture, split=split, unused=tuple(c for c in columns if c not in taken))


def columns_by_name(columns: Sequence[str]) -> dict[str, str]:
    """Map names in lower case to columns; of several columns with the same name, to the first."""
    return {column.lower(): column for column in reversed(columns)}


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column named by the first of some names that the table has, in any case; None if it has none.

    Example:
        >>> find_column(("id", "Photo", "FILE"), PICTURES)
        'FILE'
    """
    by_name = columns_by_name(columns)
    return next((by_name[name] for name in names if name in by_name), None)


def is_note(column: str) -> bool:
    """Return whether a column, by its name, is an identifier or a note beside the label, such as a date or a place."""
    plain = re.sub(r"[\s_:.-]", "", column).lower()
    return plain in NOTES or bool(re.search(r"(^|[_\s])(id|key|uuid)$|[a-z](ID|Id|Key)$", column))


def _ranks(columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that are named after ranks, by the level's name, coarse to fine."""
    by_rank: dict[str, tuple[str, str]] = {}
    for column in columns:
        match = INATURALIST.match(column)
        rank = (match[1] if match else column).lower()
        if rank in RANKS:
            by_rank.setdefault(rank, (match[1] if match else column, column))

    if len(by_rank) > 1 and "species" not in by_rank and "scientificName" in columns:
        by_rank["species"] = ("species", "scientificName")

    return dict(by_rank[rank] for rank in RANKS if rank in by_rank)


def _species_of(name: object) -> object:
    """Return the binomial in a scientific name, without author and year; None if it names a genus or a higher rank."""
    if not isinstance(name, str):
        return name
    words = name.split()
    if len(words) < 2 or not words[1].replace("-", "").isalpha() or not words[1].islower():
        return None
    return " ".join(words[:2])


def _cell(value: object) -> object:
    if isinstance(value, str):
        return clean_name(value) or None
    return value
