"""A headless Chromium, for the tests of the page and for its measurement."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

NOT_HERE = "no Chromium with its driver; try: apt-get install chromium chromium-driver"


def start(temporary: Path) -> Chrome | None:
    """None where it is not installed. temporary: for what it leaves behind."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        return None
    options = ChromeOptions()
    options.binary_location = browser
    # Root's Chromium has no sandbox; /dev/shm is small in many containers.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return Chrome(options=options, service=Service(driver, env=environment))
