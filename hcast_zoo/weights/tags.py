"""Names of weights that others publish: where the file is, how it is verified, converted and kept.

``hcast_small.cast_in1k`` and its kin are files of CAST's authors on the Hub. The first use of a name downloads the
pickle, reads it without running code, converts it and keeps the safetensors file; later uses need no network.

A published file has no checksum that we know of. So the SHA-256 of the first download is printed and pinned in the
cache, and a file with another one is refused. :func:`pin` sets it beforehand.
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
        WeightsError: if the published file is not the pinned one, or is not the checkpoint it should be.
        HubError: if it cannot be downloaded.
    """
    tag = TAGS[name]
    path = cache_folder() / f"{name}.safetensors"
    expected = pinned(name)
    if path.exists():
        found = _source_of(path)
        if found and expected in (None, found):
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
            f"{name}: {tag.address} has another SHA-256 than the pinned one: expected {expected}, got {digest}. "
            f"The published file changed. To accept it: hcast-zoo info {name} --pin {digest}"
        )

    _convert(tag, source, digest, path, write)
    if expected is None:
        pin(name, digest)
        print(
            f"{name}: SHA-256 {digest}, not verified against a published one; pinned in {_pins()}, another file will "
            "be refused",
            file=sys.stderr,
        )

    return path


def _convert(tag: Tag, source: Path, digest: str, path: Path, write: Callable) -> None:
    """Write the converted file; nothing is written where the checkpoint is not the one it should be."""
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
        **({} if tag.classes else {"heads": "none"}),
    }
    write(path, config, _labels(config) if tag.classes else None, state, metadata)


def _labels(config: HCastConfig) -> Taxonomy | None:
    """Return the names of the leaves of ImageNet's WordNet tree as one level, or None for a head of other classes."""
    if config.level_classes != (1000,):
        return None
    # The tree is data of a later room, which this one must not import. Its objects are in the official head's order.
    tree = json.loads(IMAGENET_TREE.read_text(encoding="utf-8"))
    leaf = tree["levels"][-1]
    return Taxonomy((leaf,), (tuple(tree["names"][leaf]),), (), tree["dataset"])


def _source_of(path: Path) -> str | None:
    """Return the SHA-256 of the file that a converted one was made of; None where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256")
    except (SafetensorError, OSError):
        return None  # made again


def describe_tag(name: str) -> dict:
    """Return what ``hcast-zoo info --list`` tells of a tag."""
    tag, pin_of_user = TAGS[name], pinned(name)
    cached = cache_folder() / f"{name}.safetensors"
    return {
        "name": name,
        "data": tag.data,
        "classes": tag.classes,
        "parameters": tag.parameters,
        "license": tag.license,
        "where": tag.address,
        "verified": "published SHA-256" if tag.sha256 else "pinned" if pin_of_user else "no: SHA-256 not known yet",
        "sha256": pin_of_user,
        "cached": str(cached) if cached.exists() else None,
        "description": f"{tag.data}: {f'{tag.classes} classes' if tag.classes else 'no head'}; {tag.reported}",
    }


def default_tag(variant: str) -> str | None:
    """Return the tag that a variant's bare name stands for where the package has no weights of it, or None."""
    return next((name for name in TAGS if name.partition(".")[0] == variant), None)


def cache_folder() -> Path:
    """Return the folder of converted files and pins, in the Hub's cache of assets."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path("hcast-zoo", "weights", assets_dir=constants.HF_ASSETS_CACHE)


def pinned(name: str) -> str | None:
    """Return the SHA-256 that a tag's file must have; None if nobody pinned it yet."""
    return TAGS[name].sha256 or _read_pins().get(name)


def pin(name: str, digest: str) -> None:
    """Pin the SHA-256 of a tag's file; a converted file of another one is made again.

    Raises:
        ValueError: if it is no SHA-256, or the package knows another one.
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
