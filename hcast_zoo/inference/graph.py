"""A model as one graph of tensors, traced by torch and written as ONNX; for export, and for other engines.

Segments are an input beside the images, because SEEDS is OpenCV's and cannot run in a graph.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.extras import needs_extra
from ..network.config import HCastConfig
from ..network.model import HCast
from ..network.superpixels import segment_images
from ..taxonomy.tree import Taxonomy
from ..weights.file import Weights


class Graph(nn.Module):
    """A model with only tensors as inputs and outputs.

    Shape: images (B, C, H, W) float32 and segments (B, H, W) int64 -> (B, classes) logits per level, coarse to fine,
    and, on request, (B, N, M) assignments per pooling.
    """

    def __init__(self, model: HCast, num_clusters: tuple[int, ...] | None = None, assignments: bool = True):
        super().__init__()
        self.model, self.num_clusters, self.assignments = model, num_clusters, assignments

    def forward(self, images: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
        output = self.model(images, segments, num_clusters=self.num_clusters)
        return (*output.level_logits, *output.assignments) if self.assignments else tuple(output.level_logits)


def load_packages(check: bool) -> None:
    """Raise ImportError early if packages to write ONNX files, or to run them for a check, are missing."""
    with needs_extra("export", "ONNX files"):
        import onnxscript  # noqa: F401

        if check:
            import onnxruntime  # noqa: F401


def trace(graph: Graph, batch_size: int | None = None) -> torch.export.ExportedProgram:
    """Return the program of ``torch.export``, for one batch size, or for any by default."""
    images, segments = example(graph.model.config, batch_size or 2)  # torch would treat a size of 1 as constant
    dims = {} if batch_size else {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(graph, (images, segments), dynamic_shapes={"images": dims, "segments": dims})


def output_names(config: HCastConfig, taxonomy: Taxonomy | None) -> tuple[str, ...]:
    """Return ``logits_LEVEL`` per level, coarse to fine, then ``assignment_STAGE`` for the pooling after each stage."""
    levels = [str(number) for number in range(1, 1 + len(config.level_classes))]
    if taxonomy is not None:
        names = [re.sub(r"\W+", "_", name) for name in taxonomy.levels]
        levels = names if len(set(names)) == len(names) else levels

    poolings = range(1, 4 + config.last_pool)
    return (*(f"logits_{name}" for name in levels), *(f"assignment_{stage}" for stage in poolings))


def metadata(weights: Weights) -> dict[str, str]:
    """Return the metadata of a graph, those of a safetensors file: config, taxonomy and calibration are JSON."""
    texts = dict(weights.metadata)
    texts.pop("format", None)
    for key in ("config", "taxonomy", "calibration"):
        part = getattr(weights, key)
        if part is not None:
            texts[key] = json.dumps(part.to_dict(), ensure_ascii=False)

    return texts


def example(config: HCastConfig, batch_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth random images (B, C, H, W), normalised, and their superpixels (B, H, W) int64."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    coarse = torch.randn(batch_size, config.in_chans, 7, 7, generator=generator)
    images = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    images = images + 0.1 * torch.randn(images.shape, generator=generator)
    segments = segment_images(images, config)
    return images, segments.contiguous()


def write_onnx(
    program: torch.export.ExportedProgram, file: Path, outputs: Sequence[str], texts: dict[str, str], opset: int | None
) -> int:
    """Write a traced program as ONNX; return the opset.

    Args:
        program: A program from :func:`trace`.
        file: The file to write.
        outputs: Names of the outputs, in order.
        texts: Metadata to store in the file.
        opset: ONNX opset; the installed torch's default if None.
    """
    onnx = torch.onnx.export(program, dynamo=True, opset_version=opset, output_names=list(outputs), verbose=False)
    assert onnx is not None  # never None with dynamo
    onnx.model.metadata_props.update(texts)
    _name_batch(onnx.model.graph)
    onnx.save(file)
    return onnx.model.opset_imports[""]


def _name_batch(graph) -> None:
    """Name the free axis ``batch``, instead of torch's numbered symbol."""
    symbols = {value.shape[0] for value in graph.inputs if not isinstance(value.shape[0], int)}
    for value in (*graph.inputs, *graph.outputs):
        if value.shape[0] in symbols:
            value.shape[0] = "batch"
