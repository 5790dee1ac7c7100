"""The demo page.

``run`` stays here because published Spaces import it from here.
"""

from typing import Any


def run(*args: Any, **kwargs: Any) -> None:
    """Serve the page until interrupted; see :func:`hcast_zoo.demo.app.run`."""
    from .app import run

    run(*args, **kwargs)
