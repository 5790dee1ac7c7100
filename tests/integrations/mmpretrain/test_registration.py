"""`import hcast_zoo` registers in any order, imports no framework, and needs no other part of mmpretrain."""

import os
import subprocess
import sys

import pytest

MODELS = "from mmpretrain.registry import MODELS, TRANSFORMS, DATASETS, METRICS; import mmpretrain; "
CHECK = (
    MODELS + "assert MODELS.get('HCast') and TRANSFORMS.get('GenerateSuperpixels') "
    "and DATASETS.get('HierarchicalDataset') and METRICS.get('HierarchicalMetric'); "
    "assert len(mmpretrain.list_models('hcast*')) == 11"
)


def run(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert "is not registered" not in result.stderr
    assert "not installed" not in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "first, then",
    [
        ("import hcast_zoo", "import mmpretrain"),
        ("import mmpretrain", "import hcast_zoo"),
        ("import mmengine.runner", "import hcast_zoo, mmpretrain"),
        ("from hcast_zoo.integrations.mmpretrain.inferencer import HierarchicalInferencer", "import mmpretrain"),
        ("from hcast_zoo.integrations.mmpretrain.classifier import HierarchicalClassifier", "import mmpretrain"),
    ],
    ids=lambda s: s.replace("import ", ""),
)
def test_imports_may_come_in_any_order(first, then):
    run(f"{first}; {then}; {CHECK}")


@pytest.mark.slow
def test_inheriting_needs_no_mmpretrain_import(tmp_path):
    """Reading a config that inherits ours imports mmengine alone; building from it finds the scope."""
    (tmp_path / "mine.py").write_text("_base_ = 'hcast_zoo::hcast/hcast-small_cub.py'\n")
    run(
        "import sys, hcast_zoo; from mmengine.config import Config; "
        f"c = Config.fromfile({str(tmp_path / 'mine.py')!r}); assert 'mmpretrain' not in sys.modules; "
        "from mmengine.registry import MODELS; c.model.backbone.arch = 'tiny'; c.model.head.in_channels = 192; "
        "assert type(MODELS.build(c.model)).__name__ == 'HierarchicalClassifier'"
    )


def test_our_scope_has_a_registry_for_each_of_mmpretrains():
    import mmengine.registry
    import mmpretrain.registry

    import hcast_zoo.registry  # noqa: F401

    for name in mmpretrain.registry.__all__:
        registry = getattr(mmpretrain.registry, name)
        if registry.parent is not None or registry.children:
            assert "hcast_zoo" in registry.children, name
    assert mmengine.registry.MODELS._search_child("hcast_zoo").get("HCast").__name__ == "HCast"
