"""Check a data set: what it contains, and what should be fixed, as plain data."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ..common.text import clip
from ..data.readers import SPLIT_NAMES, Listing, find_split
from ..inference.predictor import Prediction
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .duplicates import groups_of, near_groups
from .scan import Measured, colours, hashes
from .suspects import Suspect, find_suspect

FEW = 5  # a leaf with fewer training pictures is reported
SMALL = 4  # a picture is small if its shorter side is less than the median's divided by this
WHOLE = "all"  # name of the only part of a data set without parts
NOWHERE = "(no part)"  # part of the pictures that a list assigns to no part


@dataclasses.dataclass
class Node:
    """A node of the tree, with the pictures at or below it.

    Attributes:
        name: Its name.
        level: Name of its level.
        pictures: Number of pictures in each part of the data.
        stops_here: Number of pictures labelled with this node and no deeper, though it has children.
        examples: Indices of readable pictures labelled with this node and no deeper.
        children: The nodes below.
    """

    name: str
    level: str
    pictures: dict[str, int]
    stops_here: int = 0
    examples: list[int] = dataclasses.field(default_factory=list)
    children: list["Node"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Copies:
    """A group of pictures that are the same or look alike.

    Attributes:
        pictures: Indices.
        exact: Whether all have the same bytes.
        across: Whether they are in several parts, which makes test results look too good.
        labels_differ: Whether their labels differ.
    """

    pictures: list[int]
    exact: bool
    across: bool
    labels_differ: bool


@dataclasses.dataclass
class Report:
    """The findings; pictures are given as indices into the listing.

    Attributes:
        listing: The data that was checked.
        measured: Measurements, one per picture.
        taxonomy: The tree of its labels.
        parts: Number of pictures in each part.
        tree: The coarsest nodes.
        unreadable: Pictures that cannot be read.
        wrong_labels: Picture to what is wrong with its label.
        unlabelled: Pictures without any label.
        copies: Groups of copies, the worst first: across parts, then with different labels.
        blank: Pictures of one colour.
        small: Pictures much smaller than the others.
        few: Leaves with fewer than ``FEW`` training pictures.
        untrained: Topmost nodes that have pictures, but none for training.
        untested: For each part except training, the leaves without a picture in it.
        suspects: Picture to the model's contradiction of its label, the surest first; None without a model.
        unknown_labels: Errors about labels that the model does not know, and the number of their pictures.
        notes: Notes from reading the data.
    """

    listing: Listing
    measured: list[Measured]
    taxonomy: Taxonomy
    parts: dict[str, int]
    tree: list[Node]
    unreadable: list[int]
    wrong_labels: dict[int, str]
    unlabelled: list[int]
    copies: list[Copies]
    blank: list[int]
    small: list[int]
    few: list[Node]
    untrained: list[Node]
    untested: dict[str, list[Node]]
    suspects: dict[int, Suspect] | None = None
    unknown_labels: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def name(self, index: int) -> str:
        """Return a picture's file, or its number."""
        picture = self.listing.pictures[index]
        return f"picture {index}" if isinstance(picture, bytes) else str(picture)

    def part(self, index: int) -> str:
        """Return the part of the data that a picture is in."""
        return WHOLE if self.listing.splits is None else self.listing.splits[index] or NOWHERE

    def label(self, index: int) -> str:
        """Return a picture's label as one text."""
        return " > ".join(str(name) for name in self.listing.paths[index] if name is not None)

    def compare(self, predictions: Iterable[tuple[int, Prediction]], taxonomy: Taxonomy) -> None:
        """Record which labels a model contradicts, and which it does not know.

        Args:
            predictions: Pictures with the model's predictions; see :func:`.suspects.find_suspect`.
            taxonomy: The model's tree.
        """
        suspects: dict[int, Suspect] = {}
        unknown: collections.Counter[str] = collections.Counter()
        for index, prediction in predictions:
            try:
                suspect = find_suspect(prediction, self.listing.paths[index], taxonomy)
            except TaxonomyError as error:
                unknown[clip(error, 300)] += 1
                continue

            if suspect is not None:
                suspects[index] = suspect

        self.suspects = dict(sorted(suspects.items(), key=lambda item: -item[1].probability))
        self.unknown_labels = dict(unknown.most_common())

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each kind, the worst kinds first."""
        counts = {
            "unreadable": len(self.unreadable),
            "copies_across_parts": sum(group.across for group in self.copies),
            "copies_with_other_labels": sum(group.labels_differ for group in self.copies),
            "copies": len(self.copies),
            "wrong_labels": len(self.wrong_labels),
            "unlabelled": len(self.unlabelled),
            "few": len(self.few),
            "untrained": len(self.untrained),
            "untested": sum(map(len, self.untested.values())),
            "blank": len(self.blank),
            "small": len(self.small),
        }
        if self.suspects is not None:
            counts["suspects"] = len(self.suspects)

        return counts

    def to_dict(self) -> dict:
        """Return all findings as plain data for JSON, with file names in place of indices."""

        def entry(index: int, **more) -> dict:
            return {
                "file": self.name(index),
                "part": self.part(index),
                "label": list(self.listing.paths[index]),
                **more,
            }

        def sized_entry(index: int) -> dict:
            return entry(index, width=self.measured[index].width, height=self.measured[index].height)

        copies = []
        for group in self.copies:
            flags = {"exact": group.exact, "across_parts": group.across, "labels_differ": group.labels_differ}
            copies.append({**flags, "pictures": list(map(sized_entry, group.pictures))})

        data = {
            "data": str(self.listing.source),
            "pictures": len(self.measured),
            "parts": self.parts,
            "levels": dict(zip(self.taxonomy.levels, self.taxonomy.level_classes)),
            "notes": self.notes,
            "counts": self.counts(),
            "sizes": sizes(self.measured),
            "unreadable": [entry(i, error=self.measured[i].error) for i in self.unreadable],
            "wrong_labels": [entry(i, error=error) for i, error in self.wrong_labels.items()],
            "unlabelled": list(map(entry, self.unlabelled)),
            "copies": copies,
            "few": list(map(_plain, self.few)),
            "untrained": list(map(_plain, self.untrained)),
            "untested": {part: list(map(_plain, nodes)) for part, nodes in self.untested.items()},
            "blank": list(map(entry, self.blank)),
            "small": list(map(sized_entry, self.small)),
            "tree": list(map(_plain_subtree, self.tree)),
        }
        if self.suspects is not None:
            data["suspects"] = [entry(i, **dataclasses.asdict(suspect)) for i, suspect in self.suspects.items()]
            data["unknown_labels"] = self.unknown_labels

        return data


def _plain(node: Node) -> dict:
    """Return a node without its children as plain data."""
    return {"name": node.name, "level": node.level, "pictures": node.pictures}


def _plain_subtree(node: Node) -> dict:
    """Return a node and all below it as plain data."""
    return {**_plain(node), "stops_here": node.stops_here, "children": list(map(_plain_subtree, node.children))}


def examine(
    listing: Listing,
    measured: Iterable[Measured],
    taxonomy: Taxonomy | None = None,
    distance: int = 4,
) -> Report:
    """Find what should be fixed in a data set.

    Args:
        listing: Pictures and labels.
        measured: Measurements of each picture; see :func:`.scan.scan`.
        taxonomy: The tree; by default that of the labels.
        distance: Largest distance of perceptual hashes; see :func:`.duplicates.near_groups`.
    """
    measured = list(measured)
    tree = taxonomy or listing.taxonomy()
    labels, wrong = read_labels(listing, tree)
    unlabelled = [i for i, label in enumerate(labels) if i not in wrong and set(label) == {UNKNOWN}]
    readable = [index for index, m in enumerate(measured) if m.error is None]
    unreadable = [index for index, m in enumerate(measured) if m.error is not None]

    parts = _parts(listing)
    usual = [find_split(split, dict.fromkeys(parts)) for split in SPLIT_NAMES]  # its names of train, val and test
    order = dict.fromkeys([*filter(None, usual), *parts])
    counts = {part: parts.count(part) for part in order}

    nodes = count_nodes(tree, labels, parts, list(counts), set(readable))
    leaves = [node for node in _flatten(nodes) if not node.children]
    train = WHOLE if listing.splits is None else usual[0]
    few = [leaf for leaf in leaves if 0 < leaf.pictures.get(train or "", 0) < FEW]

    untested = {}
    for part in counts:
        if train is not None and part != train:
            untested[part] = [leaf for leaf in leaves if not leaf.pictures.get(part) and _total(leaf)]

    return Report(
        listing=listing,
        measured=measured,
        taxonomy=tree,
        parts=counts,
        tree=nodes,
        unreadable=unreadable,
        wrong_labels=wrong,
        unlabelled=unlabelled,
        copies=find_copies(listing, measured, distance),
        blank=[index for index in readable if measured[index].blank],
        small=_small(measured, readable),
        few=sorted(few, key=_total),
        untrained=[] if train is None else _untrained(nodes, train),
        untested=untested,
    )


def _parts(listing: Listing) -> list[str]:
    if listing.splits is None:
        return [WHOLE] * len(listing.pictures)

    return [part or NOWHERE for part in listing.splits]


def read_labels(listing: Listing, taxonomy: Taxonomy) -> tuple[list[tuple[int, ...]], dict[int, str]]:
    """Return each picture's label, all -1 if it is wrong, and, for each wrong one, what is wrong with it."""
    known: dict[tuple, tuple[int, ...] | str] = {}
    labels, wrong = [], {}
    for index, path in enumerate(listing.paths):
        key = tuple(path)
        if key not in known:
            try:
                known[key] = taxonomy.labels(key)
            except TaxonomyError as error:
                known[key] = clip(error, 300)

        label = known[key]
        if isinstance(label, str):
            wrong[index] = label
            label = (UNKNOWN,) * len(taxonomy.levels)
        labels.append(label)

    return labels, wrong


def count_nodes(
    taxonomy: Taxonomy,
    labels: Sequence[tuple[int, ...]],
    parts: Sequence[str],
    names: Sequence[str],
    readable: set[int],
) -> list[Node]:
    """Return the coarsest nodes of a tree, with the pictures of all nodes counted.

    Args:
        taxonomy: The tree.
        labels: Each picture's node at every level, or -1.
        parts: The part of each picture.
        names: All parts, in the order in which counts list them.
        readable: Pictures that can be examples.
    """
    levels = []
    for level, nodes in zip(taxonomy.levels, taxonomy.names):
        levels.append([Node(name=name, level=level, pictures=dict.fromkeys(names, 0)) for name in nodes])

    for depth, parents in enumerate(taxonomy.parents):
        for node, parent in zip(levels[depth + 1], parents):
            levels[depth][parent].children.append(node)

    for index, (label, part) in enumerate(zip(labels, parts)):
        known = [nodes[node] for nodes, node in zip(levels, label) if node != UNKNOWN]
        for node in known:
            node.pictures[part] += 1
        if known:
            known[-1].stops_here += bool(known[-1].children)
            if index in readable:
                known[-1].examples.append(index)

    return levels[0]


def _flatten(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes and all their descendants, each before its children."""
    descendants = []
    for node in nodes:
        descendants += [node, *_flatten(node.children)]

    return descendants


def _untrained(nodes: Iterable[Node], train: str) -> list[Node]:
    """Return the topmost of the nodes and their descendants that have pictures, but none for training."""
    untrained = []
    for node in nodes:
        if _total(node) and not node.pictures.get(train):
            untrained.append(node)
        else:
            untrained += _untrained(node.children, train)

    return untrained


def _total(node: Node) -> int:
    return sum(node.pictures.values())


def find_copies(listing: Listing, measured: Sequence[Measured], distance: int) -> list[Copies]:
    """Return groups of copies, the worst first. Pictures of one colour are compared only by their bytes."""
    exact = groups_of([m.sha256 or f"unreadable {index}" for index, m in enumerate(measured)])
    repeated = set()
    for group in exact:
        repeated.update(group[1:])

    kept = [i for i, m in enumerate(measured) if m.error is None and not m.blank and i not in repeated]
    distinct = [measured[index] for index in kept]
    near = near_groups(hashes(distinct), colours(distinct), distance) if kept else []

    same_bytes = {group[0]: group for group in exact}
    copies = []
    for group in near:
        pictures = []
        for position in group:
            first = kept[position]
            pictures += same_bytes.pop(first, [first])
        copies.append(_copies(listing, sorted(pictures), exact=False))

    copies += [_copies(listing, group, exact=True) for group in same_bytes.values()]

    return sorted(copies, key=lambda c: (not c.across, not c.labels_differ, not c.exact, c.pictures[0]))


def _copies(listing: Listing, pictures: list[int], exact: bool) -> Copies:
    parts = {None if listing.splits is None else listing.splits[index] for index in pictures}
    labels = {tuple(listing.paths[index]) for index in pictures}
    return Copies(pictures=pictures, exact=exact, across=len(parts) > 1, labels_differ=len(labels) > 1)


def _small(measured: Sequence[Measured], readable: Sequence[int]) -> list[int]:
    """Return the pictures whose shorter side is far below the median, the smallest first."""
    if not readable:
        return []

    sides = {index: min(measured[index].width, measured[index].height) for index in readable}
    limit = float(np.median(list(sides.values()))) / SMALL
    return sorted([index for index in readable if sides[index] < limit], key=sides.__getitem__)


def sizes(measured: Sequence[Measured]) -> dict[str, dict[str, int]]:
    """Return the smallest, median and largest width, height and shorter side in pixels."""
    widths = [m.width for m in measured if m.error is None]
    heights = [m.height for m in measured if m.error is None]
    if not widths:
        return {}

    summary = {}
    shorter = list(map(min, widths, heights))
    for name, values in (("width", widths), ("height", heights), ("shorter_side", shorter)):
        values = sorted(values)
        summary[name] = {"smallest": values[0], "median": values[len(values) // 2], "largest": values[-1]}

    return summary
