"""Prediction: from pictures to paths of the taxonomy; a broken picture gives an error record, and the rest goes on."""

import copy
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..common.choices import DEFAULT_MODEL
from ..common.machine import processors
from ..data.boxes import Box, BoxedPicture, BoxGeometry
from ..data.loading import read_ahead, start_quietly, start_workers
from ..data.pictures import Picture, PictureError, is_picture, picture_name, read_picture
from ..data.stores import StoredPicture, is_container, is_stored, read_container
from ..data.transforms import eval_transform, short_side
from ..network.config import HCastConfig, check_clusters
from ..network.memory import pictures_at_once
from ..network.model import HCast, HCastOutput
from ..network.superpixels import segment_images
from ..taxonomy.above import check_above, sum_upwards
from ..taxonomy.backoff import back_off, check_threshold
from ..taxonomy.calibration import Calibration
from ..taxonomy.decode import (
    check_decoder,
    check_gives_paths,
    check_top_k,
    decode_paths,
    most_probable,
    node_probabilities,
    path_probabilities,
    top_paths,
)
from ..taxonomy.guarantee import Guarantee, read_guarantee
from ..taxonomy.prior import Prior
from ..taxonomy.rollup import path_tensor, sum_paths
from ..taxonomy.subtree import Subtree
from ..taxonomy.tree import UNKNOWN, Taxonomy
from ..weights.file import WeightsError, build_model, is_headless, load_weights
from .engines import check_engine, make_engine
from .prediction import Prediction
from .sets import SetMaker
from .settings import AnswerSettings

NOT_FINITE = "the model's answer is not finite"
AT_ONCE = 256  # encoded pictures of a container that are in memory at once


class Predictor:
    """A model, its taxonomy, its calibration and its preprocessing.

    Args:
        source: Weights: a name such as ``hcast_lite.in1k``, a file or a folder; see :func:`weights.load`.
        decoder: How levels become a path, one of ``DECODERS``.
        device: Where the model runs; ``auto`` for an accelerator if there is one.
        num_clusters: Cluster counts to use instead of the config's; no fine-tuning is needed.
        within: Answer only with leaves at or below these nodes, named at any level (``level:name`` if a name occurs at
            several); see :func:`hcast_zoo.taxonomy.decode.decode`.
        threshold: Back off to the deepest level that can be trusted, with at least this probability in [0, 1]; see
            :func:`hcast_zoo.taxonomy.backoff.back_off`. ``auto`` takes the threshold for which
            ``hcast-zoo calibrate --target-accuracy`` stored a promise. None gives whole paths.
        top_k: Also give this many of the most probable paths; see :func:`hcast_zoo.taxonomy.decode.top_paths`.
        taxonomy: For flat weights, a tree above their classes. A node's probability is the sum over its leaves.
        engine: What computes :meth:`predict`'s batches, one of ``ENGINES``; see
            :func:`hcast_zoo.inference.engines.make_engine`. :meth:`answer` always uses torch.
        precision: One of ``PRECISIONS``.
        tell: Called with messages about the chosen engine.
        coverage: Also give a set of nodes that contains the true one with this probability, in (0, 1); see
            :class:`.sets.SetMaker`. Needs weights that ``hcast-zoo calibrate --sets`` wrote.
        set_level: Level at which the coverage holds for each node, not only on average.
        prior: Expected abundances, by which the probabilities of paths are re-weighted.
        draft: Decode JPEG files of :meth:`predict` at a reduced size if the model's is smaller; see
            :func:`hcast_zoo.data.pictures.open_picture`.

    Raises:
        EngineError: if the engine is not installed or not offered at this precision.
        WeightsError: if the weights cannot be loaded.
        ValueError: if the weights have no taxonomy, or the tree's leaves are not their classes; the decoder or a node
            is unknown; clusters outnumber tokens; or the threshold is not in [0, 1].
    """

    def __init__(
        self,
        source: str | Path = DEFAULT_MODEL,
        decoder: str = "best_path",
        device: str | torch.device = "cpu",
        *,
        num_clusters: tuple[int, ...] | None = None,
        within: Sequence[str] | None = None,
        threshold: float | str | None = None,
        top_k: int | None = None,
        taxonomy: Taxonomy | None = None,
        engine: str = "torch",
        precision: str = "fp32",
        tell: Callable[[str], object] = lambda line: None,
        coverage: float | None = None,
        set_level: str | None = None,
        prior: Prior | None = None,
        draft: bool = False,
    ):
        check_engine(engine, precision)
        weights = load_weights(source)
        if is_headless(weights):
            raise WeightsError(
                f"{source} has no classifier head, so it gives no labels: train from it with "
                f"hcast-zoo train --model {source}"
            )

        if weights.taxonomy is None:
            raise ValueError(f"{source} has no taxonomy to name labels with: convert it with --taxonomy")
        check_decoder(decoder)

        self.source = str(source)
        self.taxonomy: Taxonomy = weights.taxonomy if taxonomy is None else check_above(taxonomy, weights.taxonomy)
        self.model: HCast = build_model(weights, device)
        self.metadata, self.device = weights.metadata, next(self.model.parameters()).device
        self.transform, self.draft = eval_transform(weights.config), draft

        self.calibration = weights.calibration or Calibration.identity(len(weights.config.level_classes))
        self._flat = None
        if taxonomy is not None:  # temperatures apply to the classes before they are summed, and not to the sums
            self._flat, self.calibration = self.calibration, Calibration.identity(len(taxonomy.levels))

        self._make_engine = functools.partial(make_engine, self.model, engine, precision, source=source, tell=tell)
        self.engine = self._make_engine(num_clusters=num_clusters)
        settings = AnswerSettings(
            decoder=decoder,
            num_clusters=num_clusters,
            within=within,
            threshold=threshold,
            top_k=top_k,
            coverage=coverage,
            set_level=set_level,
            prior=prior,
        )
        self._apply(settings)

    def _apply(self, settings: AnswerSettings) -> None:
        """Check settings and use them from now on."""
        check_decoder(settings.decoder)
        if settings.top_k is not None:
            check_top_k(settings.top_k, settings.decoder)
        self.decoder, self.top_k = settings.decoder, settings.top_k

        self.num_clusters = None
        if settings.num_clusters is not None:
            self.num_clusters = check_clusters(settings.num_clusters, self.model.config.num_superpixels)
        if self.num_clusters != self.engine.num_clusters:
            self.engine = self._make_engine(num_clusters=self.num_clusters)

        self.within = settings.within
        self._subtree = None if settings.within is None else Subtree.below(self.taxonomy, settings.within)

        if settings.prior is not None:
            check_gives_paths(settings.decoder, "prior")
        self.prior = settings.prior

        if settings.threshold == "auto" or settings.coverage is not None:
            self._check_promised(settings.decoder)
        self.threshold = self._threshold(settings.threshold)
        self.coverage = settings.coverage
        self._sets = None
        if settings.coverage is not None:
            self._sets = self._set_maker(settings.coverage, settings.set_level)

    @property
    def box_geometry(self) -> BoxGeometry | None:
        """How boxes became pictures when the weights were trained; None if they were trained on whole pictures."""
        return BoxGeometry.from_metadata(self.metadata)

    @property
    def guarantee(self) -> Guarantee | None:
        """What the weights promise, or None; raises ValueError if they have been calibrated again since."""
        return read_guarantee(self.metadata, self.calibration)

    def _check_promised(self, decoder: str) -> None:
        """Raise ValueError if the settings differ from those that promises were measured with."""
        changed = [] if decoder == "best_path" else ["decode"]
        changed += [name for name in ("within", "num_clusters", "prior") if getattr(self, name) is not None]
        if changed:
            raise ValueError(f"promises were measured without {' and '.join(changed)}: leave them out")

    def _threshold(self, threshold: float | str | None) -> float | None:
        if threshold is None:
            return None
        if not isinstance(threshold, str):
            return check_threshold(threshold)
        if threshold != "auto":
            raise ValueError(f"expected a back-off threshold from 0 to 1, or auto, got {threshold!r}")

        guarantee = self.guarantee
        if guarantee is None or guarantee.promise is None:
            raise ValueError(
                "these weights promise no accuracy, so there is no threshold to take: run hcast-zoo calibrate MODEL "
                "--data HELD_OUT --target-accuracy 0.95 --output FILE"
            )

        return guarantee.promise.threshold

    def _set_maker(self, coverage: float, level: str | None) -> SetMaker:
        guarantee = self.guarantee
        if guarantee is None or guarantee.scores is None:
            raise ValueError(
                "these weights have no scores of held-out pictures to make sets from: run hcast-zoo calibrate MODEL "
                "--data HELD_OUT --sets --output FILE"
            )

        return SetMaker(guarantee.scores, self.taxonomy, self.calibration, coverage, level)

    def with_settings(self, decoder: str = "best_path", **settings: Any) -> "Predictor":
        """Return a predictor with other settings that shares the model, without loading it again.

        Args:
            decoder: See the class.
            settings: The other fields of :class:`.settings.AnswerSettings`; those not given have their defaults.
        """
        other = copy.copy(self)
        other._apply(AnswerSettings(decoder, **settings))
        return other

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        batch_size: int = 16,
        workers: int = 0,
        groups: Sequence[str] | None = None,
    ) -> Iterator[Prediction]:
        """Yield one prediction per picture, in order; a picture that cannot be read gives an error record.

        Args:
            pictures: One picture, or many, as :meth:`answer` takes them; :mod:`hcast_zoo.data.find` finds those of
                folders and patterns.
            batch_size: Pictures per forward pass; no answer depends on it.
            workers: Processes that read pictures and compute superpixels; with 0, threads of this process do so while
                the model computes.
            groups: The group of each picture (a burst, an individual); pictures of a group must be adjacent. Each gets
                the answer of the group, from the product of their probabilities at each level.

        Raises:
            ValueError: if there is not a group for each picture, or sets were requested, whose promise holds only for
                single pictures.
        """
        if is_picture(pictures):
            pictures = [pictures]
        picture_list: list[Picture] = list(pictures)  # type: ignore[arg-type]

        at_least = short_side(self.model.config) if self.draft else None
        dataset = _Pictures(picture_list, self.transform, self.model.config, at_least)
        batch_size = pictures_at_once(self.model.config, batch_size)
        if workers == 0:
            batches = read_ahead(dataset, batch_size, threads=processors())
        else:
            loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=list, worker_init_fn=start_quietly)
            batches = start_workers(loader)

        if groups is None:
            for batch in batches:
                yield from self._predict_batch(batch)
            return

        if len(groups) != len(picture_list):
            raise ValueError(f"expected a group for each of {len(picture_list)} pictures, got {len(groups)}")
        if self._sets is not None:
            raise ValueError("sets are promised for single pictures: leave groups out")

        yield from self._predict_groups(batches, groups)

    def _predict_groups(self, batches: Iterable[list["_Item"]], groups: Sequence[str]) -> Iterator[Prediction]:
        """Yield the predictions of pictures whose groups follow each other."""
        answers = itertools.chain.from_iterable(map(self._answer_batch, batches))
        for group, pairs in itertools.groupby(zip(groups, answers), key=operator.itemgetter(0)):
            members = [member for _, member in pairs]
            known = [logits for _, logits in members if logits is not None]
            group_answer = self.decode(self.combine(known))[0] if known else None
            for item, logits in members:
                if logits is None or group_answer is None:
                    answer = Prediction(item.file, error=item.error or NOT_FINITE)
                else:
                    answer = dataclasses.replace(group_answer, file=item.file)
                yield dataclasses.replace(answer, box=item.box, group=group, group_size=len(known))

    @torch.inference_mode()
    def _answer_batch(self, batch: list["_Item"]) -> list[tuple["_Item", list[Tensor] | None]]:
        """Return each item with its logits, one (1, C_l) tensor per level; None if there are none or not finite."""
        output = self._forward([item for item in batch if item.error is None])
        answers: list[tuple[_Item, list[Tensor] | None]] = []
        row = 0
        for item in batch:
            if item.error is not None:
                answers.append((item, None))
                continue

            logits = [x[row : row + 1] for x in output]
            answers.append((item, logits if all(x.isfinite().all() for x in logits) else None))
            row += 1

        return answers

    def combine(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return logits, as a batch of one, whose probabilities are the product of several pictures' probabilities.

        Args:
            rows: For each picture, one (1, C_l) tensor of logits per level.
        """
        calibration = self._flat or self.calibration
        scaled = []
        for row in rows:
            scaled.append(calibration.logits([x.float() for x in row]))

        combined = []
        for temperature, level in zip(calibration.temperatures, zip(*scaled)):
            logs = torch.cat(level).log_softmax(-1)
            combined.append(temperature * logs.sum(0, keepdim=True))

        return combined

    @torch.inference_mode()
    def _forward(self, readable: list["_Item"]) -> list[Tensor]:
        """Return one (B, C_l) tensor of logits per level, on the CPU."""
        if not readable:
            return []

        images = torch.stack([item.image for item in readable]).to(self.device)  # type: ignore[misc]
        segments = torch.stack([item.segments for item in readable]).to(self.device)  # type: ignore[misc]
        return [x.detach().float().cpu() for x in self.engine(images, segments).level_logits]

    @torch.inference_mode()
    def _predict_batch(self, batch: list["_Item"]) -> list[Prediction]:
        readable = [item for item in batch if item.error is None]
        predictions: Iterator[Prediction] = iter(())
        if readable:
            predictions = iter(self.predictions(self._forward(readable), [item.file for item in readable]))

        answers = []
        for item in batch:
            answer = next(predictions) if item.error is None else Prediction(item.file, error=item.error)
            answers.append(answer if item.box is None else dataclasses.replace(answer, box=item.box))

        return answers

    @torch.inference_mode()
    def answer(self, picture: Picture, file: str | None = None) -> tuple[Prediction, HCastOutput]:
        """Label one picture, and return the model's output for it.

        Args:
            picture: A file's name, its bytes or a binary file object; a PIL image; or an array (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4) of uint8 or uint16, see :func:`hcast_zoo.data.pictures.from_array`.
            file: Name in the prediction; by default the picture's own, or ``picture`` if it has none.

        Returns:
            The prediction, and the model's output, a batch of one.

        Raises:
            PictureError: if the picture cannot be read, or the model's answer is not finite.
        """
        file = picture_name(picture) if file is None else file
        output = forward_picture(self.model, read_picture(picture), self.transform, self.num_clusters)
        (prediction,) = self.predictions(output.level_logits, [file])
        if prediction.error is not None:
            raise PictureError(prediction.error, file)

        return prediction, output

    def predictions(self, level_logits: Sequence[Tensor], files: Sequence[str]) -> list[Prediction]:
        """Turn logits of B pictures into predictions; a row that is not finite becomes an error record.

        Args:
            level_logits: One (B, C_l) tensor per level.
            files: B names.
        """
        logits = [x.detach().float().cpu() for x in level_logits]
        finite = torch.stack([x.isfinite().all(-1) for x in logits]).all(0)
        answers = iter(self.decode([x[finite] for x in logits]) if finite.any() else [])
        predictions = []
        for file, is_finite in zip(files, finite.tolist(), strict=True):
            if is_finite:
                predictions.append(dataclasses.replace(next(answers), file=file))
            else:
                predictions.append(Prediction(file, error=NOT_FINITE))

        return predictions

    def decode(self, level_logits: list[Tensor]) -> list[Prediction]:
        """Turn one (B, C_l) tensor of logits per level of the model into B predictions with an empty file name."""
        level_logits = self._all_levels(level_logits)
        expected = None if self.prior is None else self._expected_paths(level_logits)
        if expected is None:
            decoded = self.calibration.decode(level_logits, self.taxonomy, self.decoder, self._subtree)
        else:
            decoded = decode_paths(expected, self.taxonomy)

        paths, probabilities = decoded.paths, decoded.path_probabilities
        reasons: Sequence[str | None] = [None] * len(paths)
        if self.threshold is not None:
            shortened = back_off(decoded, self.taxonomy, self.threshold)
            paths, probabilities, reasons = shortened.paths, shortened.path_probabilities, shortened.reasons

        rows = zip(
            paths.tolist(),
            decoded.level_probabilities.tolist(),
            probabilities.tolist(),
            decoded.runner_up.tolist(),
            decoded.runner_up_probabilities.tolist(),
            reasons,
            self._top(level_logits, expected) if self.top_k else [()] * len(paths),
            self._sets.sets(level_logits, decoded) if self._sets else [None] * len(paths),
        )
        predictions = []
        for path, levels, probability, second, second_probability, reason, top, node_set in rows:
            prediction = Prediction(
                file="",
                path=self.taxonomy.path_names(path),
                probabilities=tuple(p for p, node in zip(levels, path) if node != UNKNOWN),
                path_probability=probability,
                runner_up=self.taxonomy.path_names(second),
                runner_up_probability=second_probability,
                reason=reason,
                top=top,
                node_set=node_set,
            )
            predictions.append(prediction)

        return predictions

    def _all_levels(self, level_logits: list[Tensor]) -> list[Tensor]:
        """Return the logits of the taxonomy's levels; for flat weights with a tree, upper levels are sums of leaves."""
        if self._flat is None:
            return level_logits
        return sum_upwards(self._flat.logits(level_logits)[0], self.taxonomy)

    def _expected_paths(self, level_logits: list[Tensor]) -> Tensor:
        """Return the (B, P) probabilities of the paths under the prior, restricted to those below ``within``."""
        assert self.prior is not None
        probabilities = path_probabilities(
            self.calibration.logits(level_logits),
            self.taxonomy,
            self.decoder,
            path_temperature=self.calibration.path_temperature,
        )

        prior = self.prior
        if self._subtree is not None:
            kept = self._subtree.whole_paths(path_tensor(self._subtree.taxonomy))
            inside = set(map(tuple, kept.tolist()))
            outside = torch.tensor([path not in inside for path in self.taxonomy.paths])
            prior = dataclasses.replace(prior, log_ratios=prior.log_ratios.masked_fill(outside, -torch.inf))
            if prior.log_ratios.isinf().all():
                raise ValueError("prior: none of the expected nodes is at or below the nodes of --within")

        return prior.apply(probabilities)

    def _top(
        self, level_logits: list[Tensor], expected: Tensor | None = None
    ) -> list[tuple[tuple[tuple[str, ...], float], ...]]:
        """Return the most probable paths of each picture, by name, with their probabilities."""
        assert self.top_k is not None
        if expected is not None:
            paths, probabilities = most_probable(expected, self.taxonomy, self.top_k)
        else:
            paths, probabilities = top_paths(
                self.calibration.logits(level_logits),
                self.taxonomy,
                self.top_k,
                self.decoder,
                within=self._subtree,
                path_temperature=self.calibration.path_temperature,
            )

        top = []
        for picture_paths, values in zip(paths.tolist(), probabilities.tolist()):
            top.append(tuple(zip(map(self.taxonomy.path_names, picture_paths), values)))

        return top

    def node_probabilities(self, level_logits: Sequence[Tensor], decoder: str | None = None) -> tuple[Tensor, ...]:
        """Return the (B, C_l) probability of every node of each level; see :func:`decode.node_probabilities`."""
        levels = self._all_levels([x.float().cpu() for x in level_logits])
        if self.prior is not None and decoder is None:
            return sum_paths(self._expected_paths(levels), self.taxonomy)

        return node_probabilities(
            self.calibration.logits(levels),
            self.taxonomy,
            decoder or self.decoder,
            within=self._subtree,
            path_temperature=self.calibration.path_temperature,
        )


def forward_picture(
    model: HCast,
    picture: Image.Image,
    transform: Callable[[Image.Image], Tensor] | None = None,
    num_clusters: tuple[int, ...] | None = None,
) -> HCastOutput:
    """Run a model on one picture.

    Args:
        model: In eval mode.
        picture: RGB, as :func:`hcast_zoo.data.pictures.read_picture` returns it.
        transform: From the picture to a (3, H, W) tensor; the preprocessing of the model's config by default.
        num_clusters: Cluster counts to use instead of the config's.

    Returns:
        The output, a batch of one.
    """
    image = (transform or eval_transform(model.config))(picture)
    device = next(model.parameters()).device
    return model(image[None].to(device), num_clusters=num_clusters)


@dataclasses.dataclass
class _Item:
    """A picture that a worker has read: the model's inputs, or why there are none."""

    file: str
    image: Tensor | None = None
    segments: Tensor | None = None
    error: str | None = None
    box: Box | None = None


class _Pictures(Dataset):
    """The pictures of :meth:`Predictor.predict`, as items."""

    def __init__(
        self,
        pictures: list[Picture],
        transform: Callable[[Image.Image], Tensor],
        config: HCastConfig,
        at_least: int | None = None,
    ):
        self.pictures, self.transform, self.config, self.at_least = pictures, transform, config, at_least

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> _Item:
        picture = self.pictures[index]
        file = picture_name(picture)
        box = picture.box if isinstance(picture, BoxedPicture) else None
        try:
            image = self.transform(read_picture(picture, at_least=self.at_least))
        except PictureError as error:
            return _Item(file, error=error.reason, box=box)

        segments = segment_images(image[None], self.config)[0]
        return _Item(file, image, segments, box=box)


def predict_named(
    predictor: Predictor, names: Iterable[str | BoxedPicture], batch_size: int = 16, workers: int = 0
) -> Iterator[Prediction]:
    """Yield the predictions of pictures by name, in order; for a container, those of all its pictures.

    Args:
        predictor: The model.
        names: Files, URIs of stores, parquet files; see :mod:`hcast_zoo.data.find`.
        batch_size: See :meth:`Predictor.predict`.
        workers: See :meth:`Predictor.predict`; pictures in stores and containers are read without workers.
    """
    for container, group in itertools.groupby(names, is_container):
        if not container:
            pictures: list[Any] = [_opened(name) for name in group]
            stored = any(isinstance(picture, StoredPicture) for picture in pictures)
            yield from predictor.predict(pictures, batch_size=batch_size, workers=0 if stored else workers)
            continue

        for name in map(str, group):
            pictures_inside = read_container(name)
            while chunk := list(itertools.islice(pictures_inside, AT_ONCE)):
                yield from predictor.predict(chunk, batch_size=batch_size)


def _opened(name: Any) -> Any:
    return StoredPicture(name) if isinstance(name, str) and is_stored(name) else name
