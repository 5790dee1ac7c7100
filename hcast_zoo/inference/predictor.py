"""Prediction: picture files to paths of the taxonomy; a broken picture gives an error record, and the rest goes on."""

import copy
import dataclasses
import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.loading import start_quietly, start_workers
from ..data.pictures import PICTURE_SUFFIXES, PictureError, read_picture
from ..data.transforms import eval_transform
from ..network import superpixels
from ..network.config import check_clusters
from ..network.model import HCast
from ..taxonomy.backoff import back_off, check_threshold
from ..taxonomy.calibration import Calibration
from ..taxonomy.decode import DECODERS, node_probabilities
from ..taxonomy.subtree import Restriction
from ..taxonomy.tree import UNKNOWN, Taxonomy
from ..weights import file as weights


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        file: As it was given.
        path: Node names, coarse to fine; empty if there is an error. With back-off it may end early, or be empty.
        probabilities: Each level's own probability of its node, in [0, 1].
        path_probability: Of the path as it is given, in [0, 1]; 1 if it is empty. See
            :func:`hcast_zoo.taxonomy.decode.decode`.
        runner_up: The second-best path, to its end.
        runner_up_probability: In [0, 1].
        error: Why there is no answer, or None.
        reason: With back-off, why the path ends where it does; None without.
    """

    file: str
    path: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    path_probability: float = 0.0
    runner_up: tuple[str, ...] = ()
    runner_up_probability: float = 0.0
    error: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict:
        """Return plain data for JSON: ``file`` and ``error``, or everything else, ``reason`` with back-off alone."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in dataclasses.asdict(self).items()
            if k != "error" and (k, v) != ("reason", None)
        }


class Predictor:
    """A model, its taxonomy, its calibration and its preprocessing.

    Args:
        source: Weights: a name such as ``hcast_small.emoji_art``, a file or a folder; see :func:`weights.load`.
        decoder: How levels become a path, one of ``decode.DECODERS``.
        device: Where the model runs.
        num_clusters: Other cluster counts than the weights' config's; no fine-tuning is needed.
        within: Answer only with leaves at or below these nodes, named at any level (``level:name`` where a name occurs
            at several); see :func:`hcast_zoo.taxonomy.decode.decode`.
        threshold: Back off to the deepest level that is trustworthy, with at least this probability in [0, 1]; see
            :func:`hcast_zoo.taxonomy.backoff.back_off`. None gives whole paths.

    Raises:
        WeightsError: if the weights cannot be loaded.
        ValueError: if the weights have no taxonomy, the decoder or a node is unknown, clusters outnumber tokens, or
            the threshold is not in [0, 1].
    """

    def __init__(
        self,
        source: str | Path = "hcast_small.emoji_art",
        decoder: str = "best_path",
        device: str | torch.device = "cpu",
        *,
        num_clusters: tuple[int, ...] | None = None,
        within: Sequence[str] | None = None,
        threshold: float | None = None,
    ):
        content = weights.load(source)
        if content.taxonomy is None:
            raise ValueError(f"{source} has no taxonomy to name labels with: convert it with --taxonomy")
        _check_decoder(decoder)
        self.taxonomy: Taxonomy = content.taxonomy
        self.model: HCast = weights.build(content, device)
        self.transform = eval_transform(content.config)
        self.calibration = content.calibration or Calibration.identity(len(content.config.level_classes))
        self.metadata, self.device = content.metadata, torch.device(device)
        self._set(decoder, num_clusters, within, threshold)

    def _set(
        self, decoder: str, num_clusters: tuple[int, ...] | None, within: Sequence[str] | None, threshold: float | None
    ) -> None:
        _check_decoder(decoder)
        self.decoder = decoder
        self.num_clusters = None
        if num_clusters is not None:
            self.num_clusters = check_clusters(num_clusters, self.model.config.num_superpixels)
        if within is not None:
            Restriction.to(self.taxonomy, within)  # raises for what it does not know
        self.within = within
        self.threshold = None if threshold is None else check_threshold(threshold)

    def with_settings(
        self,
        decoder: str = "best_path",
        *,
        num_clusters: tuple[int, ...] | None = None,
        within: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> "Predictor":
        """Return a predictor of the same model, which is not loaded again, with other settings; see the class."""
        other = copy.copy(self)
        other._set(decoder, num_clusters, within, threshold)
        return other

    def predict(self, files: Iterable[str | Path], batch_size: int = 16, workers: int = 0) -> Iterator[Prediction]:
        """Yield one prediction a file, in order.

        Args:
            files: Pictures; see :func:`find_pictures` for folders and patterns.
            batch_size: Pictures a forward pass; it does not change an answer.
            workers: Processes that read pictures and compute superpixels; 0 does it in this one.
        """
        dataset = _Pictures([str(f) for f in files], self.transform, self.model.config)
        loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=list, worker_init_fn=start_quietly)
        for batch in start_workers(loader):
            yield from self._predict_batch(batch)

    @torch.inference_mode()
    def _predict_batch(self, batch: list[tuple]) -> list[Prediction]:
        good = [item for item in batch if item[3] is None]
        answers: dict[int, Prediction] = {}
        if good:
            images = torch.stack([item[1] for item in good]).to(self.device)
            segments = torch.stack([item[2] for item in good]).to(self.device)
            output = self.model(images, segments, num_clusters=self.num_clusters)
            logits = [x.float().cpu() for x in output.level_logits]
            finite = torch.stack([x.isfinite().all(-1) for x in logits]).all(0)
            rows = finite.nonzero().flatten().tolist()
            decoded = self.decode([x[finite] for x in logits]) if rows else []
            answers = {id(good[row]): answer for row, answer in zip(rows, decoded)}

        predictions = []
        for item in batch:
            answer = answers.get(id(item))
            if answer is None:
                predictions.append(Prediction(item[0], error=item[3] or "the model's answer is not finite"))
            else:
                predictions.append(dataclasses.replace(answer, file=item[0]))

        return predictions

    def decode(self, level_logits: list[Tensor]) -> list[Prediction]:
        """Turn one (B, C_l) tensor of logits a level into B predictions with an empty file name."""
        d = self.calibration.decode(level_logits, self.taxonomy, self.decoder, self.within)
        paths, probabilities = d.paths, d.path_probabilities
        reasons: Sequence[str | None] = [None] * len(d.paths)
        if self.threshold is not None:
            short = back_off(d, self.taxonomy, self.threshold)
            paths, probabilities, reasons = short.paths, short.path_probabilities, short.reasons

        rows = zip(
            paths.tolist(),
            d.level_probabilities.tolist(),
            probabilities.tolist(),
            d.runner_up.tolist(),
            d.runner_up_probabilities.tolist(),
            reasons,
        )
        names = self.taxonomy.path_names
        return [
            Prediction(
                "",
                names(path),
                tuple(p for p, node in zip(levels, path) if node != UNKNOWN),
                probability,
                names(second),
                second_probability,
                reason=reason,
            )
            for path, levels, probability, second, second_probability, reason in rows
        ]

    def node_probabilities(self, level_logits: list[Tensor], decoder: str | None = None) -> tuple[Tensor, ...]:
        """Return the (B, C_l) probability of every node of each level; see :func:`decode.node_probabilities`."""
        return node_probabilities(
            self.calibration.logits(level_logits),
            self.taxonomy,
            decoder or self.decoder,
            within=self.within,
            path_temperature=self.calibration.path_temperature,
        )


def _check_decoder(decoder: str) -> None:
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoding {decoder!r}: expected one of {', '.join(DECODERS)}")


class _Pictures(Dataset):
    """Items (file, image, segments, None), or (file, None, None, error)."""

    def __init__(self, files, transform, config):
        self.files, self.transform, self.config = files, transform, config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, Tensor | None, str | None]:
        file, c = self.files[index], self.config
        try:
            image = self.transform(read_picture(file))
        except PictureError as error:
            return file, None, None, str(error).removeprefix(f"{file}: ")
        segments = superpixels.from_normalized(image[None], c.num_superpixels, c.mean, c.std, c.superpixels)[0]
        return file, image, segments, None


def find_pictures(arguments: Iterable[str]) -> list[str]:
    """Return picture files for files, folders (searched below, sorted) and glob patterns.

    What matches nothing is returned as it is, so that its prediction tells the error.
    """
    files = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        else:
            found = [] if path.exists() else sorted(glob.glob(argument, recursive=True))
        files += found or [argument]

    return files
