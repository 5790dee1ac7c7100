"""HierarchicalDataset: the core's readers, and mmpretrain's own data sets, with a label for every level."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from hcast_zoo.data.dataset import HierarchicalDataset as CoreDataset
from hcast_zoo.paper.trees import leaf_ids
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import UNKNOWN, Taxonomy

from .config import load_taxonomy
from .transforms import check_pipeline


@DATASETS.register_module()
class HierarchicalDataset(BaseDataset):
    """Pictures labelled along a taxonomy.

    A sample has ``img_path`` (or ``img_bytes``, from parquet), ``gt_path`` (the label of each level, coarse to fine, -1
    for unknown) and ``gt_label``, the finest level's, so that mmpretrain's own code for labels still works.
    ``metainfo`` holds ``classes`` (names of the finest level) and ``taxonomy`` (plain data).

    Args:
        source: A ``.csv``, ``.jsonl`` or ``.parquet`` file, or a tree of folders (``source/split/order/family/...``),
            as :meth:`hcast_zoo.HierarchicalDataset.load` reads; or the config of a data set of mmpretrain, such as
            ``dict(type="CUB", data_root="data/CUB_200_2011", split="train")``, whose classes are the finest level.
        taxonomy: See :func:`.config.load_taxonomy`; by default the source's, if it has one.
        split: Part of the source (an mmpretrain data set has its own setting).
        match: How the classes of an mmpretrain data set are matched with the finest level: by ``"name"``; by
            ``"order"``, if the taxonomy has no names; or by the taxonomy's ``"id"`` of a leaf (an ImageNet class
            such as n01440764), which leaves out pictures of other classes.
        data_root: Folder that ``source`` is relative to.
        pipeline: Transforms.
        kwargs: For mmpretrain's BaseDataset: ``test_mode``, ``indices``, ``serialize_data``, ``max_refetch``.

    Raises:
        ValueError: if the source cannot be read, its labels are not in the taxonomy, or the pipeline does not make
            the superpixel map that it packs.
    """

    def __init__(
        self,
        source: str | Path | Mapping,
        taxonomy: str | Mapping | Taxonomy | None = None,
        split: str | None = None,
        match: str = "name",
        data_root: str = "",
        pipeline: Sequence[dict | Callable] = (),
        **kwargs,
    ):
        if match not in ("name", "order", "id"):
            raise ValueError(f"match: expected 'name', 'order' or 'id', got {match!r}")
        if isinstance(source, Mapping) and (taxonomy is None or split is not None):
            raise ValueError("around a data set of mmpretrain, expected a taxonomy, and the split in its own config")
        self.source, self.split, self.match = source, split, match
        self.taxonomy = None if taxonomy is None else load_taxonomy(taxonomy)
        self.leaf_ids = leaf_ids(taxonomy) if match == "id" else None
        super().__init__(
            ann_file="" if isinstance(source, Mapping) else str(source),
            data_root=data_root,
            pipeline=pipeline,
            **kwargs,
        )
        check_pipeline(self.pipeline.transforms)

    def load_data_list(self) -> list[dict]:
        """Read the samples' files and labels."""
        rows = self._wrapped_rows() if isinstance(self.source, Mapping) else self._file_rows()
        self._metainfo.update(classes=self.taxonomy.names[-1], taxonomy=self.taxonomy.to_dict())
        return rows

    def _file_rows(self) -> list[dict]:
        dataset = CoreDataset.load(Path(self.ann_file).expanduser(), self.taxonomy, self.split)
        self.taxonomy = dataset.taxonomy
        rows = []
        for picture, labels in zip(dataset.pictures, dataset.labels.tolist()):
            if isinstance(picture, bytes):
                rows.append(self._row("img_bytes", picture, labels))
            else:
                rows.append(self._row("img_path", str(picture), labels))

        return rows

    def _wrapped_rows(self) -> list[dict]:
        dataset = DATASETS.build(dict(self.source))
        leaves = self._leaves(dataset.CLASSES)
        last = len(self.taxonomy.levels) - 1
        rows = []
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            leaf = leaves[int(info["gt_label"])]
            if leaf is not None:
                rows.append(self._row("img_path", info["img_path"], self.taxonomy.path_to(last, leaf)))

        if not rows:
            raise TaxonomyError(f"{dict(self.source)}: no picture has a label of the taxonomy {self.taxonomy.name!r}")
        return rows

    def _leaves(self, classes: Sequence[str] | None) -> list[int | None]:
        """Return, for each class of an mmpretrain data set, its node at the finest level, or None to leave it out."""
        names = self.taxonomy.names[-1]
        if self.match == "order":
            if classes is not None and len(classes) != len(names):
                raise TaxonomyError(
                    f"the data set has {len(classes)} classes, the level {self.taxonomy.levels[-1]!r} "
                    f"of the taxonomy {len(names)}"
                )
            return list(range(len(names)))

        if classes is None:
            raise TaxonomyError(
                "the data set has no names for its classes: give match='order' if they are in the taxonomy's order"
            )

        if self.match == "id":
            index = {leaf_id: i for i, leaf_id in enumerate(self.leaf_ids)}
            known = set(classes)
            if missing := [leaf_id for leaf_id in self.leaf_ids if leaf_id not in known]:
                raise TaxonomyError(
                    f"the data set lacks {len(missing)} of the {len(index)} classes of the taxonomy, "
                    f"such as {', '.join(missing[:3])}"
                )
            return [index.get(name) for name in classes]

        path = [None] * (len(self.taxonomy.levels) - 1)
        return [self.taxonomy.labels([*path, name])[-1] for name in classes]

    def _row(self, key: str, picture: str | bytes, labels: Sequence[int]) -> dict:
        return {key: picture, "gt_path": [int(label) for label in labels], "gt_label": int(labels[-1])}

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the finest label in a list, empty if it is unknown."""
        return [label for label in super().get_cat_ids(idx) if label != UNKNOWN]

    def extra_repr(self) -> list[str]:
        """Return lines for ``repr``."""
        return [
            f"Source: \t{self.source}",
            f"Split: \t{self.split}",
            f"Levels: \t{self.taxonomy and dict(zip(self.taxonomy.levels, self.taxonomy.level_classes))}",
        ]
