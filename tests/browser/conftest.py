"""A headless Chromium for all tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver; try: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    # Root's Chromium has no sandbox; /dev/shm is small in many containers.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # It leaves a folder behind wherever it finds room for one.
    environment = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("chromium"))}
    chrome = Chrome(options=options, service=Service(driver, env=environment))
    yield chrome
    chrome.quit()
