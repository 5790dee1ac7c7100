"""The site builds without a warning, and shows what the package exports."""

import os
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
    for name in ("Predictor", "Taxonomy", "HierarchicalLoss", "load_model", "farthest_point_sampling"):
        assert f'.{name}"' in api, name
    assert "Keep a Changelog" in (tmp_path / "site/changelog/index.html").read_text()
    assert (tmp_path / "site/notebooks/label_and_look/index.html").stat().st_size > 10_000


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/api.md").read_text()
    for name, module in hcast_zoo._PUBLIC.items():
        if name != "VARIANTS":
            assert f"hcast_zoo.{module}" in text and (f".{name}" in text or f"hcast_zoo.{module}\n" in text), name
