"""Engines that compute a model's logits: torch itself, ONNX Runtime, or OpenVINO; at several precisions.

Other engines run the graph of :mod:`hcast_zoo.inference.graph`, which is written once and kept in the Hub's cache of
assets, under a hash of the weights, the config and the versions of the packages that write it. OpenVINO keeps its
compiled model beside it.

The first batch goes through torch as well, and an engine whose answers differ is not used. Segment maps and
explanations always come from torch.
"""

import contextlib
import copy
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import __version__
from ..common.choices import ENGINES, PRECISIONS
from ..common.extras import needs_extra
from ..common.files import whole_file
from ..network.config import HCastConfig, check_clusters
from ..network.model import HCast
from ..weights.file import checksum
from .graph import Graph, load_packages, trace, write_onnx

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.2}  # largest change of a probability on the first batch
OFFERED = {  # engine to precisions
    "torch": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
    "openvino": ("fp32", "bf16"),
}
RUNS = 3  # runs of the first batch, to find the fastest engine


class EngineError(ValueError):
    """An engine is missing, does not support the request, or does not compute what torch does."""


@dataclasses.dataclass
class Logits:
    """The output of an engine.

    Attributes:
        level_logits: One (B, classes) float32 tensor per level, coarse to fine.
    """

    level_logits: tuple[Tensor, ...]


class Engine(Protocol):
    """Computes the logits of (B, C, H, W) images and their (B, H, W) segments."""

    name: str

    def __call__(self, images: Tensor, segments: Tensor) -> Logits: ...


class TorchEngine(nn.Module):
    """The model itself, in full precision, under autocast to bfloat16, or with int8 linear layers.

    Args:
        model: In eval mode; int8 works on a copy.
        precision: One of ``PRECISIONS``. ``int8`` is torchao's, of weights and (dynamically) activations.
        num_clusters: Cluster counts to use instead of the config's.
    """

    name = "torch"

    def __init__(self, model: HCast, precision: str = "fp32", num_clusters: tuple[int, ...] | None = None):
        super().__init__()
        self.model = quantized(model) if precision == "int8" else model
        self.precision, self.num_clusters = precision, num_clusters

    @property
    def config(self) -> HCastConfig:
        """The model's config."""
        return self.model.config

    def forward(self, images: Tensor, segments: Tensor | None = None) -> Logits:
        context = contextlib.nullcontext()
        if self.precision == "bf16":
            context = torch.autocast(images.device.type, torch.bfloat16)  # type: ignore[assignment]
        with context:
            output = self.model(images, segments, num_clusters=self.num_clusters)

        return Logits(tuple(x.float() for x in output.level_logits))


def quantized(model: HCast) -> HCast:
    """Return a copy of a model whose linear layers compute in int8, by torchao."""
    with needs_extra("engines", "int8 layers"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


class OnnxEngine:
    """A graph in ONNX Runtime, on the CPU.

    Args:
        file: ONNX file of :func:`hcast_zoo.inference.graph.write_onnx`.
        precision: ``fp32``.
        levels: Number of levels; the first outputs are their logits.
    """

    name = "onnxruntime"

    def __init__(self, file: Path, precision: str, levels: int):
        self.session = onnx_session(file)
        self.outputs = [output.name for output in self.session.get_outputs()][:levels]

    def __call__(self, images: Tensor, segments: Tensor) -> Logits:
        arrays = self.session.run(self.outputs, {"images": images.numpy(), "segments": segments.numpy()})
        return Logits(tuple(torch.from_numpy(array) for array in arrays))


def onnx_session(file: Path):
    """Return a session of ONNX Runtime on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class OpenVinoEngine:
    """A graph in OpenVINO, on the CPU.

    Args:
        file: ONNX file of :func:`hcast_zoo.inference.graph.write_onnx`.
        precision: ``fp32`` or ``bf16``.
        levels: Number of levels; the first outputs are their logits.

    Raises:
        EngineError: if the processor does not compute at this precision.
    """

    name = "openvino"

    def __init__(self, file: Path, precision: str, levels: int):
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("openvino: this processor has no bfloat16 instructions; use --precision fp32")

        options = {
            "CACHE_DIR": str(file.parent),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        }
        self.compiled = core.compile_model(str(file), "CPU", options)
        self.outputs = self.compiled.outputs[:levels]

    def __call__(self, images: Tensor, segments: Tensor) -> Logits:
        arrays = self.compiled({"images": images.numpy(), "segments": segments.numpy()})
        return Logits(tuple(torch.from_numpy(arrays[output].copy()) for output in self.outputs))


GRAPH_ENGINES: dict[str, Callable[[Path, str, int], Engine]] = {"onnxruntime": OnnxEngine, "openvino": OpenVinoEngine}


class ChosenEngine(nn.Module):
    """Chooses, on the first batch, the fastest engine whose answers agree with torch's.

    Args:
        reference: Torch in full precision.
        candidates: The engines to choose from.
        precision: Their precision, which sets the tolerance for probabilities.
        tell: Called with a message about each candidate.
    """

    def __init__(
        self,
        reference: TorchEngine,
        candidates: Sequence[Engine],
        precision: str,
        tell: Callable[[str], object] = lambda line: None,
    ):
        super().__init__()
        self.reference, self.candidates, self.precision, self.tell = reference, candidates, precision, tell
        self.chosen: Engine | None = None

    @property
    def config(self) -> HCastConfig:
        """The model's config."""
        return self.reference.config

    @property
    def num_clusters(self) -> tuple[int, ...] | None:
        """Cluster counts that are used instead of the config's; None for the config's."""
        return self.reference.num_clusters

    def forward(self, images: Tensor, segments: Tensor | None = None) -> Logits:
        if segments is None:
            segments = self.reference.model.prepare_segments(images, None, self.config.num_superpixels)
        if self.chosen is None:
            self.chosen = self._choose(images, segments)
        return self.chosen(images, segments)

    def _choose(self, images: Tensor, segments: Tensor) -> Engine:
        expected, tolerance = self.reference(images, segments), TOLERANCE[self.precision]
        times: list[tuple[float, Engine]] = []
        for engine in self.candidates:
            difference, same = compare(engine(images, segments), expected)
            result = (
                f"engine {engine.name} {self.precision}: probabilities within {difference:.1e} of torch's, "
                f"{same:.1%} of labels equal"
            )
            if difference > tolerance:
                self.tell(f"{result}: not used, expected {tolerance:g} at most")
                continue

            spent = median_time(engine, images, segments)
            times.append((spent, engine))
            self.tell(f"{result}, {1000 * spent / len(images):.1f} ms per picture")

        if not times:
            raise EngineError(
                f"no engine gives torch's answers at {self.precision} on the first batch: use --engine torch "
                f"--precision fp32, or empty {graph_folder()}"
            )

        _, fastest = min(times, key=lambda timed: timed[0])
        self.tell(f"engine {fastest.name} is used")
        return fastest


def compare(computed: Logits, expected: Logits) -> tuple[float, float]:
    """Return the largest difference of a probability, and the share of equal labels averaged over the levels."""
    differences, equal = [], []
    for ours, theirs in zip(computed.level_logits, expected.level_logits, strict=True):
        difference = (ours.softmax(-1) - theirs.softmax(-1)).abs().max()
        differences.append(difference.nan_to_num(nan=float("inf")).item())
        equal.append((ours.argmax(-1) == theirs.argmax(-1)).double().mean().item())

    return max(differences), sum(equal) / len(equal)


def median_time(engine: Engine, images: Tensor, segments: Tensor) -> float:
    """Return the median time in seconds that an engine takes for a batch."""
    spent = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine(images, segments)
        spent.append(time.perf_counter() - start)

    return sorted(spent)[RUNS // 2]


def make_engine(
    model: HCast,
    engine: str = "torch",
    precision: str = "fp32",
    *,
    num_clusters: tuple[int, ...] | None = None,
    source: str | Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> nn.Module:
    """Return an engine that computes a model's logits.

    Args:
        model: In eval mode.
        engine: One of ``ENGINES``; ``auto`` takes the fastest that is installed and gives torch's answers.
        precision: One of ``PRECISIONS``.
        num_clusters: Cluster counts to use instead of the config's.
        source: Source of the weights, by whose SHA-256 the graph is cached; None writes the graph every time.
        tell: Called with messages about the choice.

    Raises:
        EngineError: if an engine is not offered at this precision or on the model's device, or is not installed.
    """
    check_engine(engine, precision)
    if num_clusters is not None:
        num_clusters = check_clusters(num_clusters, model.config.num_superpixels)

    if engine == "torch":
        return TorchEngine(model, precision, num_clusters)

    device = next(model.parameters()).device
    names = [engine]
    if engine == "auto":
        known = OFFERED if device.type == "cpu" else ("torch",)
        names = [name for name in known if precision in OFFERED[name] and _installed(name)]
    elif device.type != "cpu":
        raise EngineError(f"{engine} runs on the CPU here, not on {device}: use --device cpu, or --engine torch")

    candidates: list[Engine] = []
    for name in names:
        try:
            candidates.append(_make_candidate(name, model, precision, num_clusters, source))
        except EngineError as error:
            if engine != "auto":
                raise
            tell(str(error))

    return ChosenEngine(TorchEngine(model, num_clusters=num_clusters), candidates, precision, tell)


def check_engine(engine: str, precision: str) -> None:
    """Raise EngineError unless an engine exists and is offered at this precision."""
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}: expected one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if engine != "auto" and precision not in OFFERED[engine]:
        raise EngineError(f"{engine} offers {', '.join(OFFERED[engine])}, not {precision}")


def _installed(name: str) -> bool:
    return name == "torch" or all(importlib.util.find_spec(package) for package in (name, "onnxscript"))


def _make_candidate(name: str, model: HCast, precision: str, num_clusters: tuple[int, ...] | None, source) -> Engine:
    if name == "torch":
        return TorchEngine(model, precision, num_clusters)

    with needs_extra("engines", f"engine {name}"):
        importlib.import_module(name)

    file = onnx_file(model, num_clusters, source)
    return GRAPH_ENGINES[name](file, precision, len(model.config.level_classes))


def onnx_file(model: HCast, num_clusters: tuple[int, ...] | None, source: str | Path | None) -> Path:
    """Return the ONNX file of a model; write it if the cache has none for these weights and versions."""
    load_packages(check=False)
    digest = None if source is None else checksum(source)
    config = model.config if num_clusters is None else model.config.replace(num_clusters=num_clusters)

    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    made_of = {"weights": digest, "config": config.to_dict(), "hcast_zoo": __version__, **versions}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    file = graph_folder() / key / "model.onnx"
    if digest is not None and file.exists():
        return file

    file.parent.mkdir(parents=True, exist_ok=True)
    names = [f"level_{number}" for number in range(1, 1 + len(config.level_classes))]
    with warnings.catch_warnings(), whole_file(file, suffix=".onnx") as temporary:
        warnings.simplefilter("ignore")  # torch's exporter warns about its own code
        program = trace(Graph(model, num_clusters, assignments=False).eval())
        write_onnx(program, temporary, names, {}, None)

    return file


def graph_folder() -> Path:
    """Return the folder of graphs, in the Hub's cache of assets."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path("hcast-zoo", "engines", assets_dir=constants.HF_ASSETS_CACHE)
