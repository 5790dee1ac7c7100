"""Weights that others publish: download, verify, convert and cache them by name.

Names such as ``hcast_small.cast_in1k`` stand for files of CAST's authors on the Hub. The first use of a name downloads
the pickle, reads it without running code, converts it and caches the safetensors file; later uses need no network.

We know of no published checksums. The SHA-256 of the first download is therefore printed and pinned in the cache, and
a file with another SHA-256 is refused. :func:`pin` sets it beforehand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..common.files import sha256, write_whole
from ..common.text import clip
from ..network.config import HCastConfig
from ..taxonomy.tree import Taxonomy
from .errors import WeightsError
from .hub import HubError, download_file
from .official import convert_official, read_checkpoint
from .published import TAGS, Tag

IMAGENET_TREE = Path(__file__).parents[1] / "paper" / "label_trees" / "imagenet.json"


def fetch_tag(name: str, write: Callable) -> Path:
    """Return the converted file of a tag, from the cache or by downloading and converting it.

    Args:
        name: One of ``TAGS``.
        write: Called with path, config, taxonomy, state dict and metadata to write the converted file.

    Raises:
        WeightsError: if the published file is not the pinned one, or not the expected checkpoint.
        HubError: if it cannot be downloaded.
    """
    tag = TAGS[name]
    path = cache_folder() / f"{name}.safetensors"
    expected = pinned(name)
    if path.exists():
        source_digest = _source_digest(path)
        if source_digest and expected in (None, source_digest):
            return path

    print(f"{name}: {tag.address}; licence: {tag.license}", file=sys.stderr)
    try:
        source = download_file(tag.repo, tag.path)
    except HubError as error:
        raise HubError(
            f"{name}: {error}. A copy of the file works too: hcast-zoo convert FILE {name}.safetensors"
        ) from error

    digest = sha256(source)
    if expected is not None and digest != expected:
        raise WeightsError(
            f"{name}: {tag.address} does not have the pinned SHA-256: expected {expected}, got {digest}. "
            f"The published file changed. To accept it: hcast-zoo info {name} --pin {digest}"
        )

    _convert(tag, source, digest, path, write)
    if expected is None:
        pin(name, digest)
        print(
            f"{name}: SHA-256 {digest}; there is no published one to compare it with. It is pinned in {_pins()}, so a "
            "file with another one will be refused",
            file=sys.stderr,
        )

    return path


def _convert(tag: Tag, source: Path, digest: str, path: Path, write: Callable) -> None:
    """Convert a checkpoint and write it; if it is not the expected one, raise WeightsError and write nothing."""
    try:
        config, state = convert_official(read_checkpoint(str(source)))
    except ValueError as error:
        raise WeightsError(f"{tag.name}: {tag.address} (SHA-256 {digest}): {clip(error, 600)}") from error

    headless = not any(key.startswith("heads.") for key in state)
    if headless != (tag.classes == 0):
        expected = f"a head of {tag.classes} classes, got none" if headless else "no classifier head, got one"
        raise WeightsError(f"{tag.name}: {tag.address}: expected {expected}")

    expected_config = HCastConfig.from_variant(tag.variant)
    for field in ("embed_dim", "depths", "image_size"):
        if getattr(config, field) != getattr(expected_config, field):
            print(
                f"{tag.name}: warning: {field} of the published file is {getattr(config, field)}, "
                f"that of {tag.variant} {getattr(expected_config, field)}",
                file=sys.stderr,
            )

    metadata = {
        "name": tag.name,
        "license": tag.license,
        "training": f"{tag.data}, by CAST's authors; they report {tag.reported}",
        "source": tag.address,
        "source_sha256": digest,
    }
    if not tag.classes:
        metadata["heads"] = "none"

    write(path, config, _labels(config) if tag.classes else None, state, metadata)


def _labels(config: HCastConfig) -> Taxonomy | None:
    """Return ImageNet's classes as a taxonomy of one level, or None for a head with other classes."""
    if config.level_classes != (1000,):
        return None

    # Read as data, because this folder must not import `paper`. The leaves are in the order of the official head.
    tree = json.loads(IMAGENET_TREE.read_text(encoding="utf-8"))
    leaf = tree["levels"][-1]
    return Taxonomy(levels=(leaf,), names=(tuple(tree["names"][leaf]),), parents=(), name=tree["dataset"])


def _source_digest(path: Path) -> str | None:
    """Return the SHA-256 of the file that a converted one was made from; None if the converted one is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256")
    except (SafetensorError, OSError):
        return None  # the file is then converted again


def describe_tag(name: str) -> dict:
    """Return what ``hcast-zoo info --list`` shows for a tag."""
    tag, digest = TAGS[name], pinned(name)
    cached = cache_folder() / f"{name}.safetensors"
    head = f"{tag.classes} classes" if tag.classes else "no head"

    verified = "no: SHA-256 not known yet"
    if tag.sha256:
        verified = "published SHA-256"
    elif digest:
        verified = "pinned"

    return {
        "name": name,
        "data": tag.data,
        "classes": tag.classes,
        "parameters": tag.parameters,
        "license": tag.license,
        "where": tag.address,
        "verified": verified,
        "sha256": digest,
        "cached": str(cached) if cached.exists() else None,
        "description": f"{tag.data}: {head}; {tag.reported}",
    }


def default_tag(variant: str) -> str | None:
    """Return the tag that a bare variant name stands for if the package has no weights for it, or None."""
    return next((name for name in TAGS if name.partition(".")[0] == variant), None)


def cache_folder() -> Path:
    """Return the folder of converted files and pins, in huggingface_hub's assets cache."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path("hcast-zoo", "weights", assets_dir=constants.HF_ASSETS_CACHE)


def pinned(name: str) -> str | None:
    """Return the SHA-256 that a tag's file must have; None if none is pinned yet."""
    return TAGS[name].sha256 or _read_pins().get(name)


def pin(name: str, digest: str) -> None:
    """Pin the SHA-256 of a tag's file; a file converted from another one is replaced on its next use.

    Raises:
        ValueError: if it is not a SHA-256, or the package pins another one.
    """
    if name not in TAGS:
        raise ValueError(f"no published weights {clip(name)!r}: expected one of {', '.join(TAGS)}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"expected a SHA-256 of 64 hexadecimal digits, got {clip(digest)!r}")
    if TAGS[name].sha256 not in (None, digest):
        raise ValueError(f"{name}: the package pins {TAGS[name].sha256}")

    write_whole(_pins(), json.dumps({**_read_pins(), name: digest}, indent=1))


def _pins() -> Path:
    return cache_folder() / "pins.json"


def _read_pins() -> dict[str, str]:
    try:
        pins = json.loads(_pins().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{_pins()}: expected JSON of tag names and SHA-256s: {error}") from error

    if not isinstance(pins, dict):
        raise ValueError(f"{_pins()}: expected a JSON object of tag names and SHA-256s")
    return pins
