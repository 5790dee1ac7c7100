"""`import hcast_zoo` is enough, before or after transformers, and imports nothing more of either."""

import subprocess
import sys
import warnings

import pytest

pytest.importorskip("transformers")

from hcast_zoo.integrations.transformers import HCastImageProcessor, from_core
from hcast_zoo.weights.file import load_weights

OURS = "hcast_zoo.integrations.transformers"
ORDERS = {
    "ours, then a model": "import hcast_zoo\nfrom transformers import ViTModel",  # which imports modeling_layers
    "ours, then an auto class": "import hcast_zoo\nfrom transformers import AutoModel",
    "ours, then Trainer": "import hcast_zoo\nfrom transformers import Trainer",
    "ours, then pipeline": "import hcast_zoo\nfrom transformers import pipeline",
    "our model first": f"from {OURS}.modeling_hcast import HCastModel",
    "our pipeline first": f"from {OURS}.pipeline_hcast import TASK",
    "our processor first": f"from {OURS}.image_processing_hcast import HCastImageProcessor",
    "transformers, then ours": "import transformers\nimport hcast_zoo",
    "everything, then ours": "from transformers import AutoImageProcessor, Trainer, pipeline\nimport hcast_zoo",
}
CHECK = """
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline)
folder = sys.argv[1]
print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder)).__name__,
      type(AutoModelForImageClassification.from_pretrained(folder)).__name__,
      *(type(AutoImageProcessor.from_pretrained(folder, backend=b)).__name__ for b in (None, "pil")),
      type(pipeline("image-classification", model=folder, device="cpu")).__name__,
      type(pipeline("hierarchical-image-classification", model=folder, device="cpu")).__name__)
"""
EXPECTED = (
    "HCastConfig HCastModel HCastForImageClassification HCastImageProcessor HCastImageProcessorPil "
    "ImageClassificationPipeline HierarchicalImageClassificationPipeline"
)


def run(code, *arguments):
    result = subprocess.run([sys.executable, "-c", f"import sys\n{code}", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip(), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", list(ORDERS))
def test_models_are_registered_in_any_order_of_imports(order, tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    from_core(weights).save_pretrained(tmp_path / "repo")
    HCastImageProcessor.from_core(weights.config).save_pretrained(tmp_path / "repo")
    output, messages = run(ORDERS[order] + CHECK, str(tmp_path / "repo"))
    assert output == EXPECTED
    assert "already registered" not in messages and "not supported" not in messages


@pytest.mark.slow
def test_importing_both_loads_nothing_more():
    names = "sorted(m for m in sys.modules if m.startswith(('torch', 'transformers')))"
    alone, _ = run(f"import transformers\nprint({names})")
    beside, _ = run(f"import hcast_zoo\nimport transformers\nprint({names})")
    after, _ = run(f"import transformers\nimport hcast_zoo\nprint({names})")
    assert alone == beside == after


def test_an_old_transformers_works_without_our_models(monkeypatch):
    import transformers.pipelines

    import hcast_zoo.integrations.transformers as package

    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    module = transformers.models.auto.configuration_auto
    with pytest.warns(UserWarning, match=r"needs transformers 5\.5 or later and is not registered with 4\.57\.6"):
        package.register_config(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        for register in (package.register_models, package.register_image_processor, package.register_pipeline):
            register(module)


@pytest.mark.parametrize(
    "version, supported",
    [
        ("5.5", True),
        ("5.24rc1", True),
        ("5.25.0.dev0", True),
        ("main", True),
        ("", True),
        ("6", True),
        ("5.4.9", False),
    ],
)
def test_versions_of_any_form_are_compared(version, supported):
    import hcast_zoo.integrations.transformers as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert package._is_new_enough(version) == supported


def test_every_public_name_of_transformers_can_be_imported():
    import hcast_zoo.integrations.transformers as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
