"""Evaluation: metrics of a model on a data set, for each decoding."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..common.processes import ALONE, Processes
from ..common.progress import hides_bars
from ..data.dataset import HierarchicalDataset
from ..data.loading import SuperpixelCollate, start_quietly, start_workers
from ..network.memory import pictures_at_once
from ..network.model import HCast
from ..taxonomy.backoff import trusted_probabilities
from ..taxonomy.calibration import Calibration
from ..taxonomy.tree import Taxonomy
from .metrics import HierarchicalMetrics


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics, and what they were measured on.

    Attributes:
        results: Metrics in percent, by decoding and name.
        pictures: Number of pictures that were measured.
        left_out: Number of pictures of the data set that could not be read.
        answers: The answers behind the metrics, by decoding.
        labels: (N, L) int64 labels of the measured pictures.
        numbers: (N,) int64 index of each in the data set.
        logits: On request, one (N, C_l) tensor of calibrated logits per level.
    """

    results: dict[str, dict[str, float]]
    pictures: int
    left_out: int
    answers: dict[str, "Answers"]
    labels: Tensor
    numbers: Tensor
    logits: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one decoding for N pictures.

    Attributes:
        paths: (N, L) int64.
        confidences: (N,) probability of each path.
        level_confidences: (N, L) probability that each level by itself gives the node of the path.
        trust: (N, L); see :func:`hcast_zoo.taxonomy.backoff.trusted_probabilities`.
    """

    paths: Tensor
    confidences: Tensor
    level_confidences: Tensor
    trust: Tensor


class _Numbered(Dataset):
    """Some pictures of a data set, each with its index as an extra label, since broken ones are dropped later."""

    def __init__(self, dataset: HierarchicalDataset, numbers: Sequence[int]):
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple | None:
        sample = self.dataset[self.numbers[index]]
        if sample is None:
            return None

        picture, labels = sample
        return picture, torch.cat([labels, torch.tensor([self.numbers[index]])])


def collect_logits(
    model: HCast,
    dataset: HierarchicalDataset,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run a model over a data set; see :func:`evaluate` for the arguments.

    Returns:
        One (S, C_l) float32 tensor of logits per level, and (S, L) int64 labels, for the S pictures that can be read.

    Raises:
        ValueError: if no picture can be read.
    """
    logits, labels = _run(model=model, dataset=dataset, batch_size=batch_size, workers=workers, progress=progress)
    if not labels:
        raise ValueError("none of the pictures can be read")

    return tuple(torch.cat(level) for level in zip(*logits)), torch.cat(labels)


def evaluate(
    model: HCast,
    dataset: HierarchicalDataset,
    decoders: Sequence[str] = ("best_path",),
    calibration: Calibration | None = None,
    *,
    processes: Processes = ALONE,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
    num_clusters: tuple[int, ...] | None = None,
    superpixel_cache: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics in percent for each decoding; see :meth:`HierarchicalMetrics.compute`.

    Args:
        model: The model.
        dataset: The pictures, with the model's transform and taxonomy.
        decoders: Decodings to compare, from ``DECODERS``.
        calibration: Calibration of the weights. Different temperatures of the levels can change a path, but not what a
            level by itself chooses.
        processes: The processes that share the work. All must call this; each runs the model on its share, and all
            return the metrics of the whole data set, which are the same as with one process.
        batch_size: Pictures per batch; no answer depends on it.
        workers: Processes that read pictures.
        progress: Show a progress bar.
        num_clusters: Cluster counts to use instead of the config's.
        superpixel_cache: Folder that caches superpixels for later runs.

    Raises:
        ValueError: if no picture can be read, or clusters outnumber tokens.
    """
    return measure(
        model,
        dataset,
        decoders,
        calibration,
        processes=processes,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        num_clusters=num_clusters,
        superpixel_cache=superpixel_cache,
    ).results


def measure(
    model: HCast,
    dataset: HierarchicalDataset,
    decoders: Sequence[str] = ("best_path",),
    calibration: Calibration | None = None,
    *,
    processes: Processes = ALONE,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
    num_clusters: tuple[int, ...] | None = None,
    superpixel_cache: str | Path | None = None,
    keep_logits: bool = False,
) -> Measured:
    """Return the metrics of :func:`evaluate`, which has the same arguments, with the answers and labels behind them.

    Args:
        keep_logits: Also return all logits, which take 4 bytes per picture and node.
    """
    share = _Numbered(dataset, processes.share(len(dataset)))
    batches, label_batches = _run(
        model=model,
        dataset=share,
        batch_size=batch_size,
        workers=workers,
        progress=progress and processes.is_main,
        num_clusters=num_clusters,
        superpixel_cache=superpixel_cache,
        collate=getattr(dataset, "collate", None),
    )

    answers: dict[str, Answers] = {}
    labels, logits = None, None
    if label_batches:  # a share can be empty, or all its pictures broken
        logits = tuple(torch.cat(level) for level in zip(*batches))
        labels = torch.cat(label_batches)
        calibration = calibration or Calibration.identity(len(logits))
        answers = {mode: _answers(logits, dataset.taxonomy, mode, calibration) for mode in decoders}
        logits = tuple(calibration.logits(logits)) if keep_logits else None

    shares = [part for part in processes.gather((answers, labels, logits)) if part[0]]
    if not shares:
        raise ValueError("none of the pictures can be read")

    answer_shares, label_shares, logit_shares = zip(*shares)
    truth = torch.cat(label_shares)
    whole, results = {}, {}
    for mode in decoders:
        whole[mode] = _join([answers[mode] for answers in answer_shares])
        metrics = HierarchicalMetrics(dataset.taxonomy)
        metrics.update(whole[mode].paths, truth[:, :-1])
        results[mode] = metrics.compute()

    return Measured(
        results=results,
        pictures=len(truth),
        left_out=len(dataset) - len(truth),
        answers=whole,
        labels=truth[:, :-1],
        numbers=truth[:, -1],
        logits=tuple(map(torch.cat, zip(*logit_shares))) if keep_logits else None,
    )


def _answers(logits: Sequence[Tensor], taxonomy: Taxonomy, mode: str, calibration: Calibration) -> Answers:
    decoded = calibration.decode(logits, taxonomy, mode)
    return Answers(
        paths=decoded.paths.cpu(),
        confidences=decoded.path_probabilities.cpu(),
        level_confidences=decoded.level_probabilities.cpu(),
        trust=trusted_probabilities(decoded, taxonomy).cpu(),
    )


def _join(parts: Sequence[Answers]) -> Answers:
    columns = {}
    for field in dataclasses.fields(Answers):
        columns[field.name] = torch.cat([getattr(part, field.name) for part in parts])

    return Answers(**columns)


@torch.inference_mode()
def _run(
    model: HCast,
    dataset: Dataset,
    batch_size: int,
    workers: int,
    progress: bool,
    num_clusters: tuple[int, ...] | None = None,
    superpixel_cache: str | Path | None = None,
    collate: Callable | None = None,
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Return batches of logits, one tensor per level, and of labels; ``collate`` stacks items that are not pictures."""
    device = next(model.parameters()).device
    options = {} if num_clusters is None else {"num_clusters": num_clusters}  # a flat network has no clusters
    loader = DataLoader(
        dataset,
        pictures_at_once(model.config, batch_size),
        num_workers=workers,
        collate_fn=collate or SuperpixelCollate(model.config, cache=superpixel_cache, device=device),
        worker_init_fn=start_quietly,
    )

    training = model.training
    model.eval()
    logits, labels = [], []
    try:
        hidden = not progress or hides_bars()
        for batch in tqdm(start_workers(loader), "evaluate", len(loader), disable=hidden, leave=False):
            if batch is None:
                continue

            segments = batch["segments"].to(device) if "segments" in batch else None
            output = model(batch["images"].to(device), segments, **options)
            logits.append([x.float().cpu() for x in output.level_logits])
            labels.append(batch["labels"])
    finally:
        model.train(training)

    return logits, labels
