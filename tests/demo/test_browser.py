"""The demo page in headless Chromium. HCAST_ZOO_SCREENSHOTS=docs/images also updates the docs' pictures of it."""

import io
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.demo.view import ARROW
from hcast_zoo.weights.file import packaged_weights
from tests.demo.test_view import HOSTILE, hostile  # noqa: F401 (a fixture)

pytest.importorskip("gradio")
selenium = pytest.importorskip("selenium", reason="needs Selenium: pip install selenium")

from selenium import webdriver  # noqa: E402 (after the skips)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from hcast_zoo.demo import app as demo  # noqa: E402
from tests.chromium import needs_chromium, set_screen, start_chromium  # noqa: E402

pytestmark = [pytest.mark.slow, needs_chromium]
PICTURES = Path(__file__).parents[1] / "pictures"
LION = PICTURES / "lion.png"


class Browser:
    """A browser on the page, with a user's actions."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.address = address

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector), f"no {selector}")[0]

    def wait(self, condition, message):
        ignored = (selenium.common.exceptions.StaleElementReferenceException,)
        return WebDriverWait(self.driver, 60, 0.1, ignored).until(lambda _: condition(), message)

    def text(self, selector, part):
        """Return the text of an element once it contains ``part``."""
        self.wait(lambda: part in self.one(selector).text, f"no {part!r} in {selector}")
        return self.one(selector).text

    def upload(self, file):
        self.one("#picture input[type=file]").send_keys(str(file))

    def nodes(self):
        """Return the names of the tree's nodes, and of those on the path."""
        return [[e.text for e in self.all(f"#answer {part} > button .name")] for part in ("li", "li.chosen")]

    def click(self, name):
        next(b for b in self.all("#answer button") if b.find_element(By.CLASS_NAME, "name").text == name).click()

    def requests(self):
        """Return the addresses that were requested."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def browse(driver):
    """Return a function that opens the page of a predictor."""
    import contextlib

    with contextlib.ExitStack() as stack:
        yield lambda predictor, kind=Browser: kind(driver, stack.enter_context(demo.serving(predictor)))


@pytest.mark.skipif(not packaged_weights(), reason="no packaged weights")
def test_from_upload_to_adaptation(browse, tmp_path):
    predictor = Predictor("hcast_small.emoji_art")
    (expected,) = predictor.predict([LION])
    browser = browse(predictor)
    assert browser.text("#answer", "Drop a picture")
    browser.upload(LION)
    assert ARROW.join(expected.path) in browser.text("#answer", "this path")
    shown, chosen = browser.nodes()
    assert chosen == list(expected.path) and len(shown) > 2 * len(chosen)
    assert browser.text("#caption", "as the model sees it")

    pictures = {browser.one("#panel img").get_attribute("src")}
    for stage, text in enumerate(("Stage 1", "Stage 2", "Stage 3", "Stage 4"), 1):
        browser.one("#stage input[type=range]").send_keys(Keys.ARROW_RIGHT)
        browser.text("#caption", text)
        browser.wait(
            lambda seen=stage: len(pictures | {browser.one("#panel img").get_attribute("src")}) == seen + 1,
            f"the same picture at {text}",
        )
        pictures.add(browser.one("#panel img").get_attribute("src"))

    target = next(name for name in browser.nodes()[0] if name not in chosen)
    browser.click(target)
    outcome = browser.text("#outcome", "after:")
    before, after = (
        float(part.split("%")[0].split()[-1].lstrip("<"))
        for part in outcome.splitlines()[0].removeprefix(f"{target}:").split("\N{RIGHTWARDS ARROW}")
    )
    assert outcome.startswith(f"{target}: ") and after > before
    assert browser.one("#sheet img").is_displayed() and browser.one("#target textarea, #target input").get_attribute(
        "value"
    ).endswith(f":{target}")

    ours = {url for url in browser.requests() if url.startswith("http")}
    assert ours and all(url.startswith(browser.address) for url in ours)
    take_screenshot(browser, Path(os.environ.get("HCAST_ZOO_SCREENSHOTS", tmp_path), "demo.png"))


def take_screenshot(browser, file):
    """Save the page from its top to the before-and-after sheet, in 256 colours."""
    browser.driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    webdriver.ActionChains(browser.driver).move_to_element(browser.one(".heading")).perform()  # away from the tree
    bottom = browser.driver.execute_script("return document.querySelector('#sheet').getBoundingClientRect().bottom")
    browser.driver.set_window_size(1280, int(bottom) + 180)
    time.sleep(1)  # until fades have ended
    browser.driver.save_screenshot(str(file))
    with Image.open(file) as shot:
        shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert 20_000 < file.stat().st_size < 300_000


@pytest.mark.skipif(not packaged_weights(), reason="no packaged weights")
def test_the_answer_fits_a_phone(browse, tmp_path):
    browser = browse(Predictor())
    set_screen(browser.driver, 390, "dark")
    try:
        browser.driver.get(browser.address)
        browser.upload(PICTURES / "tabby.jpg")
        browser.text("#answer", "this path")
        browser.one("#answer .branch > .why summary").click()
        assert "the sum over all paths" in browser.text("#answer", "How likely each name is")

        answer = browser.one("#answer").rect
        for row in browser.all("#answer .chance, #answer .why, #answer .path"):
            assert row.rect["x"] + row.rect["width"] <= answer["x"] + answer["width"], row.text
        take_phone_screenshot(browser, Path(os.environ.get("HCAST_ZOO_SCREENSHOTS", tmp_path), "demo_phone.webp"))
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def take_phone_screenshot(browser, file):
    """Save the answer as a phone shows it, with two pixels a point."""
    screen = {"width": 390, "height": 1200, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.driver.execute_script("document.activeElement.blur(); document.querySelector('#answer').scrollIntoView()")
    webdriver.ActionChains(browser.driver).move_to_element(browser.one("#answer .path")).perform()
    time.sleep(1)  # until fades have ended
    with Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())) as shot:
        assert shot.size == (780, 2400)
        shot.convert("RGB").save(file, quality=80)


def test_an_unreadable_picture_shows_a_message(browse, tiny_weights, tmp_path, picture_folder):
    browser = browse(Predictor(tiny_weights))
    broken = tmp_path / "<img src=x onerror=window.hit=1>.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    browser.upload(broken)
    assert browser.text("#message", "picture") and browser.one("#message .message").is_displayed()
    assert not browser.all("#answer button")
    browser.driver.get(browser.address)
    browser.upload(next((picture_folder / "val").rglob("*.png")))
    browser.text("#answer", "this path")
    browser.one("#settings button").click()
    box = browser.one("#clusters-3 input[type=number]")  # more than stage 2 has
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("16", Keys.TAB)
    assert browser.text("#message", "cannot choose 16 clusters from 8 tokens") and not browser.all("#answer button")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("2", Keys.TAB)
    browser.text("#answer", "this path")
    assert not browser.one("#message").is_displayed()
    browser.one("#target textarea, #target input").send_keys("lyon<img src=x onerror=window.hit=1>", Keys.ENTER)
    assert "lyon<img src=x" in browser.text("#outcome", "no node".capitalize())
    assert browser.driver.execute_script("return window.hit") is None


def test_names_do_not_become_markup(browse, hostile, picture_folder):  # noqa: F811
    browser = browse(hostile)
    browser.upload(next((picture_folder / "val").rglob("*.png")))
    browser.text("#answer", "this path")
    shown, chosen = browser.nodes()
    assert len(chosen) == 3 and HOSTILE[0] in shown and not any("\x1b" in name for name in shown)
    levels = [e.text.split("read from")[0].strip() for e in browser.all("#answer .level")]
    assert levels == list(hostile.taxonomy.levels)
    browser.one("#settings button").click()
    browser.one("#within input").click()
    options = [option.text for option in browser.wait(lambda: browser.all("ul[role=listbox] li"), "no choices")]
    assert any(HOSTILE[0] in option for option in options)
    browser.click(HOSTILE[0])
    browser.text("#outcome", "after:")
    assert not browser.all("img[src=x]") and browser.driver.execute_script("return window.hit") is None
