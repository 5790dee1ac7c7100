"""Weights: one safetensors file with the tensors, the config and the taxonomy; files that ship with the package."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from ..common.files import check_file, sha256, write_whole
from ..common.processes import check_device
from ..common.text import brief, clip, did_you_mean
from ..network.config import HCastConfig
from ..network.embedding import fit_position
from ..network.model import HCast
from ..taxonomy.calibration import Calibration
from ..taxonomy.tree import Taxonomy
from .errors import WeightsError as WeightsError
from .header import OWNER, header_path
from .header import packaged_name as packaged_name
from .header import packaged_weights as packaged_weights
from .header import read_metadata as read_metadata
from .header import shipped_path as shipped_path
from .hub import HubError, download_file, parse_repository
from .tags import TAGS, default_tag, fetch_tag

RUN_FILES = ("best.safetensors", "last.safetensors")  # of a training run; the first that exists is taken
MAX_CONFIG = 2**28  # largest config.json in bytes, with its taxonomy


@dataclasses.dataclass
class Weights:
    """What a weights file holds.

    Attributes:
        config: The architecture.
        taxonomy: The labels, or None for a model without names.
        state_dict: Tensors that load strictly into ``HCast(config)``.
        metadata: Free text about the weights: ``name``, ``license``, ``training`` and so on.
        calibration: Temperatures fitted on held-out data, or None; see ``hcast-zoo calibrate``.
    """

    config: HCastConfig
    taxonomy: Taxonomy | None
    state_dict: dict[str, Tensor]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    calibration: Calibration | None = None

    def digest(self) -> str:
        """Return the SHA-256 of the architecture and of every tensor, as 64 hexadecimal digits."""
        return tensors_digest(self.state_dict, json.dumps(self.config.to_dict(), sort_keys=True))


def tensors_digest(state_dict: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of a text and of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state_dict.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    return digest.hexdigest()


def save_weights(weights: Weights, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file; a crash leaves either the old file or the new one.

    Args:
        weights: What to write.
        path: Target file.
        dtype: Type to store floating-point tensors in, e.g. ``torch.float16``; unchanged if None.
    """
    tensors = {}
    for name, tensor in weights.state_dict.items():
        if dtype and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensors[name] = tensor.contiguous().cpu()

    metadata = {**weights.metadata, "format": "pt", "config": json.dumps(weights.config.to_dict())}
    if weights.taxonomy is not None:
        metadata["taxonomy"] = json.dumps(weights.taxonomy.to_dict(), ensure_ascii=False)
    if weights.calibration is not None:
        metadata["calibration"] = json.dumps(weights.calibration.to_dict(), ensure_ascii=False)

    write_whole(path, _sort_header(serialize(tensors, metadata)))


def _sort_header(file: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted, so that equal weights give equal bytes.

    The library writes metadata in random order, and the Hub would see every copy as a change.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[end:]


def load_weights(source: str | Path, tensors: bool = True) -> Weights:
    """Read weights.

    Args:
        source: A name from :func:`packaged_weights` or :data:`.tags.TAGS` (``hcast_small.emoji_art``,
            ``hcast_small.cast_in1k``, or ``hcast_small`` for its default), a ``.safetensors`` file, a folder that
            holds ``model.safetensors``, or a repository on the Hub (``org/name``, ``org/name@revision``).
        tensors: Also read the tensors; otherwise only the header.

    Raises:
        WeightsError: if the source is not found, damaged, a pickle, or lacks a valid config.
        HubError: if a repository cannot be read.
    """
    path = find_weights(source)
    repository = None if Path(source).exists() else parse_repository(str(source))
    if repository and "config" not in read_metadata(path):
        download_file(repository[0], "config.json", repository[1])  # beside the weights, where read_weights looks

    return read_weights(path, tensors)


def read_weights(path: str | Path, tensors: bool = True) -> Weights:
    """Read a weights file; without ``tensors``, only its header.

    Config and taxonomy may also be in a ``config.json`` beside it, where transformers' ``save_pretrained`` writes them.

    Raises:
        WeightsError: if the file is damaged, a pickle, or lacks a valid config.
    """
    metadata = read_metadata(path)
    state_dict = {}
    if tensors:
        try:
            with safe_open(path, framework="pt") as file:
                state_dict = {k: file.get_tensor(k) for k in file.keys()}
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            # torch raises the last three for types and shapes that it does not support
            raise WeightsError(f"{path}: a tensor cannot be read: {clip(error)}") from error

    if "config" not in metadata:
        metadata.update(_read_config_json(Path(path).with_name("config.json")))

    if "config" not in metadata:
        raise WeightsError(
            f"{path}: expected H-CAST weights with a config in their metadata; convert checkpoints from elsewhere "
            "with `hcast-zoo convert`"
        )

    try:
        config = HCastConfig.from_dict(json.loads(metadata.pop("config")))
        text = metadata.pop("taxonomy", None)
        taxonomy = Taxonomy.from_dict(json.loads(text)) if text is not None else None
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: invalid config or taxonomy in the metadata: {clip(error)}") from error

    if taxonomy is not None and taxonomy.level_classes != config.level_classes:
        raise WeightsError(
            f"{path}: expected a taxonomy and a config with the same classes per level, got "
            f"{taxonomy.level_classes} and {config.level_classes}"
        )

    try:
        calibration = _parse_calibration(metadata.pop("calibration", None), len(config.level_classes))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: invalid calibration in the metadata: {clip(error)}") from error

    return Weights(config=config, taxonomy=taxonomy, state_dict=state_dict, metadata=metadata, calibration=calibration)


def _read_config_json(path: Path) -> dict[str, str]:
    """Return the metadata entries for a ``config.json`` of transformers; none if it is not H-CAST's."""
    check_file(path, MAX_CONFIG, WeightsError)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}

    if not isinstance(data, dict) or data.get("model_type") != "hcast":
        return {}

    fields = {f.name for f in dataclasses.fields(HCastConfig)}
    entries = {"config": json.dumps({k: v for k, v in data.items() if k in fields})}
    for key in ("taxonomy", "calibration"):
        if data.get(key) is not None:
            entries[key] = json.dumps(data[key])

    return entries


def build_model(weights: Weights, device: str | torch.device = "cpu") -> HCast:
    """Return a model in eval mode, float32, with these weights.

    Raises:
        WeightsError: if the tensors do not fit the config; the message names some of them.
        ValueError: if there is no such device.
    """
    model = check_weights(weights)
    # A copy, because tensors of a memory-mapped file are not aligned: kernels are slower and the last bits differ.
    state = {}
    for name, tensor in weights.state_dict.items():
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.to(dtype, copy=True)

    model.load_state_dict(state, assign=True)
    return model.to(check_device(device)).eval()


def check_weights(weights: Weights) -> HCast:
    """Check that the tensors fit the config, before memory for a model of that config is allocated.

    Returns:
        The model of the config, on the meta device. For weights without heads, such as self-supervised ones, the model
        has no heads either, and gives no logits.

    Raises:
        WeightsError: if the tensors do not fit the config; the message names some of them.
    """
    model = HCast(weights.config, device="meta")
    if is_headless(weights):
        model.heads = torch.nn.ModuleList()

    expected, given = model.state_dict(), weights.state_dict
    problems = [f"no {k}" for k in expected if k not in given]
    problems += [f"unknown {clip(k)}" for k in given if k not in expected]

    for key, model_tensor in expected.items():
        tensor = given.get(key)
        if tensor is None:
            continue
        if tensor.shape != model_tensor.shape:
            problems.append(f"{key} is {brief(tuple(tensor.shape))}, not {tuple(model_tensor.shape)}")
        if tensor.is_floating_point() != model_tensor.is_floating_point():
            problems.append(f"{key} is {tensor.dtype}, not a kind of {model_tensor.dtype}")

    if problems:
        raise WeightsError(f"weights of another model, {len(problems)} differences: {'; '.join(problems[:5])}")

    return model


def is_headless(weights: Weights) -> bool:
    """Return whether weights are of a network without heads, which gives features or starts a training."""
    return weights.metadata.get("heads") == "none" and not any(k.startswith("heads.") for k in weights.state_dict)


def fit_state_dict(state_dict: dict[str, Tensor], model: HCast, official: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a state dict that can start a model of another image size or other classes.

    The position embedding is resampled; heads of other shapes are left out. Load the result with ``strict=False``.

    Args:
        state_dict: Tensors to start from.
        model: The model to start.
        official: Follow the authors' fine-tuning: resample without antialiasing, and keep the finest head if it has
            the right number of classes (docs/official_differences.md, 41).

    Raises:
        WeightsError: if anything but a head has another shape or is missing.
    """
    expected, state = model.state_dict(), dict(state_dict)
    fit_position(state, model.config.grid_size, antialias=not official)
    if official:
        state = _move_finest_head(state, len(model.config.level_classes) - 1)

    def fits(key: str) -> bool:
        return key in state and key in expected and state[key].shape == expected[key].shape

    differing = [key for key in expected if not key.startswith("heads.") and not fits(key)]
    if differing:
        raise WeightsError(
            f"cannot start from weights of another architecture: {len(differing)} tensors differ, such as "
            f"{', '.join(differing[:3])}"
        )

    return {key: value for key, value in state.items() if fits(key) or not key.startswith("heads.")}


def _move_finest_head(state: dict[str, Tensor], level: int) -> dict[str, Tensor]:
    """Renumber the finest head for another number of levels, since the official code always calls it ``head``."""
    last = max((int(key.split(".")[1]) for key in state if key.startswith("heads.")), default=level)
    if last == level:
        return state

    moved = {}
    for key, value in state.items():
        if key.startswith(f"heads.{last}."):
            moved[key.replace(f"heads.{last}.", f"heads.{level}.")] = value
        elif not key.startswith("heads."):
            moved[key] = value

    return moved


def find_weights(source: str | Path) -> Path:
    """Return the file that a name, a file, a folder or a repository on the Hub stands for.

    The checksum of a file in the package's index is verified. A file or folder on disk takes precedence over the Hub.

    Raises:
        WeightsError: if there is no such source, or a packaged file is damaged.
        HubError: if a file cannot be downloaded.
    """
    index = packaged_weights()
    name = str(source)
    if packaged := packaged_name(source):
        return _find_packaged(packaged, index[packaged])

    published = name if name in TAGS else default_tag(name)
    path = Path(source)
    if published and not path.exists():
        return fetch_tag(published, _write_published)
    if path.is_dir():
        return _find_in_folder(path)
    if path.exists():
        return path

    if repository := parse_repository(str(source)):
        return download_file(repository[0], "model.safetensors", repository[1])
    names = [*index, *TAGS]
    raise WeightsError(
        f"no weights {name!r}{did_you_mean(name, names) or ':'} expected a file, a folder with "
        f"model.safetensors, org/name on the Hub, or one of {', '.join(names)}"
    )


def _find_in_folder(folder: Path) -> Path:
    for name in ("model.safetensors", *RUN_FILES):
        if (folder / name).exists():
            return folder / name

    hint = ". The run has not validated yet" if (folder / "run.json").exists() else ""
    raise WeightsError(
        f"{folder}: expected a folder with model.safetensors, or a training run's folder with {RUN_FILES[0]}; it has "
        f"neither{hint}"
    )


def _find_packaged(name: str, entry: dict) -> Path:
    """Return the file of packaged weights: from the package, or from the Hub if the wheel came without it."""
    path = shipped_path(entry)
    if path.exists() or not header_path(entry).exists():
        if not path.exists() or sha256(path) != entry["sha256"]:
            raise WeightsError(f"{path} is missing or damaged: reinstall hcast-zoo")
        return path

    repository = f"{OWNER}/{name}"
    try:
        path = download_file(repository, "model.safetensors")
    except HubError as error:
        raise HubError(
            f"{name} is not in this installation, which has only the default weights: {error}. With a connection, "
            f"`hcast-zoo info {name}` fetches it once; a checkout of the repository has it, and "
            f"`hcast-zoo predict --model FILE` takes {entry['file']} from there"
        ) from error

    if sha256(path) != entry["sha256"]:
        raise WeightsError(
            f"{name}: model.safetensors of {repository} has another SHA-256 than this version expects, "
            f"{entry['sha256']}: remove {path} and try again, or upgrade hcast-zoo"
        )

    return path


def checksum(source: str | Path) -> str:
    """Return the SHA-256 of a weights file; see :func:`find_weights`."""
    return sha256(find_weights(source))


def _write_published(
    path: Path, config: HCastConfig, taxonomy: Taxonomy | None, state: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    save_weights(Weights(config=config, taxonomy=taxonomy, state_dict=state, metadata=metadata), path)


def load_model(source: str | Path, device: str | torch.device = "cpu") -> HCast:
    """Return a model in eval mode with the weights of a source; see :func:`load_weights`."""
    return build_model(load_weights(source), device)


def _parse_calibration(text: str | None, num_levels: int) -> Calibration | None:
    if text is None:
        return None

    calibration = Calibration.from_dict(json.loads(text))
    if len(calibration.temperatures) != num_levels:
        raise ValueError(f"expected temperatures of {num_levels} levels, got {len(calibration.temperatures)}")
    return calibration
