"""The `>>>` examples of the docstrings print what they say."""

import doctest
import importlib

import pytest
import torch

from hcast_zoo import Taxonomy

MODULES = {
    "taxonomy.tree": {"Taxonomy.from_paths", "Taxonomy.find", "Taxonomy.labels"},
    "taxonomy.decode": {"decode", "node_probabilities"},
    "taxonomy.backoff": {"back_off"},
    "evaluation.metrics": {
        "full_path_accuracy",
        "level_accuracy",
        "tree_inconsistency",
        "weighted_average_precision",
        "HierarchicalMetrics",
    },
    "training.losses": {"HierarchicalLoss", "level_cross_entropy", "tree_path_kl", "soft_targets"},
}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_the_output_shown(name):
    """Examples may use torch, Taxonomy and the module's own names without an import."""
    module = importlib.import_module(f"hcast_zoo.{name}")
    names = {**vars(module), "torch": torch, "Taxonomy": Taxonomy}
    tests = [test for test in doctest.DocTestFinder().find(module, globs=names) if test.examples]
    assert {test.name.removeprefix(f"{module.__name__}.") for test in tests} >= MODULES[name]

    report: list[str] = []
    runner = doctest.DocTestRunner()

    for test in tests:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
