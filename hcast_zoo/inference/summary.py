"""Summary of many answers: how many pictures are at each node, as a tree of text."""

import collections
from collections.abc import Mapping

Path = tuple[str, ...]


def tree_lines(counts: Mapping[Path, int]) -> list[str]:
    """Draw the nodes that pictures were labelled with, each with its number of pictures, the most frequent first.

    Args:
        counts: Number of pictures by answer, a path of names, coarse to fine; the empty path stands for no answer.

    Returns:
        Lines of text. If answers end at a node above the leaves, its line says how many.

    Example:
        >>> print("\\n".join(tree_lines({("bird", "owl"): 2, ("bird",): 1, ("cat", "lion"): 1, (): 1})))
        5 pictures (1 without an answer)
        ├─ bird 3 (1 ends here)
        │  └─ owl 2
        └─ cat 1
           └─ lion 1
    """
    below, children = grow_tree(counts)
    pictures = below[()]
    first = f"{pictures} picture{'' if pictures == 1 else 's'}"
    if counts.get(()):
        first += f" ({counts[()]} without an answer)"

    return [first, *_branches((), counts, below, children)]


def grow_tree(counts: Mapping[Path, int]) -> tuple[dict[Path, int], dict[Path, list[Path]]]:
    """Return how many pictures are at or below each node, and the children of each, the most frequent first."""
    below: dict[Path, int] = collections.Counter()
    for path, count in counts.items():
        for depth in range(len(path) + 1):
            below[path[:depth]] += count

    children: dict[Path, list[Path]] = {}
    for node in sorted(below, key=lambda node: (-below[node], node)):
        if node:
            children.setdefault(node[:-1], []).append(node)

    return below, children


def _branches(
    path: Path, counts: Mapping[Path, int], below: Mapping[Path, int], children: Mapping[Path, list[Path]]
) -> list[str]:
    """Return the lines of the nodes below a node."""
    nodes = children.get(path, [])
    lines = []
    for node in nodes:
        last = node is nodes[-1]
        here = counts.get(node, 0)
        ends = f" ({here} end{'s' if here == 1 else ''} here)" if here and node in children else ""
        lines.append(f"{'└─' if last else '├─'} {node[-1]} {below[node]}{ends}")
        lines += [("   " if last else "│  ") + line for line in _branches(node, counts, below, children)]

    return lines
