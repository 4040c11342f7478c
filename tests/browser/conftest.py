"""A headless Chromium for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.support import chromium as headless


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    chrome = headless.start(tmp_path_factory.mktemp("chromium"))
    if chrome is None:
        pytest.skip(headless.NOT_HERE)
    yield chrome
    chrome.quit()
