"""The site builds without a warning, and shows what the package exports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hcast_zoo
from tests.chromium import needs_axe, needs_chromium, serious_faults, set_screen, start_chromium

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    for package in ("material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_pages_hold_what_they_promise(site):
    api = (site / "api/index.html").read_text()
    anchors = set(re.findall(r'\bid="([\w.]+)"', api))
    assert {
        "hcast_zoo.inference.predictor.Predictor",
        "hcast_zoo.taxonomy.tree.Taxonomy",
        "hcast_zoo.training.losses.HierarchicalLoss",
        "hcast_zoo.weights.file.load_model",
        "hcast_zoo.network.graph_pooling.farthest_point_sampling",
    } <= anchors
    assert "Keep a Changelog" in (site / "changelog/index.html").read_text()
    assert (site / "notebooks/label_and_look/index.html").stat().st_size > 10_000


@pytest.mark.slow
@needs_chromium
@needs_axe
@pytest.mark.parametrize("width, scheme", [(1360, "light"), (390, "dark")])
def test_axe_finds_nothing_serious_on_any_page(site, tmp_path, width, scheme):
    pytest.importorskip("selenium")
    driver = start_chromium(tmp_path)
    try:
        set_screen(driver, width, scheme)
        faults = {}
        pages = sorted(site.rglob("index.html"))
        for page in pages:
            driver.get(page.as_uri())
            driver.execute_async_script("setTimeout(arguments[0], 400)")  # after the timer of docs/site.js
            if serious := serious_faults(driver):
                faults[str(page.relative_to(site))] = serious
    finally:
        driver.quit()

    assert len(pages) > 30 and faults == {}


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/api.md").read_text()
    documented = set()
    for place, options in re.findall(r"^::: ([\w.]+)\n((?:    .+\n)*)", text + "\n", re.MULTILINE):
        members = re.search(r"members: \[(.+?)\]", options)
        documented.update(f"{place}.{name}" for name in members[1].split(", ")) if members else documented.add(place)

    for name, module in hcast_zoo._PUBLIC.items():
        if name != "VARIANTS":
            assert {f"hcast_zoo.{module}", f"hcast_zoo.{module}.{name}"} & documented, name
