"""Export: a model as one graph, in ONNX or torch.export's format, with its config and taxonomy inside the file.

See docs/export.md for the limits.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.choices import EXPORT_FORMATS
from ..common.files import whole_file
from ..inference.engines import onnx_session
from ..inference.graph import Graph, example, load_packages, metadata, output_names, trace, write_onnx
from ..network.config import HCastConfig, check_clusters
from ..weights.file import build_model, load_weights

TOLERANCE = 1e-4  # largest difference of an output from the model's


class ExportError(ValueError):
    """The exported file does not compute what the model does."""


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        file: The file.
        inputs: Names, in order.
        outputs: Names, in order: logits coarse to fine, then assignments fine to coarse segments.
        opset: ONNX opset, or None for another format.
        difference: Largest absolute difference of an output from the model's, or None if it was not checked.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int | None
    difference: float | None


def export(
    source: str | Path,
    output: str | Path,
    format: str = "onnx",
    *,
    batch_size: int | None = None,
    num_clusters: tuple[int, ...] | None = None,
    opset: int | None = None,
    check: bool = True,
) -> Export:
    """Write a model as one graph; a failure leaves no file, or the old one.

    Args:
        source: Weights; see :func:`hcast_zoo.weights.file.load_weights`.
        output: File to write.
        format: ``"onnx"`` or ``"pt2"``.
        batch_size: Fixed batch size of the graph; None for any.
        num_clusters: Cluster counts to use in place of those in the config; they are fixed in the graph.
        opset: ONNX opset; the installed torch's default if None.
        check: Run the written file with onnxruntime or torch, and compare all outputs with the model's.

    Raises:
        ExportError: if an output differs from the model's by more than 1e-4.
        ImportError: if the packages of the extra are missing.
        ValueError: if an argument is out of range.
    """
    if format not in EXPORT_FORMATS:
        raise ValueError(f"unknown format {format!r}: expected one of {', '.join(EXPORT_FORMATS)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    if opset is not None and format != "onnx":
        raise ValueError(f"opset: only ONNX has one, not {format}")

    weights = load_weights(source)
    if num_clusters is not None:
        num_clusters = check_clusters(num_clusters, weights.config.num_superpixels)
        weights.config = weights.config.replace(num_clusters=num_clusters)

    if format == "onnx":
        load_packages(check)
    graph = Graph(build_model(weights), num_clusters).eval()
    outputs = output_names(weights.config, weights.taxonomy)
    write, run = {"onnx": (write_onnx, _run_onnx), "pt2": (_write_pt2, _run_pt2)}[format]
    with whole_file(output, suffix=f".{format}") as temporary:  # torch checks the suffix
        opset = write(trace(graph, batch_size), temporary, outputs, metadata(weights), opset)  # type: ignore[operator]
        difference = _compare(graph, weights.config, temporary, run, batch_size) if check else None

    return Export(file=str(output), inputs=("images", "segments"), outputs=outputs, opset=opset, difference=difference)


@torch.inference_mode()
def _compare(graph: Graph, config: HCastConfig, file: Path, run, batch_size: int | None) -> float:
    """Return the largest difference of the file's outputs from the model's, at the fixed batch size or at 1 and 3."""
    largest = 0.0
    for size in (batch_size,) if batch_size else (1, 3):
        images, segments = example(config, size, seed=size)
        exported = run(file, images, segments)

        for ours, theirs in zip(graph(images, segments), exported, strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= TOLERANCE:  # NaN too
                raise ExportError(
                    f"the exported graph differs from the model by {difference:.2g}, expected at most "
                    f"{TOLERANCE:g}; --no-check writes it anyway"
                )
            largest = max(largest, difference)

    return largest


def _run_onnx(file: Path, images: Tensor, segments: Tensor) -> list[Tensor]:
    arrays = onnx_session(file).run(None, {"images": images.numpy(), "segments": segments.numpy()})
    return [torch.from_numpy(array) for array in arrays]


def _write_pt2(
    program: torch.export.ExportedProgram, file: Path, outputs: Sequence[str], texts: dict[str, str], opset: None
) -> None:
    torch.export.save(program, file, extra_files=texts | {"outputs": json.dumps(outputs)})


def _run_pt2(file: Path, images: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
    return torch.export.load(file).module()(images, segments)
