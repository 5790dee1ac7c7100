"""Optional packages: the error about a missing one names the command that installs it."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str, package: str | None = None) -> Iterator[None]:
    """Run a block of imports; if a package is missing, the error names the extra that installs it.

    Args:
        extra: Name of the extra in pyproject.toml.
        purpose: What needs it, such as "parquet files", as the subject of the message.
        package: Translate the error only if this package is missing; any missing package by default.

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
