"""Find copies: pictures with the same bytes, and pictures that look alike, without comparing every pair."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ..common.extras import needs_extra

HASH_BITS = 64
MAX_DISTANCE = 8  # beyond this, bands of the hash are so short that most pictures share one
ROWS = 1 << 20  # comparisons per step
BITS = np.array([byte.bit_count() for byte in range(256)], np.uint8)


def near_groups(hashes: np.ndarray, colours: np.ndarray, distance: int = 4, colour: float = 12.0) -> list[list[int]]:
    """Return groups of pictures that look alike, directly or through a chain of others.

    Two pictures look alike if at most ``distance`` of the 64 bits of their hashes differ, and the colours of their
    thumbnails differ by at most ``colour`` on average. At least one of ``distance + 1`` bands of their hashes is then
    equal, so only pictures that share a band are compared ("multi-index hashing", Norouzi et al., CVPR 2012).

    Args:
        hashes: (N,) uint64.
        colours: (N, K) uint8.
        distance: Largest distance of hashes, in bits, 0 to 8.
        colour: Largest mean difference of colours, in [0, 255].

    Returns:
        Groups of at least two indices, ascending, in the order of their first.

    Raises:
        ValueError: if the distance is out of range.

    Example:
        >>> import numpy as np
        >>> hashes = np.array([0b0000, 0b1110, 0b0001, 0b0011], np.uint64)
        >>> near_groups(hashes, np.zeros((4, 48), np.uint8), distance=1)  # 0 and 3 differ in two bits, but 2 is between
        [[0, 2, 3]]
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"expected a distance of 0 to {MAX_DISTANCE} bits, got {distance}")

    component = _equal_rows(hashes, colours)
    kept = np.unique(component, return_index=True)[1]
    hashes, colours, joined = hashes[kept], colours[kept], np.arange(len(kept))

    for first, second in _near(hashes, distance):
        apart = joined[first] != joined[second]
        first, second = first[apart], second[apart]
        difference = np.abs(colours[first].astype(np.int16) - colours[second]).mean(1)
        alike = difference <= colour
        if alike.any():
            joined = _join(joined, first[alike], second[alike])

    return groups_of(joined[component])


def groups_of(labels: Sequence) -> list[list[int]]:
    """Return the indices of each label that occurs more than once, in the order of first occurrence.

    Example:
        >>> groups_of(["a", "b", "a", "c"])
        [[0, 2]]
    """
    groups: dict = {}
    for index, label in enumerate(labels.tolist() if isinstance(labels, np.ndarray) else labels):
        groups.setdefault(label, []).append(index)

    return [indices for indices in groups.values() if len(indices) > 1]


def _equal_rows(hashes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return (N,) numbers that are equal where hashes and colours are equal."""
    rows = np.concatenate([hashes[:, None].view(np.uint8), colours], 1)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _join(joined: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (N,) numbers of the connected components after joining pairs."""
    with needs_extra("check", "copies of pictures"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    edges = (np.ones(len(first), bool), (joined[first], joined[second]))
    graph = coo_array(edges, shape=(len(joined), len(joined)))
    return connected_components(graph, directed=False)[1][joined]


def _near(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield two (P,) arrays of indices whose hashes are near; a pair can occur several times."""
    for band in _bands(hashes, distance + 1):
        for first, second in _sharing(band):
            near = _count_ones(hashes[first] ^ hashes[second]) <= distance
            yield first[near], second[near]


def _count_ones(values: np.ndarray) -> np.ndarray:
    """Return the number of 1 bits in each of (P,) uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return BITS[values[:, None].view(np.uint8)].sum(1)  # numpy 1


def _bands(hashes: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yield the bits of (N,) hashes in bands of nearly the same width."""
    ends = [HASH_BITS * number // count for number in range(count + 1)]
    for start, end in itertools.pairwise(ends):
        yield (hashes >> np.uint64(start)) & np.uint64(2 ** (end - start) - 1)


def _sharing(band: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices of pairs with the same value, about ``ROWS`` pairs at a time."""
    order = np.argsort(band, kind="stable")
    values = band[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(values)])
    end = np.repeat(starts + sizes, sizes)  # end of each position's run of equal values
    after = end - np.arange(len(values)) - 1  # number of positions in the run after this one
    total = np.r_[0, np.cumsum(after)]

    position = 0
    while position < len(values):
        stop = min(max(position + 1, int(np.searchsorted(total, total[position] + ROWS))), len(values))
        counts = after[position:stop]
        first = np.repeat(np.arange(position, stop), counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(total[position:stop] - total[position], counts)
        if len(first):
            yield order[first], order[second]
        position = stop
