"""Many answers at a glance: how many pictures are at each node, as a tree of text."""

import collections
from collections.abc import Mapping

Path = tuple[str, ...]


def tree_lines(counts: Mapping[Path, int]) -> list[str]:
    """Draw the nodes that pictures were labelled with, each with its number of pictures, the most frequent first.

    Args:
        counts: Path of names, coarse to fine, to the number of pictures whose answer it is; the empty path for those
            without an answer.

    Returns:
        Lines of text. Where answers end above the leaves, a node tells how many end at it.

    Example:
        >>> print("\\n".join(tree_lines({("bird", "owl"): 2, ("bird",): 1, ("cat", "lion"): 1, (): 1})))
        5 pictures (1 without an answer)
        ├─ bird 3 (1 ends here)
        │  └─ owl 2
        └─ cat 1
           └─ lion 1
    """
    below, children = grow_tree(counts)
    lines = [_count(below[()]) + (f" ({counts[()]} without an answer)" if counts.get(()) else "")]
    lines += _branches((), counts, below, children)
    return lines


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
    """Return the lines of what is below a node."""
    nodes = children.get(path, [])
    lines = []
    for node in nodes:
        last = node is nodes[-1]
        here = counts.get(node, 0)
        ends = f" ({here} end{'s' if here == 1 else ''} here)" if here and node in children else ""
        lines.append(f"{'└─' if last else '├─'} {node[-1]} {below[node]}{ends}")
        lines += [("   " if last else "│  ") + line for line in _branches(node, counts, below, children)]

    return lines


def _count(pictures: int) -> str:
    return f"{pictures} picture{'' if pictures == 1 else 's'}"
