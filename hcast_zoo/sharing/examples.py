"""Example pictures of weights, from their own card."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ..data.pictures import read_picture
from ..weights.file import packaged_name
from ..weights.hub import download_file, parse_repository
from .model_card import EVALUATIONS, read_evaluations

SUFFIXES = (".jpg", ".jpeg", ".png")
MOST = 12  # examples of one card


def card_examples(source: str | Path) -> tuple[list[Path], str]:
    """Return the pictures of answers beside the card of weights, and their credit.

    A card without pictures, or one that cannot be read, gives none: a page works without examples.

    Args:
        source: A packaged name, a folder that :func:`.publish.assemble` wrote or its weights file, or a repository on
            the Hub.
    """
    listing, fetch = _beside(source)
    try:
        for evaluation in read_evaluations(fetch(listing)):
            files = [fetch(name) for name in evaluation.examples[:MOST] if name.lower().endswith(SUFFIXES)]
            for file in files:
                read_picture(file)
            if files:
                return files, evaluation.credit
    except (ValueError, OSError):  # PictureError and HubError among them
        pass
    return [], ""


def _beside(source: str | Path) -> tuple[str, Callable[[str], Path]]:
    """Return the name of the file with the evaluations of weights, and what returns a file beside their card."""
    if name := packaged_name(source):
        cards = Path(str(resources.files("hcast_zoo.model_cards")))
        return f"{name}.json", cards.joinpath

    path = Path(source)
    repository = None if path.exists() else parse_repository(str(source))
    if repository is None:
        return EVALUATIONS, (path if path.is_dir() else path.parent).joinpath
    return EVALUATIONS, lambda name: download_file(repository[0], name, repository[1])
