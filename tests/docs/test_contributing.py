"""What CONTRIBUTING.md says is true: folders, make targets, and the workflows that run them."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(path: Path) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands() -> str:
    """Return everything that the workflows run."""
    steps = [step for path in WORKFLOWS for job in read(path)["jobs"].values() for step in job["steps"]]
    return "\n".join(step.get("run", "") for step in steps)


def test_the_layout_names_every_folder():
    listed = set(re.findall(r"^\| `(\w+)/` \|", GUIDE, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "hcast_zoo").glob("*/__init__.py")}
    assert "network" in folders and folders == listed & folders
    assert all((ROOT / name).is_dir() or (ROOT / "hcast_zoo" / name).is_dir() for name in listed)


def test_named_files_exist():
    names = set(re.findall(r"`((?:hcast_zoo|integrations|tests|docs|recipes)/[\w/]+\.\w+)`", GUIDE))
    assert {"hcast_zoo/network/config.py", "tests/test_parity.py", "docs/testing.md"} <= names
    for name in names:
        assert (ROOT / name).is_file(), name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert {"test", "format", "lint", "types", "docs", "bench"} <= targets
    named_here, run_by_ci = (set(re.findall(r"\bmake ([\w-]+)", text)) for text in (GUIDE, commands()))
    assert {"install", "test", "test-all", "format", "lint", "types", "docs", "bench", "dist"} <= named_here
    assert {"lint", "types"} <= run_by_ci
    assert named_here | run_by_ci <= targets


@pytest.mark.parametrize("target", ["test", "test-all", "format", "lint", "types", "docs", "install"])
def test_make_accepts_every_target(target):
    try:
        result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no make")
    assert result.returncode == 0, result.stderr


def test_ci_runs_layout_lint_and_types():
    assert "make lint" in commands() and "make types" in commands()
    assert "ruff format --check" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_ci_tests_every_extra_and_python():
    import tests.environments.run as environments

    jobs = read(ROOT / ".github/workflows/tests.yml")["jobs"]
    assert jobs["extras"]["strategy"]["matrix"]["extra"] == [extra or "base" for extra in environments.EXTRAS]
    assert jobs["pythons"]["strategy"]["matrix"]["python"] == list(environments.PYTHONS)
    extras = importlib.metadata.metadata("hcast-zoo").get_all("Provides-Extra")
    assert set(filter(None, environments.EXTRAS)) <= set(extras)


def test_the_workflows_exist():
    assert {"tests", "lint", "docs", "audit", "release"} <= {path.stem for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights_and_no_secret(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"], name
