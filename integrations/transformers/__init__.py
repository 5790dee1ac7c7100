"""H-CAST for transformers: registered with its Auto classes and pipelines as soon as transformers has imported them.

The functions are post-import hooks (see ``hcast_zoo/__init__.py``). Each imports only those parts of hcast-zoo and of
transformers that the user's own code needs.
"""

import functools
import importlib
import sys
import warnings
from types import ModuleType

OLDEST = (5, 5)  # the oldest version that passes all our tests; image_processing_backends came in 5.4

# Public name -> module.
_PUBLIC = {
    "HCastBackbone": "modeling_hcast",
    "HCastConfig": "configuration_hcast",
    "HCastForImageClassification": "modeling_hcast",
    "HCastImageProcessor": "image_processing_hcast",
    "HCastImageProcessorPil": "image_processing_hcast",
    "HCastModel": "modeling_hcast",
    "HierarchicalImageClassificationPipeline": "pipeline_hcast",
    "HierarchicalImageClassifierOutput": "modeling_hcast",
    "compute_metrics": "training",
    "from_core": "conversion",
    "to_core": "conversion",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_config(module: ModuleType) -> None:
    """Register with AutoConfig, once ``transformers.models.auto.configuration_auto`` is imported."""
    if not _is_supported():
        return
    from .configuration_hcast import HCastConfig

    module.AutoConfig.register(HCastConfig.model_type, HCastConfig, exist_ok=True)


def register_models(module: ModuleType) -> None:
    """Register with the AutoModel classes, once ``transformers.models.auto.modeling_auto`` is imported."""
    auto = sys.modules.get("transformers.models.auto.modeling_auto")
    if auto is None or not _is_supported():
        return
    if _is_half_imported(f"{__name__}.modeling_hcast", "__all__") or _is_half_imported(
        "transformers.modeling_layers", "GradientCheckpointingLayer"
    ):
        return

    from .configuration_hcast import HCastConfig
    from .modeling_hcast import HCastBackbone, HCastForImageClassification, HCastModel
    from .packaged import register_backbone

    register_backbone(auto)
    auto.AutoBackbone.register(HCastConfig, HCastBackbone, exist_ok=True)
    auto.AutoModel.register(HCastConfig, HCastModel, exist_ok=True)
    auto.AutoModelForImageClassification.register(HCastConfig, HCastForImageClassification, exist_ok=True)


def register_image_processor(module: ModuleType) -> None:
    """Register with AutoImageProcessor, once ``transformers.models.auto.image_processing_auto`` is imported."""
    if not _is_supported():
        return

    from .configuration_hcast import HCastConfig
    from .image_processing_hcast import HCastImageProcessor, HCastImageProcessorPil

    module.AutoImageProcessor.register(
        HCastConfig,
        image_processor_classes={"torchvision": HCastImageProcessor, "pil": HCastImageProcessorPil},
        exist_ok=True,
    )


def register_pipeline(module: ModuleType) -> None:
    """Register the task "hierarchical-image-classification", once ``transformers.pipelines`` is imported."""
    pipelines = sys.modules.get("transformers.pipelines")
    if pipelines is None or not _is_supported() or _is_half_imported(f"{__name__}.pipeline_hcast", "__all__"):
        return

    from transformers.models.auto.modeling_auto import AutoModelForImageClassification

    from .pipeline_hcast import TASK, HierarchicalImageClassificationPipeline

    if TASK not in pipelines.PIPELINE_REGISTRY.supported_tasks:
        pipelines.PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=HierarchicalImageClassificationPipeline,
            pt_model=AutoModelForImageClassification,
            type="image",
        )


def register_packaged_names(module: ModuleType) -> None:
    """Let ``from_pretrained`` take the names of packaged weights, once ``transformers.utils.hub`` is imported."""
    if not _is_supported():
        return

    from .packaged import register

    register(module)


def register_label_smoothing(module: ModuleType) -> None:
    """Let Trainer's ``label_smoothing_factor`` smooth all levels, once ``transformers.trainer`` is imported."""
    if not _is_supported():
        return

    from .training import register

    register(module)


def register_stock_pipelines(module: ModuleType) -> None:
    """Let transformers' own image pipelines read pictures as the core does, if the model is H-CAST."""
    if not _is_supported():
        return

    from .stock_pipelines import register

    register(module)


def _is_half_imported(module: str, last_name: str) -> bool:
    """Tell whether a module is still being imported: whether a name that it defines late is missing.

    Our modules import modules that trigger the hooks, and ``transformers.modeling_layers`` imports ``modeling_auto``
    itself. A hook then has to wait; the hook on the module being imported runs later and does the work.
    """
    return module in sys.modules and not hasattr(sys.modules[module], last_name)


def _is_supported() -> bool:
    """Tell whether we support this version of transformers; an older one must keep working without us."""
    return _is_new_enough(str(getattr(sys.modules["transformers"], "__version__", "")))


@functools.cache
def _is_new_enough(version: str) -> bool:
    """Tell whether a version is ``OLDEST`` or later, and warn once if not; one that is not a number counts as later."""
    from packaging.version import InvalidVersion, Version

    try:
        if Version(version).release[:2] >= OLDEST:
            return True
    except InvalidVersion:  # "main", or none at all
        return True
    warnings.warn(
        f"H-CAST needs transformers {'.'.join(map(str, OLDEST))} or later and is not registered with "
        f"{version}: pip install -U transformers",
        stacklevel=2,
    )
    return False
