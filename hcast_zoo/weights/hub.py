"""Read a file of a model repository on the Hub, with errors that say what to do."""

import re
from pathlib import Path

_REPOSITORY = re.compile(r"(?:hf-hub:)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")


class HubError(OSError):
    """A repository on the Hub cannot be read; the message says why and what to do."""


def parse_repository(source: str) -> tuple[str, str | None] | None:
    """Split ``org/name``, ``org/name@revision`` or ``hf-hub:org/name`` into repository and revision.

    Returns:
        None if the text does not have that form, or names a ``.safetensors`` file.
    """
    match = _REPOSITORY.fullmatch(source)
    return (match["repo"], match["revision"]) if match and not source.endswith(".safetensors") else None


def download_file(repo: str, filename: str, revision: str | None = None) -> Path:
    """Return the path of a repository's file in the local cache; download the file if it is not there yet.

    The next call resumes an interrupted download. The file appears in the cache only once it is complete and has the
    size that the Hub announced.

    Args:
        repo: ``org/name``.
        filename: Name in the repository.
        revision: Branch, tag or commit; the main branch by default.

    Raises:
        HubError: if there is no such repository, revision or file, no connection, or the download is incomplete.
    """
    # Imported here because it takes half a second, and packaged weights do not need it.
    from huggingface_hub import constants, errors, hf_hub_download

    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except errors.GatedRepoError as error:
        raise HubError(
            f"{where} is gated: ask for access on {constants.ENDPOINT}/{repo}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"no repository {repo!r} on {constants.ENDPOINT}: check the name; if it is private, `hf auth login` first"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repo} has no revision {revision!r}: expected one of its branches, tags or commits") from error
    except errors.LocalEntryNotFoundError as error:  # offline, or no connection; a kind of EntryNotFoundError
        if constants.is_offline_mode():
            raise HubError(
                f"{filename} of {where} is not in the cache, and HF_HUB_OFFLINE forbids downloading it: unset "
                "it once, or give a folder"
            ) from error

        raise HubError(
            f"cannot reach {constants.ENDPOINT} and {filename} of {where} is not in the cache: check the "
            f"connection and try again ({error.__cause__ or error})"
        ) from error
    except errors.EntryNotFoundError as error:
        hint = ": it holds no H-CAST weights published by hcast-zoo" if filename == "model.safetensors" else ""
        raise HubError(f"{where} has no {filename}{hint}") from error
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise HubError(f"download of {filename} from {where} failed: {error}; try again") from error
