"""A sample of a long list, to show."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most ``count`` of the items, in order and evenly spaced over the whole list.

    Example:
        >>> spread("abcdefgh", 3)
        ['a', 'c', 'f']
    """
    if len(items) <= count:
        return list(items)

    return [items[number * len(items) // count] for number in range(count)]
