"""HierarchicalMetric: accuracy of each level, FPA, TICE and wAP."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy

from .config import load_taxonomy


@METRICS.register_module()
class HierarchicalMetric(BaseMetric):
    """Metrics of hierarchical classification in percent; see :class:`hcast_zoo.HierarchicalMetrics`.

    Gives ``hierarchical/fpa``, ``/tice``, ``/wap`` and ``/accuracy/LEVEL``.

    Args:
        taxonomy: See :func:`.config.load_taxonomy`; by default the data set's.
        decoders: Decodings to compare; each becomes part of the names, as in ``hierarchical/top_down/fpa``. By
            default, the path that the head chose.
        collect_device: Where distributed results are collected.
        prefix: Prefix of the names in place of ``hierarchical``.

    Raises:
        ValueError: if a decoder is unknown, or the levels of predictions and taxonomy disagree.
    """

    default_prefix = "hierarchical"

    def __init__(
        self,
        taxonomy: str | Mapping | Taxonomy | None = None,
        decoders: Sequence[str] = (),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        if unknown := [d for d in decoders if d not in DECODERS]:
            raise ValueError(f"unknown decoders {unknown}: expected some of {', '.join(DECODERS)}")
        self.decoders = tuple(decoders)
        self._taxonomy = None if taxonomy is None else load_taxonomy(taxonomy)

    @property
    def taxonomy(self) -> Taxonomy:
        """The given taxonomy, or the data set's."""
        if self._taxonomy is None:
            if "taxonomy" not in (self.dataset_meta or {}):
                raise ValueError("HierarchicalMetric has no taxonomy: give it one, or use HierarchicalDataset")
            self._taxonomy = load_taxonomy(self.dataset_meta["taxonomy"])
        return self._taxonomy

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the labels and the paths of a batch."""
        if not all("gt_path" in sample for sample in data_samples):
            raise ValueError(
                "data samples have no gt_path, the label of each level: use HierarchicalDataset and "
                "PackHierarchicalInputs"
            )

        labels = [sample["gt_path"].cpu() for sample in data_samples]
        if self.decoders:
            samples_by_level = zip(*[sample["level_logits"] for sample in data_samples])
            level_logits = list(map(torch.stack, samples_by_level))
            by_decoder = [decode(level_logits, self.taxonomy, mode).paths.cpu() for mode in self.decoders]
            paths = zip(*by_decoder)
        else:
            paths = [(sample["pred_path"].cpu(),) for sample in data_samples]

        self.results += zip(labels, paths)

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Return the metrics over all samples."""
        labels, paths = zip(*results)
        metrics = {}
        for index, mode in enumerate(self.decoders or ("",)):
            accumulator = HierarchicalMetrics(self.taxonomy)
            accumulator.update(torch.stack([path[index] for path in paths]), torch.stack(labels))
            for name, value in accumulator.compute().items():
                metrics[f"{mode}/{name}" if mode else name] = value

        return metrics
