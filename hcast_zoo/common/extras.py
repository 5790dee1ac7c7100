"""Packages of extras: a missing one gives an error that names the command which installs it."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str, package: str | None = None) -> Iterator[None]:
    """Run a block of imports; of a missing package, say which extra has it.

    Args:
        extra: Name of the extra in pyproject.toml.
        purpose: What needs it, such as "parquet files", as the subject of the message.
        package: Only this one's absence is meant; another import error passes. Any by default.

    Raises:
        ImportError: if a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if package is not None and missing != package:
            raise
        raise ImportError(f"{purpose} need {missing or extra}: pip install 'hcast-zoo[{extra}]'") from error
