"""The site builds without a warning, and shows what the package exports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hcast_zoo

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    for package in ("material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    api = (tmp_path / "site/api/index.html").read_text()
    anchors = set(re.findall(r'\bid="([\w.]+)"', api))
    assert {
        "hcast_zoo.inference.predictor.Predictor",
        "hcast_zoo.taxonomy.tree.Taxonomy",
        "hcast_zoo.training.losses.HierarchicalLoss",
        "hcast_zoo.weights.file.load_model",
        "hcast_zoo.network.graph_pooling.farthest_point_sampling",
    } <= anchors
    assert "Keep a Changelog" in (tmp_path / "site/changelog/index.html").read_text()
    assert (tmp_path / "site/notebooks/label_and_look/index.html").stat().st_size > 10_000


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/api.md").read_text()
    documented = set()
    for place, options in re.findall(r"^::: ([\w.]+)\n((?:    .+\n)*)", text + "\n", re.MULTILINE):
        members = re.search(r"members: \[(.+?)\]", options)
        documented.update(f"{place}.{name}" for name in members[1].split(", ")) if members else documented.add(place)

    for name, module in hcast_zoo._PUBLIC.items():
        if name != "VARIANTS":
            assert {f"hcast_zoo.{module}", f"hcast_zoo.{module}.{name}"} & documented, name
