"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.unit.test_imports import MODULES, name_of

WITH_EXAMPLES = [file for file in MODULES if "    >>> " in file.read_text("utf-8")]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=name_of)
def test_an_example_prints_what_it_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    tried = doctest.testmod(importlib.import_module(name_of(file)))
    assert tried.attempted > 0
    assert tried.failed == 0


def test_there_are_examples_to_try() -> None:
    assert len(WITH_EXAMPLES) >= 5
