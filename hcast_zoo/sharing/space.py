"""A Space: a repository on the Hub that runs the demo page for published weights."""

from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData

from .. import __version__
from ..common.extras import needs_extra
from ..weights.file import load_weights, packaged_weights
from ..weights.hub import parse_repository
from .model_card import plain
from .publish import File, Published, empty_folder, list_files, write_and_send

SDK = "gradio"
PYTHON = "3.11"
APP = '''"""A page to try {source}."""

from hcast_zoo import Predictor
from hcast_zoo.demo import run

run(Predictor({source!r}), host=None)
'''
README = """---
{data}
---
# {title}

Drop a picture to see its path in the taxonomy with probabilities, the segments that each level was read from, and how
both change when you adapt the model to another label. The weights are {where}; the page is that of `hcast-zoo demo`.
"""


def assemble_space(source: str, folder: str | Path, requirement: str | None = None) -> list[File]:
    """Write a whole Space into a folder: ``app.py``, ``requirements.txt``, and ``README.md`` with its settings.

    The Space gets the version of Gradio that is installed here, so try the page first.

    Args:
        source: The weights, by a name that a Space can load: one of
            :func:`hcast_zoo.weights.file.packaged_weights`, or ``org/name`` on the Hub.
        folder: New or empty folder.
        requirement: What pip installs in the Space; ``hcast-zoo[demo]`` from its index by default.

    Raises:
        ValueError: if the source is only on this machine, the weights have no taxonomy, the requirement is longer than
            one line, or the folder holds other files.
        WeightsError, HubError: if the weights cannot be loaded.
        ImportError: if Gradio is missing.
    """
    published = None if Path(source).exists() else parse_repository(source)
    if published is None and source not in packaged_weights():
        raise ValueError(
            "expected weights that a Space can load, org/name on the Hub or one of "
            f"{', '.join(packaged_weights())}, got {source!r}: publish them first"
        )

    requirement = requirement or f"hcast-zoo[demo]>={__version__}"
    if not requirement.isprintable():
        raise ValueError(f"expected a requirement in one line, got {requirement!r}")

    with needs_extra("demo", "Spaces"):
        version = metadata.version(SDK)

    weights = load_weights(source)
    if weights.taxonomy is None:
        raise ValueError(f"{source}: expected weights with a taxonomy, which names the labels")
    folder = empty_folder(folder)
    title = plain(weights.metadata.get("name") or source)
    data = SpaceCardData(
        title=title,
        sdk=SDK,
        sdk_version=version,
        python_version=PYTHON,
        app_file="app.py",
        license=plain(weights.metadata.get("license", "other")).lower(),
        models=[published[0]] if published else None,
        tags=["hcast", "hcast-zoo", "hierarchical-classification"],
        pinned=False,
    )
    where = f"[{published[0]}](https://huggingface.co/{published[0]})" if published else "those of the package"
    files = {
        "app.py": APP.format(source=source),
        "requirements.txt": requirement + "\n",
        "README.md": README.format(data=data.to_yaml(), title=title, where=where),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")

    return list_files(folder)


def publish_space(
    source: str,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
    requirement: str | None = None,
) -> Published:
    """Publish a Space in one commit: it changes as a whole, or not at all.

    If the weights are private, the Space needs an access token as its secret ``HF_TOKEN``.

    Args:
        source: See :func:`assemble_space`.
        repo: ``org/name`` of the Space; see :func:`hcast_zoo.sharing.publish.publish`, also for the next seven.
        private: Create it as a private Space.
        revision: Branch.
        tag: Tag for the commit.
        message: Commit message.
        token: Access token.
        dry_run: Write the files, but send nothing.
        output: New or empty folder to keep the files in.
        requirement: See :func:`assemble_space`.

    Raises:
        HubError: if the Hub refuses or cannot be reached; then no file of the Space has changed.
        ValueError, OSError, ImportError: as :func:`assemble_space` does.
    """
    return write_and_send(
        lambda folder: assemble_space(source, folder, requirement),
        repo,
        message or f"Publish a page to try {source} with hcast-zoo",
        dry_run=dry_run,
        output=output,
        private=private,
        revision=revision,
        tag=tag,
        token=token,
        space_sdk=SDK,
    )
