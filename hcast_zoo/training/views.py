"""Views of pictures: the features that a frozen stem gives their superpixels, computed once and kept in a folder.

A picture has a plain view, as evaluation sees it, and several augmented ones, of which each epoch takes one. A view is
a file named by the hash of the picture. So copies of a picture share their views, an interrupted run continues where
it stopped, and runs with the same stem and augmentation can share a folder.
"""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..common.claim import claim, digest_of
from ..common.files import whole_file
from ..common.processes import ALONE, Processes
from ..common.progress import hides_bars
from ..data.dataset import HierarchicalDataset
from ..data.loading import SuperpixelCollate, start_quietly, start_workers
from ..data.pictures import content_digest
from ..network.config import HCastConfig
from ..network.model import HCast
from ..network.stems import SuperpixelMeans
from ..weights.file import tensors_digest
from .settings import TrainConfig

FOLDER = "views"  # in a run's folder
PLAN = "views.json"
PLAIN = "plain"
SEED = 0  # seed of the augmentation, whatever the seed of the run, so that runs share the views
BATCH = 16  # pictures per batch of the stem
AUGMENTATIONS = ("auto_augment", "color_jitter", "random_erasing", "crop_scale", "hflip", "random_background")
PREPROCESSING = (
    *("image_size", "in_chans", "superpixels", "num_superpixels", "mean", "std", "interpolation", "crop_pct"),
    "crop_mode",
)
STEM = ("stem", "stem_strides", "stem_final", "grouping")


class ViewFolder:
    """The folder of the views that a frozen stem gives with one augmentation.

    Args:
        folder: Where the files are; created if it does not exist.
        model: A model with a frozen stem.
        settings: The augmentation.

    Raises:
        ValueError: if the folder holds views of another stem, preprocessing or augmentation.
    """

    def __init__(self, folder: str | Path, model: HCast, settings: TrainConfig):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        claim(
            self.folder / PLAN,
            {
                "stem": {**_fields(model.config, STEM), "stem_sha256": tensors_digest(model.stem.body.state_dict())},
                "preprocessing": _fields(model.config, PREPROCESSING),
                "augmentation": _fields(settings, AUGMENTATIONS),
            },
            holds="views of another stem or augmentation",
            mend="choose another folder with --view-cache, or delete this one",
        )

    def file(self, key: str, view: int | str) -> Path:
        """Return the file of a picture's view.

        Args:
            key: The picture's :func:`view_key`.
            view: Number, or ``PLAIN``.
        """
        return self.folder / key[:2] / f"{key}.{view}.safetensors"

    def view_seed(self, key: str, view: int | str) -> int:
        """Return the seed of a view's augmentation, which is the same in every run."""
        return int(digest_of([SEED, key, view])[:8], 16)

    def read(self, key: str, view: int | str) -> dict[str, Tensor] | None:
        """Return a view's tensors, without a batch dimension; None if the picture could not be read.

        Raises:
            ValueError: if the file is damaged.
        """
        file = self.file(key, view)
        if not file.exists():
            return None

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}): delete it, and run the same command again") from error


class ViewSet(Dataset):
    """The views of a data set's pictures, to train on instead of images.

    An item is a dictionary of a view's tensors, and the (L,) labels; or None for a picture that could not be read. An
    index with a seed, ``(index, seed)``, selects one of the augmented views, a plain index the plain one.

    Args:
        dataset: Pictures with labels.
        folder: Where the views are, or will be.
        count: Augmented views of each picture; 0 for the plain one.
    """

    def __init__(self, dataset: HierarchicalDataset, folder: ViewFolder, count: int = 0):
        self.dataset, self.folder, self.count = dataset, folder, count
        self.taxonomy, self.labels = dataset.taxonomy, dataset.labels
        self.keys = [view_key(picture) for picture in dataset.pictures]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[dict[str, Tensor], Tensor] | None:
        view: int | str = PLAIN
        if isinstance(index, tuple):
            index, seed = index
            view = seed % self.count if self.count else PLAIN

        tensors = self.folder.read(self.keys[index], view)
        return None if tensors is None else (tensors, self.labels[index])

    @staticmethod
    def collate(batch: list[tuple[dict[str, Tensor], Tensor] | None]) -> dict | None:
        """Return ``images`` (averages over superpixels), ``segments``, ``labels``, and ``targets``, equal to labels."""
        samples = [sample for sample in batch if sample is not None]
        if not samples:
            return None

        views = [view for view, _ in samples]
        stacked = {key: torch.stack([view[key] for view in views]) for key in views[0]}
        labels = torch.stack([labels for _, labels in samples])
        return {
            "images": SuperpixelMeans(
                stacked["features"].float(),
                stacked["descriptor"].float() if "descriptor" in stacked else None,
                stacked["area"].float(),
            ),
            "segments": stacked["segments"].long(),
            "labels": labels,
            "targets": labels,
        }

    def all_views(self) -> list[tuple[int, int | str]]:
        """Return the index and view of all views that the folder should hold; copies of a picture count once."""
        views: list[int | str] = [*range(self.count)] if self.count else [PLAIN]
        first: dict[str, int] = {}
        for index, key in enumerate(self.keys):
            first.setdefault(key, index)

        return list(itertools.product(first.values(), views))

    def missing(self) -> list[tuple[int, int | str]]:
        """Return the index and view of each view that is not in the folder yet."""
        return [view for view in self.all_views() if not self._has(view)]

    def _has(self, view: tuple[int, int | str]) -> bool:
        return self.folder.file(self.keys[view[0]], view[1]).exists()

    def make(self, model: HCast, workers: int = 0, processes: Processes = ALONE) -> None:
        """Make the missing views; each process makes its share, and waits for the others.

        The last bits of features depend on the batch in which they are computed. So batches are always the same parts
        of the list of all views, and a batch with a missing view is computed as a whole: a resumed run is equal to the
        bit.

        Args:
            model: A model with a frozen stem.
            workers: Processes that read pictures and compute superpixels.
            processes: The processes that share the work.

        Raises:
            OSError: if the folder has no room.
        """
        views = self.all_views()
        batches = [views[start : start + BATCH] for start in range(0, len(views), BATCH)]
        batches = [batch for batch in batches if not all(map(self._has, batch))]
        share = list(itertools.chain.from_iterable(batches[i] for i in processes.share(len(batches))))
        if share:
            _check_room(self.folder.folder, len(self.missing()), model.config, model.stem.proj.in_features)

        title = "augmented views" if self.count else "views"
        hidden = not (processes.is_main and share) or hides_bars()
        with tqdm(total=len(share), desc=title, disable=hidden, leave=False) as bar:
            for made, tensors in self._run(model, share, workers):
                for number, (index, view) in enumerate(made):
                    sample = {name: tensor[number].contiguous() for name, tensor in tensors.items()}
                    self._write(self.keys[index], view, sample)
                bar.update(len(made))

        processes.gather(None)

    @torch.inference_mode()
    def _run(
        self, model: HCast, missing: list[tuple[int, int | str]], workers: int
    ) -> Iterator[tuple[list[tuple[int, int | str]], dict[str, Tensor]]]:
        """Yield, for each batch, the index and view of its samples and the tensors that the stem gives for them."""
        device = next(model.parameters()).device
        images = _MissingViews(self, missing)
        collate = SuperpixelCollate(model.config, device=torch.device("cpu"))
        loader = DataLoader(
            images,
            BATCH,
            num_workers=workers,
            collate_fn=functools.partial(_collate, collate=collate),
            worker_init_fn=start_quietly,
        )
        number = model.config.num_superpixels
        training = model.training
        model.eval()
        try:
            for positions, batch in start_workers(loader):
                if not positions:
                    continue

                segments = batch["segments"].to(device)
                means = model.superpixel_means(batch["images"].to(device), segments, number)
                tensors = {"features": means.features.half().cpu(), "area": means.area.to(torch.int32).cpu()}
                if means.descriptor is not None:
                    tensors["descriptor"] = means.descriptor.half().cpu()
                tensors["segments"] = batch["segments"].to(torch.uint8 if number <= 256 else torch.int32)
                yield [missing[position] for position in positions], tensors
        finally:
            model.train(training)

    def _write(self, key: str, view: int | str, tensors: dict[str, Tensor]) -> None:
        file = self.folder.file(key, view)
        file.parent.mkdir(exist_ok=True)
        with whole_file(file, sync=False) as temporary:  # a damaged view is reported when it is read
            save_file(tensors, temporary)


class _MissingViews(Dataset):
    """The images of the views to be made, with their position in the list."""

    def __init__(self, views: ViewSet, missing: list[tuple[int, int | str]]):
        self.views, self.missing = views, missing

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, position: int) -> tuple[int, tuple] | None:
        index, view = self.missing[position]
        seed = self.views.folder.view_seed(self.views.keys[index], view)
        sample = self.views.dataset[index, seed]
        return None if sample is None else (position, sample)


def _collate(batch: list[tuple[int, tuple] | None], collate: SuperpixelCollate) -> tuple[list[int], dict | None]:
    """Return the positions of the samples that could be read, and their batch."""
    samples = [sample for sample in batch if sample is not None]
    return [position for position, _ in samples], collate([sample for _, sample in samples])


def view_key(picture: str | Path | bytes) -> str:
    """Return the SHA-256 of a picture's content, or, if its file cannot be read, of the file's name."""
    try:
        return content_digest(picture)
    except OSError:
        return content_digest(str(picture).encode(errors="surrogateescape"))


def view_bytes(config: HCastConfig, features: int) -> int:
    """Return about how many bytes a view takes: a stem's features in float16, and the segments."""
    return 2 * config.num_superpixels * features + config.image_size**2


def _check_room(folder: Path, count: int, config: HCastConfig, features: int) -> None:
    needed, free = count * view_bytes(config, features), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: {count} views take about {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free: "
            "choose another folder with --view-cache, fewer --augment-views, or 0 for augmentation on the fly"
        )


def _fields(data: HCastConfig | TrainConfig, names: tuple[str, ...]) -> dict:
    return {name: value for name, value in dataclasses.asdict(data).items() if name in names}
