"""The package as a whole: directions of imports, contents of the wheel, packaged weights."""

import ast
import graphlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hcast_zoo
from hcast_zoo.weights.file import build_model, load_weights, packaged_weights
from tests.wheel import build_wheel

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"timm", "transformers", "mmengine", "mmcv", "mmpretrain", "accelerate", "gradio"}


def imports(file):
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_core_imports_no_framework():
    """Exceptions: the trainer uses timm and accelerate, pretrained stems use timm, and the demo uses gradio."""
    core = ROOT / "hcast_zoo"
    allowed = {
        "training/augmentation.py": {"timm"},
        "training/average.py": {"timm"},
        "training/batches.py": {"accelerate"},
        "training/optimizer.py": {"timm"},
        "training/repeated.py": {"timm"},
        "training/run_log.py": {"accelerate"},
        "training/start.py": {"timm"},
        "training/teacher.py": {"timm"},
        "training/trainer.py": {"timm", "accelerate"},
        "demo/app.py": {"gradio"},
        "demo/guard.py": {"gradio"},
        "network/stems.py": {"timm"},  # imported inside a function, for a pretrained stem
    }
    files = list(core.rglob("*.py"))
    assert len(files) > 60
    for file in files:
        name = file.relative_to(core).as_posix()
        used = {module.split(".")[0] for module in imports(file)} & FRAMEWORKS
        assert used <= allowed.get(name, set()), name
        assert not any("integrations" in module for module in imports(file)), name


def test_an_integration_imports_only_the_core_and_its_framework():
    for folder in (p for p in (ROOT / "integrations").iterdir() if p.is_dir()):
        allowed = {"mmpretrain": {"mmengine", "mmcv", "mmpretrain"}}.get(folder.name, {folder.name})
        for file in folder.rglob("*.py"):
            depth = len(file.relative_to(folder).parts)
            for name in imports(file):
                dots = len(name) - len(name.lstrip("."))
                other = name.startswith("hcast_zoo.integrations") and f"integrations.{folder.name}." not in name
                assert dots <= depth and not other, (file, name)
                assert not {name.split(".")[0]} & (FRAMEWORKS - allowed), (file, name)


# Each subpackage may import only those before it.
PACKAGES = (
    "common",
    "network",
    "taxonomy",
    "data",
    "weights",
    "evaluation",
    "inference",
    "inspection",
    "segments",
    "adaptation",
    "paper",
    "training",
    "sharing",
    "demo",
    "cli",
)


def test_packages_import_in_one_direction():
    core = ROOT / "hcast_zoo"
    assert {folder.parent.name for folder in core.glob("*/__init__.py")} == set(PACKAGES)
    edges = set()
    for file in core.glob("*/*.py"):
        package = file.parent.name
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level != 2:
                continue
            others = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            edges.update((package, other, f"{file.name}:{node.lineno}") for other in others if other in PACKAGES)

    assert len(edges) > 100
    backwards = [edge for edge in edges if PACKAGES.index(edge[1]) > PACKAGES.index(edge[0])]
    assert not backwards


def test_package_init_files_do_not_import_torch():
    """``hcast-zoo --help`` imports them."""
    modules = [f"hcast_zoo.{package}" for package in PACKAGES]
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_every_public_name_can_be_imported():
    for name in hcast_zoo.__all__:
        assert getattr(hcast_zoo, name) is not None

    with pytest.raises(AttributeError, match="nothing"):
        hcast_zoo.nothing  # noqa: B018
    assert "HCast" in dir(hcast_zoo)


def test_importing_the_package_loads_no_framework():
    code = "import sys, hcast_zoo; print(any(m in sys.modules for m in ('torch', 'timm', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("name", list(packaged_weights()))
def test_packaged_weights_load(name):
    weights = load_weights(name)
    assert weights.taxonomy.level_classes == weights.config.level_classes
    assert weights.metadata["license"] and weights.metadata["name"] == name
    assert build_model(weights).config == weights.config


@pytest.mark.slow
def test_the_wheel_is_complete_and_predicts_offline(tmp_path):
    """The wheel holds all files of the package folder, and works without a network when unpacked elsewhere."""
    wheel = zipfile.ZipFile(build_wheel(tmp_path))
    names = set(wheel.namelist())

    listed = subprocess.run(
        ["git", "ls-files", "hcast_zoo", "integrations", "recipes/paper", "tests/pictures"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    folders = {
        "integrations/": "hcast_zoo/integrations/",
        "recipes/paper/": "hcast_zoo/paper/recipes/",
        "tests/pictures/": "hcast_zoo/pictures/",
    }
    listed = {re.sub(f"^({'|'.join(folders)})", lambda m: folders[m[1]], f) for f in listed.stdout.split()}

    assert not listed - names
    assert not any(n.startswith(("tests/", "integrations/", "recipes/")) for n in names)

    if not packaged_weights():
        pytest.skip("no packaged weights yet")

    wheel.extractall(tmp_path / "site")
    picture = next((ROOT / "tests/pictures").glob("*.png"))
    code = f"from hcast_zoo.cli import main; raise SystemExit(main(['predict', {str(picture)!r}]))"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert " > " in result.stdout


def core_imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Yield each import of the core in a file of the core, at any depth, as the parts of its name below hcast_zoo."""
    package = file.relative_to(ROOT / "hcast_zoo").parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "hcast_zoo")
        else:
            module = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                module = (*package[: len(package) + 1 - node.level], *module)
            elif module[:1] == ("hcast_zoo",):
                module = module[1:]
            else:
                continue
            yield from ((*module, name) for name in names)


def test_modules_have_no_circular_imports():
    core = ROOT / "hcast_zoo"
    modules = {file.relative_to(core).with_suffix("").parts: file for file in core.rglob("*.py")}
    graph = {module: set() for module in modules}
    for module, file in modules.items():
        for name in core_imports(file):
            graph[module] |= {other for other in (name, name[:-1]) if other in modules and other != module}

    assert sum(map(len, graph.values())) > 150
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_no_call_passes_six_arguments_by_position():
    """A reader could not tell the arguments apart. Functions of any number of similar arguments are exempt."""
    long_calls = []
    for file in (f for folder in ("hcast_zoo", "integrations") for f in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and sum(not isinstance(a, ast.Starred) for a in node.args) >= 6:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name not in ("zip", "permute") and not isinstance(node.func, ast.Subscript):  # a kernel launch
                    long_calls.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")

    assert not long_calls


def test_no_module_is_imported_under_an_alias():
    """A module has the same name in every file."""
    modules = {file.stem for folder in ("hcast_zoo", "integrations") for file in (ROOT / folder).rglob("*.py")}
    renamed = []
    for file in (f for folder in ("hcast_zoo", "integrations", "benchmarks") for f in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            ours = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("hcast_zoo"))
            for alias in node.names if ours else ():
                if alias.asname and alias.name in modules and alias.name != (node.module or "").split(".")[-1]:
                    renamed.append(f"{file.relative_to(ROOT)}:{node.lineno} {alias.name} as {alias.asname}")

    assert not renamed


def test_citation_and_changelog_name_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == hcast_zoo.__version__
    assert "A placeholder" in citation or "zenodo.0000000" not in citation
    assert re.search(r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == hcast_zoo.__version__
