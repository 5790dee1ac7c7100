"""The demo page without a mouse, and as axe-core judges it."""

from pathlib import Path

import pytest

from hcast_zoo import Predictor
from hcast_zoo.weights.file import packaged_weights
from tests.chromium import needs_axe, needs_chromium, serious_faults, set_screen
from tests.demo.test_browser import Browser, Keys, browse, driver, webdriver  # noqa: F401 (fixtures)

TABS = 80  # more than the page has stops
FOCUS = """const element = document.activeElement, style = getComputedStyle(element);
const ring = s => s.outlineStyle !== 'none' || s.boxShadow !== 'none';
return {name: element.outerHTML.slice(0, 160),
        ring: ring(style) || [...element.parentElement.children].some(e => ring(getComputedStyle(e)))
              || ring(getComputedStyle(element.parentElement))};"""

pytestmark = [
    pytest.mark.slow,
    needs_chromium,
    pytest.mark.skipif(not packaged_weights(), reason="no packaged weights"),
]


class Keyboard(Browser):
    """A browser that is used by keys alone."""

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self, selector):
        return self.driver.execute_script("return document.activeElement.matches(arguments[0])", selector)

    def tab_to(self, selector):
        """Press Tab until an element that matches has the focus; each stop on the way must show that it has it."""
        for _ in range(TABS):
            self.press(Keys.TAB)
            stop = self.driver.execute_script(FOCUS)
            if not self.focused("body"):
                assert stop["ring"], f"no visible focus: {stop['name']}"
            if self.focused(selector):
                return
        pytest.fail(f"{selector} is not reached by {TABS} times Tab")


@pytest.fixture
def keyboard(browse):  # noqa: F811
    return browse(Predictor("hcast_small.emoji_art"), Keyboard)


def test_every_control_is_used_by_keys(keyboard):
    keyboard.text("#answer", "Drop a picture")
    keyboard.tab_to("#picture button")  # opens the system's dialogue for files
    keyboard.tab_to("#examples button.gallery-item")
    keyboard.press(Keys.ENTER)
    keyboard.text("#answer", "this path")

    keyboard.tab_to("#settings button")
    keyboard.press(Keys.SPACE)
    keyboard.tab_to("#decoder input")
    keyboard.press(Keys.ARROW_DOWN, Keys.ENTER)
    keyboard.tab_to("#stop input")
    keyboard.press(Keys.SPACE)
    keyboard.wait(lambda: keyboard.one("#stop input").is_selected(), "the box is not ticked")
    keyboard.press(Keys.SPACE)
    keyboard.tab_to("#clusters-2 input[type=range]")
    before = keyboard.one("#clusters-2 input[type=range]").get_attribute("value")
    keyboard.press(Keys.ARROW_LEFT)
    assert keyboard.one("#clusters-2 input[type=range]").get_attribute("value") != before

    keyboard.tab_to("#answer summary")
    keyboard.press(Keys.ENTER)
    keyboard.wait(lambda: keyboard.all("#answer details[open]"), "the explanation stays closed")
    keyboard.tab_to("#answer button[data-node]")
    keyboard.press(Keys.ENTER)
    keyboard.text("#outcome", "after:")

    keyboard.tab_to("#stage input[type=range]")
    keyboard.press(Keys.ARROW_RIGHT)
    keyboard.text("#caption", "Stage 1")
    keyboard.tab_to("#target textarea, #target input")
    webdriver.ActionChains(keyboard.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    keyboard.press("lion", Keys.ENTER)
    keyboard.text("#outcome", "lion")


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
def test_axe_finds_nothing_serious(keyboard, width, scheme):
    driver = keyboard.driver  # noqa: F811
    set_screen(driver, width, scheme)
    driver.get(keyboard.address)
    keyboard.text("#answer", "Drop a picture")
    assert serious_faults(driver) == []

    keyboard.upload(Path(__file__).parents[1] / "pictures/lion.png")
    keyboard.text("#answer", "this path")
    keyboard.one("#settings button").click()
    keyboard.one("#answer summary").click()
    assert serious_faults(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
