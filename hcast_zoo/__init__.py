"""H-CAST: images classified along a taxonomy, every level reading its label from one fine-to-coarse segmentation."""

import functools
import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import wrapt

__version__ = "0.2.0"

# Public name -> module. Loaded on first use, so that `import hcast_zoo` costs nothing and imports no torch.
_PUBLIC = {
    "AdaptConfig": "adaptation.config",
    "Calibration": "taxonomy.calibration",
    "HCast": "network.model",
    "HCastConfig": "network.config",
    "HCastOutput": "network.model",
    "HierarchicalDataset": "data.dataset",
    "HierarchicalLoss": "training.losses",
    "HierarchicalMetrics": "evaluation.metrics",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "Taxonomy": "taxonomy.tree",
    "TaxonomyError": "taxonomy.sources",
    "VARIANTS": "network.config",
    "convert_official": "weights.official",
    "load_model": "weights.file",
    "roll_up": "taxonomy.rollup",
}
__all__ = ["__version__", *sorted(_PUBLIC)]

# Module of a framework -> the hook that registers us with it as soon as the user's own code has imported it, or at once
# if it already has. Importing all frameworks ourselves would take over ten seconds.
_INTEGRATIONS: dict[str, str] = {
    "timm": "timm:register",
    "transformers.models.auto.configuration_auto": "transformers:register_config",
    "transformers.models.auto.image_processing_auto": "transformers:register_image_processor",
    "transformers.models.auto.modeling_auto": "transformers:register_models",
    "transformers.modeling_layers": "transformers:register_models",
    "transformers.trainer": "transformers:register_label_smoothing",
    "transformers.utils.hub": "transformers:register_packaged_names",
    "transformers.pipelines": "transformers:register_pipeline",
    "transformers.pipelines.image_classification": "transformers:register_stock_pipelines",
    "transformers.pipelines.image_feature_extraction": "transformers:register_stock_pipelines",
    # Where the user imports these first, they import the modules above before they can be registered.
    f"{__name__}.integrations.transformers.modeling_hcast": "transformers:register_models",
    f"{__name__}.integrations.transformers.pipeline_hcast": "transformers:register_pipeline",
    "mmengine": "mmpretrain.hcast:register_configs",
    "mmengine.runner.checkpoint": "mmpretrain.hcast:register_checkpoints",
    "mmpretrain": "mmpretrain.hcast:register",
    **{
        f"{__name__}.integrations.mmpretrain.{part}": "mmpretrain.hcast:register"
        for part in ("backbone", "classifier", "head", "inferencer", "preprocessor", "transforms")
    },
}
_failed: set[str] = set()  # frameworks that we have warned about


def _register(hook: str, framework: ModuleType) -> None:
    """Run the hook of a framework's module. If it fails, the user's own import still succeeds, with one warning."""
    module, _, function = hook.partition(":")
    try:
        getattr(importlib.import_module(f"{__name__}.integrations.{module}"), function)(framework)
    except Exception as error:
        name = framework.__name__.split(".")[0]
        if name == __name__:
            name = module.split(".")[0]
        if name in _failed:
            return

        _failed.add(name)
        version = getattr(sys.modules.get(name), "__version__", "of unknown version")
        text = "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}"[:300])
        warnings.warn(
            f"hcast-zoo {__version__} is not registered with {name} {version} ({text}); {name} works without it. "
            f"Try: pip install -U hcast-zoo {name}, or reinstall hcast-zoo",
            stacklevel=2,
        )


for _module, _hook in _INTEGRATIONS.items():
    wrapt.register_post_import_hook(functools.partial(_register, _hook), _module)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
