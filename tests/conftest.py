"""The order of the tests, and what a missing tool is: a skip for a user, a failure in CI."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import jsonschema_rs
import pytest

from virtrace.trace.schema import schema

HEADER = b'{"type":"header","format":"virtrace-trace"'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or one of them would run alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_matrix.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI must not: {report.longrepr}"
    return report


_HALVES = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


@pytest.fixture(scope="module", autouse=True)
def _traces_follow_the_schema(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Every trace that the engine wrote for a test of this module, line by line."""
    if request.path.parent.name not in ("gdb", "lab", "faults"):
        yield
        return
    folder = tmp_path_factory.getbasetemp()
    before = set(folder.rglob("*"))
    yield
    validator = jsonschema_rs.Draft202012Validator(schema())
    for trace in filter(_is_trace, set(folder.rglob("*")) - before):
        for number, line in enumerate(trace.read_bytes().splitlines(keepends=True), 1):
            if line.endswith(b"\n"):  # else it was cut short, as a test may wish
                for error in validator.iter_errors(_read(line)):
                    pytest.fail(f"{trace}:{number}: {error.instance_path}: {error.message}")


def _read(line: bytes) -> object:
    """Without halves of characters, which jsonschema-rs for Python 3.13 and later cannot take."""
    return json.loads(_HALVES.sub(b"?", line), parse_int=_integer)


def _integer(digits: str) -> int:
    """As jsonschema-rs for Python 3.9 can take it; the schema has no bound so high."""
    return min(int(digits), (1 << 63) - 1)


def _is_trace(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    # A copy of the repository has traces of earlier versions.
    if "/tests/data/" in path.as_posix():
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER
