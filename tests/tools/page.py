"""A browser without a screen, for pages that are tested as people use them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_DRAWN = "all.every((index) => bitmaps.get(index)) && !waiting"  # of an atlas


class Browser:
    """Headless Chromium with one page open."""

    def __init__(self, driver: Chrome):
        self.driver = driver

    def open(self, path: Path, drawn: str = _DRAWN) -> None:
        """Open a page, and wait until it has drawn all that it shows."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what earlier pages left is dropped
        self.driver.get(path.as_uri())
        self.until(drawn)

    def run(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def until(self, condition: str) -> None:
        """Wait until an expression holds."""
        WebDriverWait(self.driver, 20, 0.02).until(lambda _: self.run(f"return {condition}"))

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [str(found.get_property("textContent")) for found in self.find(selector)]

    def click(self, selector: str) -> None:
        (found,) = self.find(selector)
        self.driver.execute_script("arguments[0].click()", found)

    def spot(self, row: float, column: float) -> tuple[int, int]:
        """Return where a place of the map is on the canvas, in pixels; corners are whole."""
        x, y = self.run(f"return screen({column}, {row})")
        return round(x), round(y)

    def mouse(self, row: float, column: float) -> ActionChains:
        """Return the mouse, moved to a place of the map when it is performed."""
        (canvas,) = self.find("#map")
        x, y = self.spot(row, column)
        box = canvas.size
        return ActionChains(self.driver, duration=30).move_to_element_with_offset(
            canvas, x - box["width"] // 2, y - box["height"] // 2
        )

    def pixel(self, row: float, column: float) -> tuple[int, int, int]:
        """Return the colour that a person sees at a place of the map."""
        self.until("!waiting")
        left, top = self.run(
            "const box = canvas.getBoundingClientRect(); return [box.left, box.top]"
        )
        x, y = self.spot(row, column)
        with Image.open(BytesIO(self.driver.get_screenshot_as_png())) as image:
            red, green, blue = image.convert("RGB").getpixel((x + round(left), y + round(top)))
        return red, green, blue

    def complaints(self) -> list[str]:
        """Return what the page wrote to the console since it was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def browser(width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """Start Chromium; where there is none skip the test, but fail it where `CI` is set."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = ChromeOptions()
    options.binary_location = chromium
    flags = (
        *("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "disable-dev-shm-usage"),
        *("disable-background-networking", "disable-component-update"),
    )
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = Chrome(options=options, service=ChromeService(driver))
    try:
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        yield Browser(opened)
    finally:
        opened.quit()
