"""From files to batches: pictures, tables, transforms and data sets."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return ``HierarchicalDataset``, loaded on first use: its module needs torch."""
    if name == "HierarchicalDataset":
        from .dataset import HierarchicalDataset

        return HierarchicalDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
