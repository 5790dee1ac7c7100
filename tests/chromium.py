"""Headless Chromium, and axe-core, which checks pages for accessibility.

axe-core is read from node_modules (`npm install axe-core`), or from the file that HCAST_ZOO_AXE names.
"""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
AXE = Path(os.environ.get("HCAST_ZOO_AXE", Path(__file__).parents[1] / "node_modules/axe-core/axe.min.js"))
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--allow-file-access-from-files",
    "--window-size=1360,1360",
)
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install axe-core")


def start_chromium(profile: Path):
    """Return Selenium's driver of a new browser, which also logs the requests that it makes."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)

    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def set_screen(driver, width: int, scheme: str) -> None:
    """Give the page a width in pixels, and ``light`` or ``dark`` colours."""
    size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
    colours = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})


def serious_faults(driver) -> list[tuple[str, list]]:
    """Return axe-core's serious and critical violations: each rule, with the first elements that break it."""
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    faults = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")["violations"]
    return [
        (rule["id"], [node["target"] for node in rule["nodes"]][:5])
        for rule in faults
        if rule["impact"] in ("serious", "critical")
    ]
