"""Publishing: one repository on the Hub that the core, timm and transformers load, with or without hcast-zoo."""

import dataclasses
import importlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import validate_repo_id

from ..common.extras import needs_extra
from ..common.files import sha256
from ..segments.drawing import segment_strip
from ..weights.file import build_model, find_weights, load_weights, packaged_weights, save_weights
from ..weights.hub import HubError
from .model_card import EVALUATIONS, Evaluation, packaged_evaluations, render_card, write_evaluations

PREVIEW = "preview.png"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a repository: its name, size in bytes, and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Published:
    """The result of publishing: the files of the repository, and the URL of the commit (None after a dry run)."""

    files: tuple[File, ...]
    commit: str | None = None


def assemble(
    source: str | Path,
    folder: str | Path,
    repo: str | None = None,
    evaluations: Sequence[Evaluation] | None = None,
    preview: str | Path | None = None,
    dtype: torch.dtype | None = None,
    *,
    pictures: str | Path | None = None,
    facts: Mapping[str, str] | None = None,
) -> list[File]:
    """Write a whole repository into a folder; the core, timm and transformers load it like a repository on the Hub.

    It holds ``model.safetensors`` (the tensors, with config and taxonomy in the metadata, as the core reads it), one
    ``config.json`` for timm and transformers, ``preprocessor_config.json``, ``taxonomy.json``, the code that
    transformers runs where hcast-zoo is not installed, the model card ``README.md`` with its pictures, the evaluations
    that it is made from, and a preview picture.

    Args:
        source: Weights; see :func:`hcast_zoo.weights.file.load_weights`.
        folder: New or empty folder.
        repo: ``org/name`` that the card's examples load.
        evaluations: Measured metrics for the card; by default those that come with packaged weights.
        preview: Picture whose segmentations the card shows.
        dtype: Type to store floating-point tensors in; unchanged if None.
        pictures: Folder with the pictures of answers that evaluations name; by default that of the package.
        facts: Metadata that replaces the weights' own, such as ``name`` and ``license``.

    Raises:
        WeightsError: if the source holds no usable weights.
        PictureError: if the preview picture cannot be read.
        ValueError: if the folder holds other files.
        ImportError: if transformers is missing.
    """
    weights = load_weights(source)
    weights.metadata.update(facts or {})
    folder = empty_folder(folder)
    if evaluations is None:
        evaluations = packaged_evaluations(str(source)) if str(source) in packaged_weights() else []
    picture_folder = resources.files("hcast_zoo.model_cards") if pictures is None else Path(pictures)
    for name in itertools.chain.from_iterable(evaluation.beside for evaluation in evaluations):
        (folder / name).write_bytes((picture_folder / name).read_bytes())
    if evaluations:
        write_evaluations(folder / EVALUATIONS, evaluations)

    if str(source) in packaged_weights() and not facts and dtype is None:
        shutil.copyfile(find_weights(source), folder / "model.safetensors")  # keeps the checksum of the index
    else:
        save_weights(weights, folder / "model.safetensors", dtype)
    if weights.taxonomy is not None:
        weights.taxonomy.save(folder / "taxonomy.json")
    if preview is not None:
        segment_strip(build_model(weights), preview).save(folder / PREVIEW)

    text = render_card(weights, evaluations, Path(source).stem, repo, PREVIEW if preview is not None else None)
    (folder / "README.md").write_text(text, encoding="utf-8")

    config = _integration("transformers").write_repository(weights, folder)
    config.update(_integration("timm").hub_config(weights))
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    return list_files(folder)


def empty_folder(folder: str | Path) -> Path:
    """Make a folder if it does not exist, check that it is empty, and return it.

    Raises:
        ValueError: if it holds files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: expected an empty folder to write a repository into")
    return folder


def list_files(folder: Path) -> list[File]:
    """Return the files in a folder, by name."""
    return [File(path.name, path.stat().st_size, sha256(path)) for path in sorted(folder.iterdir())]


def publish(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    output: str | Path | None = None,
    evaluations: Sequence[Evaluation] | None = None,
    preview: str | Path | None = None,
    pictures: str | Path | None = None,
    facts: Mapping[str, str] | None = None,
) -> Published:
    """Publish weights in one commit: the repository changes as a whole, or not at all.

    Files that the Hub already has are not sent again, and if nothing differs there is no new commit. Code files of an
    earlier version that are no longer part of the repository are removed.

    Args:
        source: Weights; see :func:`hcast_zoo.weights.file.load_weights`.
        repo: ``org/name``; created if it does not exist.
        private: Create it as a private repository; an existing one keeps its visibility.
        revision: Branch to commit to, created if it does not exist; the main branch by default.
        tag: Tag for the commit, such as ``v1.0``.
        message: Commit message.
        token: Access token; that of ``hf auth login`` by default.
        dry_run: Write the files, but send nothing.
        output: New or empty folder to keep the files in; a temporary one by default.
        evaluations: See :func:`assemble`.
        preview: See :func:`assemble`.
        pictures: See :func:`assemble`.
        facts: See :func:`assemble`.

    Raises:
        HubError: if the Hub refuses or cannot be reached; then no file of the repository has changed.
        ValueError, OSError, ImportError: as :func:`assemble` does.
    """

    def write(folder: Path) -> list[File]:
        return assemble(source, folder, repo, evaluations, preview, pictures=pictures, facts=facts)

    return write_and_send(
        write,
        repo,
        message or f"Publish {Path(source).name} with hcast-zoo",
        dry_run=dry_run,
        output=output,
        private=private,
        revision=revision,
        tag=tag,
        token=token,
        delete_patterns="*.py",
    )


def write_and_send(
    write: Callable[[Path], list[File]],
    repo: str,
    message: str,
    *,
    dry_run: bool,
    output: str | Path | None,
    **options: Any,
) -> Published:
    """Write the files of a repository, and send them unless it is a dry run.

    Args:
        write: Writes the files into a folder, and lists them.
        repo: ``org/name``.
        message: Commit message.
        dry_run: Send nothing.
        output: New or empty folder to keep the files in; a temporary one if None.
        options: Options of :func:`send`.
    """
    check_repo(repo)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary)
        files = tuple(write(folder))
        return Published(files) if dry_run else Published(files, send(folder, repo, message, **options))


def send(
    folder: Path,
    repo: str,
    message: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    delete_patterns: str | None = None,
    space_sdk: str | None = None,
) -> str:
    """Commit a folder to a repository, which is created if it does not exist; return the URL of the commit.

    Args:
        folder: Its files go to the top of the repository.
        repo: ``org/name``.
        message: Commit message.
        private: See :func:`publish`, also for the next three.
        revision: Branch.
        tag: Tag for the commit.
        token: Access token.
        delete_patterns: Files to remove in the same commit, if they are not in the folder.
        space_sdk: SDK of a Space; None for a model repository.

    Raises:
        HubError: if the Hub refuses or cannot be reached; then no file of the repository has changed.
    """
    api, kind = HfApi(token=token), "space" if space_sdk else "model"
    try:
        api.create_repo(repo, repo_type=kind, space_sdk=space_sdk, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, repo_type=kind, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=delete_patterns,
        )
        if tag is not None and not _is_tagged(api, repo, kind, tag, commit.oid):
            api.create_tag(repo, repo_type=kind, tag=tag, revision=commit.oid)
    except HubError:
        raise
    except (errors.HTTPError, OSError) as error:
        raise HubError(
            f"publishing to {repo} failed: {error}. Run the same command again; it sends only what is missing"
        ) from error

    return str(commit.commit_url)


def _is_tagged(api: HfApi, repo: str, kind: str, tag: str, commit: str) -> bool:
    """Tell whether a commit already has the tag, as it does when the reply to an earlier attempt was lost.

    Raises:
        HubError: if the tag points to another commit.
    """
    targets = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo, repo_type=kind).tags}
    if targets.get(tag, commit) != commit:
        raise HubError(
            f"{repo}: the files were sent, but tag {tag!r} points to another commit, {targets[tag]}: choose "
            "another tag, or delete that one first"
        )
    return tag in targets


def check_repo(repo: str) -> None:
    """Raise HubError unless the text is a valid repository name, ``org/name``."""
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise HubError(f"expected a repository org/name, got {repo!r}: {error}") from error
    if repo.count("/") != 1:
        raise HubError(f"expected a repository org/name, such as your-name/hcast-birds, got {repo!r}")


def _integration(name: str):
    """Return the module of an integration that writes its files: the only place where the core imports one, by name."""
    with needs_extra(name, "published repositories", package=name):
        return importlib.import_module(f"hcast_zoo.integrations.{name}.repository")
