"""The documentation's links lead somewhere, and its commands are ones that `virtrace` accepts."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.unit.test_imports import ALLOWED
from virtrace.cli.main import build_parser
from virtrace.snapshot.verdicts import catalogue

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
MADE = [
    REPOSITORY / "tests" / "lab" / f"test_hangs_{where}.py" for where in ("everywhere", "outside")
]
# Left by the shell or by the reader: the pid, the names and the numbers of an example.
PLACEHOLDERS = {"PID": "1", "N": "1", "S": "1", "$PID": "1", "$(pidof libvirtd)": "1"}


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```[^`]*^```| {4}.*$", "", page.read_text(encoding="utf-8"), flags=re.M)


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(text) for text in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        file, _, fragment = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not fragment or fragment in anchors(target), link


def test_every_page_is_in_the_order_of_reading() -> None:
    order = (REPOSITORY / "docs" / "README.md").read_text("utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in order, page.name


ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")


def test_every_path_of_the_architecture_exists() -> None:
    paths = re.findall(r"`([a-z_]+/[\w./-]+)`", ARCHITECTURE)
    assert len(paths) > 50
    for path in paths:
        if "NAME" in path or "STRUCT" in path:
            path = path[: path.index("NAME" if "NAME" in path else "STRUCT")].rpartition("/")[0]
        assert any((top / path).exists() for top in (REPOSITORY, REPOSITORY / "src/virtrace")), path


def test_the_packages_are_in_the_order_of_their_imports() -> None:
    _, _, table = ARCHITECTURE.partition("| package | contents |")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table.partition("\n## ")[0], re.M)
    order = [name for row in rows for name in re.findall(r"\w+", row)]
    assert sorted(order) == sorted(set(ALLOWED) - {""})
    for place, name in enumerate(order):
        assert ALLOWED[name] <= {*order[:place]}, name


def commands(page: Path) -> list[str]:
    """The command lines in the page's code blocks."""
    text = page.read_text(encoding="utf-8").replace(" \\\n", " ")
    return re.findall(r"^ {4}(?:\$ )?(virtrace [a-z-]+(?: .*)?)$", text, re.M)


def arguments(command: str) -> list[str]:
    """The words after `virtrace`, with values for placeholders."""
    for name, value in PLACEHOLDERS.items():
        command = re.sub(rf"(?<=[ =]){re.escape(name)}(?=\s|$)", value, command)
    words = shlex.split(re.split(r" [|>]|;", command)[0], comments=True)[1:]
    return words[: words.index("--")] if "--" in words else words


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command: str) -> None:
    try:
        build_parser().parse_args(arguments(command), argparse.Namespace(traced=[]))
    except SystemExit:
        pytest.fail(f"refused: {command}")


def test_there_are_commands_and_links_to_test() -> None:
    assert len(COMMANDS) > 50
    assert sum(prose(page).count("](") for page in PAGES) > 50


def test_the_verdicts_of_hangs_that_were_made_are_those_of_their_tests() -> None:
    page = (REPOSITORY / "docs" / "hang.md").read_text("utf-8")
    table = page.partition("| hang | answer |\n")[2].partition("\n\n")[0]
    written = {name for row in table.splitlines() for name in re.findall(r"`([a-z-]+)`", row)}
    tested = {name for file in MADE for name in re.findall(r'"([a-z-]+)"', file.read_text("utf-8"))}
    assert written == tested & set(catalogue())
