"""TaxonomyCheckHook: stop before the first step if the model and a data set disagree about the levels."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from .config import load_taxonomy


@HOOKS.register_module()
class TaxonomyCheckHook(Hook):
    """Compare the taxonomy of each data set with the levels of the head before training, validation and test.

    Raises:
        ValueError: if they disagree; the message gives both.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the training set, and also the validation set, which would otherwise fail only after an epoch."""
        self._check(runner, "training", runner.train_dataloader)
        if runner.val_loop is not None:
            self._check(runner, "validation", runner.val_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Check the validation set."""
        self._check(runner, "validation", runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check(runner, "test", runner.test_dataloader)

    def _check(self, runner: Runner, part: str, loader) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        levels = getattr(getattr(model, "head", None), "level_classes", None)
        taxonomy = getattr(loader.dataset, "metainfo", {}).get("taxonomy")
        if levels is None or taxonomy is None:
            return
        classes = tuple(map(len, taxonomy["names"]))
        if classes != levels:
            raise ValueError(
                f"the {part} set's taxonomy {taxonomy.get('name', '')!r} has levels of {classes} classes, "
                f"the head of {levels}: give both the same taxonomy"
            )

        data, head = load_taxonomy(taxonomy), model.head.taxonomy
        if head is not None and (data.names, data.parents) != (head.names, head.parents):
            raise ValueError(
                f"the {part} set's taxonomy has as many classes as the head's, but other names or "
                "parents: give both the same taxonomy"
            )
