"""The pages of `predict --report`, `evaluate --report` and `data check` in Chromium, at desktop and phone width."""

import json
import re
import subprocess

import pytest

from hcast_zoo.cli import main
from tests.chromium import ARGUMENTS, CHROMIUM, needs_axe, serious_faults, set_screen, start_chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]
# The page itself runs no script, so another one measures it from outside.
FRAME = """<!DOCTYPE html><body><iframe src="{page}" style="width:{width}px; height:9000px; border:0"></iframe>
<pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {{
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement;
  for (const part of inner.querySelectorAll("details")) part.open = true;
  const images = [...inner.images];
  const lefts = [...(inner.querySelector(".grid") || inner.body).querySelectorAll("figure")].map(f => f.offsetLeft);
  const small = [...inner.querySelectorAll("summary")].filter(s => s.getBoundingClientRect().height < 24).length;
  document.getElementById("found").textContent = JSON.stringify({{
    title: inner.title, width: root.clientWidth, scroll: root.scrollWidth, images: images.length,
    broken: images.filter(i => i.complete && !i.naturalWidth).length, columns: new Set(lefts).size, small: small,
    text: parseFloat(getComputedStyle(inner.body).fontSize)}});
}}, 500));
</script></body>"""


def measure(page, width, folder):
    """Return what a browser of a given width measures on a page."""
    frame = folder / f"frame_{width}.html"
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width))
    arguments = [*ARGUMENTS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *arguments, frame.as_uri()], capture_output=True, text=True, timeout=180)
    measured = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured and measured[1], done.stderr[-2000:]
    return json.loads(measured[1].replace("&quot;", '"'))


def make_page(kind, picture_folder, tiny_weights, tmp_path):
    """Return the file of a page that a command has written."""
    model = ["--model", str(tiny_weights)]
    if kind == "predict":
        page = tmp_path / "page.html"
        (picture_folder / "broken.png").write_bytes(b"nothing")
        assert main(["predict", str(picture_folder), *model, "--report", str(page)]) == 1
        return page

    if kind == "evaluate":
        data = ["--data", str(picture_folder), "--split", "val", "--report", str(tmp_path / "report")]
        assert main(["evaluate", *model, *data]) == 0
    else:
        broken = picture_folder / "val/bird/gull/broken.png"
        broken.write_bytes(b"nothing")
        main(["data", "check", str(picture_folder), *model, "--output", str(tmp_path / "report")])
    return tmp_path / "report/index.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    pytest.importorskip("selenium", reason="needs Selenium: pip install selenium")
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@needs_axe
@pytest.mark.parametrize("kind", ["predict", "evaluate", "check"])
def test_axe_finds_nothing_serious(driver, kind, picture_folder, tiny_weights, tmp_path):
    page = make_page(kind, picture_folder, tiny_weights, tmp_path)
    for width in (1360, 390):
        for scheme in ("light", "dark"):
            set_screen(driver, width, scheme)
            driver.get(page.as_uri())
            driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
            assert serious_faults(driver) == [], (width, scheme)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("kind", ["predict", "evaluate"])
def test_a_report_fits_a_desktop_and_a_phone(kind, picture_folder, tiny_weights, tmp_path):
    page = make_page(kind, picture_folder, tiny_weights, tmp_path)
    assert not re.search(r"(src|href)=\"(https?:)?//", page.read_text())

    columns = {}
    for width in (1280, 390):
        measured = measure(page, width, tmp_path)
        assert measured["width"] == width and measured["scroll"] <= width, "the page scrolls sideways"
        assert measured["images"] > 0 and measured["broken"] == 0 and measured["small"] == 0 and measured["text"] >= 16
        columns[width] = measured["columns"]
    if kind == "predict":
        assert columns[390] == 2 < columns[1280]
