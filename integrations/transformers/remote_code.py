"""Remote code: our modules as flat files that a Hub repository carries, for users without hcast-zoo.

``AutoModel.from_pretrained(repo, trust_remote_code=True)`` copies the files into one folder and imports one, so they
import each other as ``from .name import ...``, and nothing from hcast_zoo. The files are generated from the installed
modules when a repository is written; nobody edits them.
"""

import ast
import importlib.resources
import itertools
import json
import re
from pathlib import Path

CORE = {  # folder of hcast_zoo: its modules that become files; no two share a name
    "common": ("choices", "files", "formats", "text", "walk"),
    "data": ("boxes", "pictures", "tar_shards", "transforms"),
    "network": (
        *("config", "efficientnet", "embedding", "encoder", "feature_maps", "graph_pooling", "layers"),
        *("memory", "model", "sampling_kernel", "slic", "stems", "superpixels"),
    ),
    "taxonomy": (
        *("backoff", "calibration", "columns", "decode", "lookup"),
        *("names", "paths", "rollup", "sources", "subtree", "tree"),
    ),
    "training": ("losses",),
}
CORE_MODULES = tuple(itertools.chain.from_iterable(CORE.values()))
MODULES = ("configuration_hcast", "image_processing_hcast", "modeling_hcast", "outputs_hcast", "pipeline_hcast")
AUTO_MAP = {
    "AutoBackbone": "modeling_hcast.HCastBackbone",
    "AutoConfig": "configuration_hcast.HCastConfig",
    "AutoImageProcessor": [
        "image_processing_hcast.HCastImageProcessorPil",
        "image_processing_hcast.HCastImageProcessor",
    ],
    "AutoModel": "modeling_hcast.HCastModel",
    "AutoModelForImageClassification": "modeling_hcast.HCastForImageClassification",
}
CUSTOM_PIPELINES = {
    "image-classification": {  # transformers' own task, with pictures read as in the core
        "impl": "pipeline_hcast.FinestLabelPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    },
    "hierarchical-image-classification": {
        "impl": "pipeline_hcast.HierarchicalImageClassificationPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    },
}
HEADER = "# Generated from hcast-zoo (MIT licence). Do not edit: change hcast-zoo and publish again.\n"


class RemoteCodeError(RuntimeError):
    """A module cannot be made self-contained; the message names the module and the import."""


def generate_remote_code() -> dict[str, str]:
    """Return the files: name to Python source.

    Raises:
        RemoteCodeError: if a module imports something from hcast_zoo that is not among the files.
    """
    packages = [*((f"hcast_zoo.{room}", modules) for room, modules in CORE.items()), (__package__, MODULES)]
    sources = {}
    for package, modules in packages:
        folder = importlib.resources.files(package)
        for module in modules:
            sources[module] = folder.joinpath(f"{module}.py").read_text(encoding="utf-8")

    files = {f"{module}.py": HEADER + flatten(source) for module, source in sources.items()}
    for name, source in files.items():
        check_self_contained(name, source)

    return files


def flatten(source: str) -> str:
    """Rewrite imports from ``hcast_zoo.folder.module`` or ``..folder.module`` as imports from the file ``.module``."""
    return re.sub(r"^from (?:hcast_zoo\.|\.\.)\w+\.(\w+) import ", r"from .\1 import ", source, flags=re.MULTILINE)


def check_self_contained(name: str, source: str) -> None:
    """Raise RemoteCodeError unless a file imports our modules only as ``from .name import``, from the other files."""
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.Import):
            wrong = [alias.name for alias in node.names if alias.name.split(".")[0] == "hcast_zoo"]
        elif not isinstance(node, ast.ImportFrom):
            continue
        elif node.level == 0:
            wrong = [node.module] if node.module.split(".")[0] == "hcast_zoo" else []
        else:
            # transformers looks for `from .name import`, and would not copy the file of `from . import name`.
            beside = node.level == 1 and node.module in (*CORE_MODULES, *MODULES)
            wrong = [] if beside else ["." * node.level + (node.module or "")]

        if wrong:
            raise RemoteCodeError(
                f"{name} line {node.lineno} imports {wrong[0]}: expected `from .name import ...` of "
                f"one of {', '.join((*CORE_MODULES, *MODULES))}"
            )


def write_remote_code(folder: str | Path) -> list[Path]:
    """Write the files into a folder in which a model and an image processor have been saved.

    ``config.json`` and ``preprocessor_config.json`` get the ``auto_map`` that points the Auto classes to them.

    Returns:
        The written files; the two JSON files come last.
    """
    folder, written = Path(folder), []
    for name, source in generate_remote_code().items():
        path = folder / name
        path.write_text(source, encoding="utf-8")
        written.append(path)

    additions = {
        "config.json": {
            "auto_map": AUTO_MAP,
            "custom_pipelines": CUSTOM_PIPELINES,
            "image_processor_type": "HCastImageProcessor",
        },
        "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}},
    }
    for name, fields in additions.items():
        path = folder / name
        data = {**json.loads(path.read_text(encoding="utf-8")), **fields}
        path.write_text(json.dumps(data, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written.append(path)

    return written


__all__ = ["AUTO_MAP", "CUSTOM_PIPELINES", "RemoteCodeError", "generate_remote_code", "write_remote_code"]
