"""Export: a model as one graph, in ONNX or torch.export's format, with its config and taxonomy inside the file.

Segments are an input beside the images: SEEDS is OpenCV's, and runs in no graph. See docs/export.md for the limits.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..common.choices import EXPORT_FORMATS
from ..common.extras import needs_extra
from ..common.files import whole_file
from ..network import superpixels
from ..network.config import HCastConfig, check_clusters
from ..network.model import HCast
from ..taxonomy.tree import Taxonomy
from ..weights import file as weights

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


class Graph(nn.Module):
    """A model with tensors alone as inputs and outputs.

    Shape: images (B, C, H, W) float32 and segments (B, H, W) int64 -> (B, classes) logits per level, coarse to fine,
    and (B, N, M) assignments a pooling.
    """

    def __init__(self, model: HCast, num_clusters: tuple[int, ...] | None = None):
        super().__init__()
        self.model, self.num_clusters = model, num_clusters

    def forward(self, images: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images, segments, num_clusters=self.num_clusters)
        return (*output.level_logits, *output.assignments)


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
        source: Weights; see :func:`hcast_zoo.weights.file.load`.
        output: File to write.
        format: ``"onnx"`` or ``"pt2"``.
        batch_size: The only one that the graph takes; None for any.
        num_clusters: Other cluster counts than the weights' config's; the graph has them fixed.
        opset: ONNX opset; the installed torch's choice by default.
        check: Run the written file, by onnxruntime or torch, and compare all outputs with the model's.

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
    content = weights.load(source)
    if num_clusters is not None:
        num_clusters = check_clusters(num_clusters, content.config.num_superpixels)
        content.config = content.config.replace(num_clusters=num_clusters)

    if format == "onnx":
        _load_packages(check)
    graph = Graph(weights.build(content), num_clusters).eval()
    outputs = output_names(content.config, content.taxonomy)
    write, run = {"onnx": (_write_onnx, _run_onnx), "pt2": (_write_pt2, _run_pt2)}[format]
    with whole_file(output, suffix=f".{format}") as temporary:  # torch asks for its suffix
        opset = write(trace(graph, batch_size), temporary, outputs, metadata(content), opset)  # type: ignore[operator]
        difference = _compare(graph, content.config, temporary, run, batch_size) if check else None

    return Export(file=str(output), inputs=("images", "segments"), outputs=outputs, opset=opset, difference=difference)


def _load_packages(check: bool) -> None:
    """Raise ImportError before the work, if ONNX files cannot be written, or run to check them."""
    with needs_extra("export", "ONNX files"):
        import onnxscript  # noqa: F401

        if check:
            import onnxruntime  # noqa: F401


def trace(graph: Graph, batch_size: int | None = None) -> torch.export.ExportedProgram:
    """Return the program of ``torch.export``, for one batch size or for any."""
    images, segments = example(graph.model.config, batch_size or 2)  # torch would take a size of 1 for a constant
    dims = {} if batch_size else {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(graph, (images, segments), dynamic_shapes={"images": dims, "segments": dims})


def output_names(config: HCastConfig, taxonomy: Taxonomy | None) -> tuple[str, ...]:
    """Return ``logits_LEVEL`` a level, coarse to fine, then ``assignment_STAGE`` for the pooling after each stage."""
    levels = [str(number) for number in range(1, 1 + len(config.level_classes))]
    if taxonomy is not None:
        names = [re.sub(r"\W+", "_", name) for name in taxonomy.levels]
        levels = names if len(set(names)) == len(names) else levels
    poolings = range(1, 4 + config.last_pool)
    return (*(f"logits_{name}" for name in levels), *(f"assignment_{stage}" for stage in poolings))


def metadata(content: weights.Weights) -> dict[str, str]:
    """Return the texts that go with a graph: those of a safetensors file, ``config`` and ``taxonomy`` as JSON."""
    texts = {k: v for k, v in content.metadata.items() if k != "format"}
    parts = {"config": content.config, "taxonomy": content.taxonomy, "calibration": content.calibration}
    return texts | {k: json.dumps(v.to_dict(), ensure_ascii=False) for k, v in parts.items() if v is not None}


def example(config: HCastConfig, batch_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth random images (B, C, H, W), normalised, and their superpixels (B, H, W) int64."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    coarse = torch.randn(batch_size, config.in_chans, 7, 7, generator=generator)
    images = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    images = images + 0.1 * torch.randn(images.shape, generator=generator)
    segments = superpixels.segment_images(images, config)
    return images, segments.contiguous()


@torch.inference_mode()
def _compare(graph: Graph, config: HCastConfig, file: Path, run, batch_size: int | None) -> float:
    """Return the largest difference of the file's outputs from the model's, at one batch size or at 1 and 3."""
    largest = 0.0
    for size in (batch_size,) if batch_size else (1, 3):
        images, segments = example(config, size, seed=size)
        found = run(file, images, segments)
        for ours, theirs in zip(graph(images, segments), found, strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= TOLERANCE:  # NaN too
                raise ExportError(
                    f"the exported graph differs from the model by {difference:.2g}, expected at most "
                    f"{TOLERANCE:g}; --no-check writes it all the same"
                )
            largest = max(largest, difference)

    return largest


def _write_onnx(
    program: torch.export.ExportedProgram, file: Path, outputs: Sequence[str], texts: dict[str, str], opset: int | None
) -> int:
    onnx = torch.onnx.export(program, dynamo=True, opset_version=opset, output_names=list(outputs), verbose=False)
    assert onnx is not None  # with dynamo it never is
    onnx.model.metadata_props.update(texts)
    _name_batch(onnx.model.graph)
    onnx.save(file)
    return onnx.model.opset_imports[""]


def _name_batch(graph) -> None:
    """Call the free axis ``batch``; torch leaves it the symbol's number."""
    symbols = {value.shape[0] for value in graph.inputs if not isinstance(value.shape[0], int)}
    for value in (*graph.inputs, *graph.outputs):
        if value.shape[0] in symbols:
            value.shape[0] = "batch"


def _run_onnx(file: Path, images: Tensor, segments: Tensor) -> list[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"images": images.numpy(), "segments": segments.numpy()})
    return [torch.from_numpy(array) for array in found]


def _write_pt2(
    program: torch.export.ExportedProgram, file: Path, outputs: Sequence[str], texts: dict[str, str], opset: None
) -> None:
    torch.export.save(program, file, extra_files=texts | {"outputs": json.dumps(outputs)})


def _run_pt2(file: Path, images: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
    return torch.export.load(file).module()(images, segments)
