"""A data set checked: what is in it, and what is to be mended, as plain data that a page shows."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..common.text import clip
from ..data.readers import SPLIT_NAMES, Listing, find_split
from ..inference.predictor import Prediction
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .duplicates import groups_of, near_groups
from .scan import Measured, colours, hashes
from .suspects import Suspect, find_suspect

FEW = 5  # training pictures of a node, below which it is too small to learn
SMALL = 4  # a picture is small if its shorter side is that many times below the median
WHOLE = "all"  # what the one part of a data set without parts is called
NOWHERE = "(no part)"  # where pictures are that a list puts into none of its parts


@dataclasses.dataclass
class Node:
    """A node of the tree, with the pictures at or below it.

    Attributes:
        name: Its name.
        level: Name of its level.
        pictures: Number of pictures by part of the data.
        stops_here: Pictures that are labelled no deeper, though there are nodes below.
        examples: Indices of some of its pictures that can be read.
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
    """Pictures that are the same, or look alike.

    Attributes:
        pictures: Indices.
        exact: Whether all have the same bytes.
        across: Whether they lie in several parts, so that a test tells too much.
        labels_differ: Whether their labels do.
    """

    pictures: list[int]
    exact: bool
    across: bool
    labels_differ: bool


@dataclasses.dataclass
class Report:
    """What was found; pictures are indices of the listing.

    Attributes:
        listing: What was checked.
        measured: One a picture.
        taxonomy: The tree of its labels.
        parts: Number of pictures by part.
        tree: The coarsest nodes.
        unreadable: Pictures that cannot be read.
        wrong_labels: Picture to what is wrong with its label.
        unlabelled: Pictures without any label.
        copies: The worst first: across parts, then with different labels.
        blank: Pictures of one colour.
        small: Pictures much smaller than the others.
        few: Leaves with fewer than ``FEW`` training pictures.
        untrained: Nodes that only other parts have pictures of, without those below them.
        untested: Parts but training to the leaves that they have no picture of.
        suspects: Picture to why its label is suspect, the surest first; None without a model.
        unknown_labels: Names that the model does not know, and how many pictures have them.
        notes: What reading the data told.
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
        """Note which labels a model contradicts, and which it does not know.

        Args:
            predictions: Pictures, and what the model is sure of; see :func:`.suspects.find_suspect`.
            taxonomy: The model's.
        """
        found: dict[int, Suspect] = {}
        unknown: collections.Counter[str] = collections.Counter()
        for index, prediction in predictions:
            try:
                suspect = find_suspect(prediction, self.listing.paths[index], taxonomy)
            except TaxonomyError as error:
                unknown[clip(error, 300)] += 1
                continue
            if suspect is not None:
                found[index] = suspect

        self.suspects = dict(sorted(found.items(), key=lambda item: -item[1].probability))
        self.unknown_labels = dict(unknown.most_common())

    def counts(self) -> dict[str, int]:
        """Return how many things of each kind there are to mend, the worst kinds first."""
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
        """Return plain data for JSON: everything that was found, with the names of files."""

        def entry(index: int, **more) -> dict:
            return {
                "file": self.name(index),
                "part": self.part(index),
                "label": list(self.listing.paths[index]),
                **more,
            }

        def measures(index: int) -> dict:
            return {"width": self.measured[index].width, "height": self.measured[index].height}

        copies = []
        for group in self.copies:
            flags = {"exact": group.exact, "across_parts": group.across, "labels_differ": group.labels_differ}
            copies.append({**flags, "pictures": [entry(i, **measures(i)) for i in group.pictures]})

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
            "unlabelled": [entry(i) for i in self.unlabelled],
            "copies": copies,
            "few": [_plain(node, below=False) for node in self.few],
            "untrained": [_plain(node, below=False) for node in self.untrained],
            "untested": {part: [_plain(node, below=False) for node in nodes] for part, nodes in self.untested.items()},
            "blank": [entry(i) for i in self.blank],
            "small": [entry(i, **measures(i)) for i in self.small],
            "tree": [_plain(node) for node in self.tree],
        }
        if self.suspects is not None:
            data["suspects"] = [entry(i, **dataclasses.asdict(suspect)) for i, suspect in self.suspects.items()]
            data["unknown_labels"] = self.unknown_labels

        return data


def _plain(node: Node, below: bool = True) -> dict:
    data: dict = {"name": node.name, "level": node.level, "pictures": node.pictures}
    if below:
        data.update(stops_here=node.stops_here, children=[_plain(child) for child in node.children])
    return data


def examine(
    listing: Listing,
    measured: Iterable[Measured],
    taxonomy: Taxonomy | None = None,
    distance: int = 4,
) -> Report:
    """Find what is to be mended.

    Args:
        listing: Pictures and labels.
        measured: Of each picture, see :func:`.scan.scan`.
        taxonomy: The tree; by default that of the labels.
        distance: Of perceptual hashes, see :func:`.duplicates.near_groups`.
    """
    measured = list(measured)
    tree = taxonomy or listing.taxonomy()
    labels, wrong = read_labels(listing, tree)
    parts = _parts(listing)
    readable = [index for index, m in enumerate(measured) if m.error is None]
    known = [find_split(part, dict.fromkeys(parts)) for part in SPLIT_NAMES]
    counts = {part: parts.count(part) for part in dict.fromkeys([*filter(None, known), *parts])}
    nodes = count_nodes(tree, labels, parts, list(counts), set(readable))
    leaves = [node for node in _all(nodes) if not node.children]
    train = WHOLE if listing.splits is None else known[0]
    others = [part for part in counts if part != train and train is not None]

    return Report(
        listing=listing,
        measured=measured,
        taxonomy=tree,
        parts=counts,
        tree=nodes,
        unreadable=[index for index, m in enumerate(measured) if m.error is not None],
        wrong_labels=wrong,
        unlabelled=[i for i, label in enumerate(labels) if i not in wrong and set(label) == {UNKNOWN}],
        copies=find_copies(listing, measured, distance),
        blank=[index for index in readable if measured[index].blank],
        small=_small(measured, readable),
        few=sorted((n for n in leaves if 0 < n.pictures.get(train or "", 0) < FEW), key=_total),
        untrained=[] if train is None else _untrained(nodes, train),
        untested={part: [n for n in leaves if not n.pictures.get(part) and _total(n)] for part in others},
    )


def _parts(listing: Listing) -> list[str]:
    if listing.splits is None:
        return [WHOLE] * len(listing.pictures)
    return [part or NOWHERE for part in listing.splits]


def read_labels(listing: Listing, taxonomy: Taxonomy) -> tuple[list[tuple[int, ...]], dict[int, str]]:
    """Return the label of each picture, -1 at every level where it is wrong, and what is wrong with those."""
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
    """Return the coarsest nodes of a tree with their pictures, and those below.

    Args:
        taxonomy: The tree.
        labels: Of each picture, a node of each level or -1.
        parts: The part that each picture is in.
        names: All parts, in the order to count them in.
        readable: Pictures that can be examples.
    """
    levels = []
    for level, nodes in zip(taxonomy.levels, taxonomy.names):
        levels.append([Node(name, level, dict.fromkeys(names, 0)) for name in nodes])
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


def _all(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes and all below them, each before its children."""
    found = []
    for node in nodes:
        found += [node, *_all(node.children)]
    return found


def _untrained(nodes: Iterable[Node], train: str) -> list[Node]:
    found = []
    for node in nodes:
        if _total(node) and not node.pictures.get(train):
            found.append(node)
        else:
            found += _untrained(node.children, train)
    return found


def _total(node: Node) -> int:
    return sum(node.pictures.values())


def find_copies(listing: Listing, measured: Sequence[Measured], distance: int) -> list[Copies]:
    """Return groups of copies, the worst first. Pictures of one colour are compared by their bytes alone."""
    exact = groups_of([m.sha256 or f"unreadable {index}" for index, m in enumerate(measured)])
    first_of = {index: group[0] for group in exact for index in group}
    kept = [i for i, m in enumerate(measured) if m.error is None and not m.blank and first_of.get(i, i) == i]
    distinct = [measured[index] for index in kept]
    near = near_groups(hashes(distinct), colours(distinct), distance) if kept else []

    members = {group[0]: group for group in exact}
    found = []
    for group in near:
        together = [index for place in group for index in members.pop(kept[place], [kept[place]])]
        found.append(_copies(listing, sorted(together), exact=False))

    found += [_copies(listing, group, exact=True) for group in members.values()]

    return sorted(found, key=lambda c: (not c.across, not c.labels_differ, not c.exact, c.pictures[0]))


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
    return sorted((index for index in readable if sides[index] < limit), key=lambda index: sides[index])


def sizes(measured: Sequence[Measured]) -> dict[str, dict[str, int]]:
    """Return the smallest, the middle and the largest width, height and shorter side in pixels."""
    readable = [m for m in measured if m.error is None]
    if not readable:
        return {}
    of: dict[str, Callable[[Measured], int]] = {
        "width": lambda m: m.width,
        "height": lambda m: m.height,
        "shorter_side": lambda m: min(m.width, m.height),
    }
    found = {}
    for name, value in of.items():
        values = sorted(map(value, readable))
        found[name] = {"smallest": values[0], "median": values[len(values) // 2], "largest": values[-1]}
    return found
