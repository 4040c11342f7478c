"""What share/ has for shells and for man, made of the parser that also prints --help."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.support.paths import REPOSITORY
from virtrace.cli.main import COMMANDS
from virtrace.recipe import catalogue

SHARE = REPOSITORY / "share"
BASH = SHARE / "bash-completion/completions/virtrace"
PAGE = SHARE / "man/man1/virtrace.1"
PATIENCE = 120


def test_it_is_what_the_parser_says() -> None:
    made = runpy.run_path(str(REPOSITORY / "tools/share.py"))["files"]()
    stale = [path for path, text in made.items() if (SHARE / path).read_text() != text]
    assert stale == [], "make share"
    found = {str(file.relative_to(SHARE)) for file in SHARE.rglob("*") if file.is_file()}
    # The plugin for sos is the one file that somebody has written.
    assert found - {"sos/virtrace.py"} == {*made}


@pytest.fixture
def completed(tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """What an interactive bash makes of a line and the tab key; in a folder with some files."""
    for name in ("mine.yaml", "old.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    prompt = "ready> "
    bash = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        cwd=str(tmp_path),
        env={**os.environ, "PS1": prompt, "TERM": "dumb", "INPUTRC": "/dev/null"},
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(50, 200),
    )
    bash.expect_exact(prompt)

    def do(line: str) -> str:
        bash.sendline(line)
        bash.expect_exact(prompt)
        return str(bash.before)

    do("bind 'set bell-style none'")
    do("bind 'set enable-bracketed-paste off'")
    do(f"source {BASH}")
    # What was typed is written down, in place of being run.
    do("virtrace() { printf '<%s>' \"$@\"; }")

    def complete(line: str) -> list[str]:
        # Each possible completion in turn is what `insert-completions` puts there.
        bash.send(f"{line}\x1b*\r")
        bash.expect_exact(prompt)
        printed = str(bash.before).replace("\r\n", "\n").split("\n", 1)[1]
        return printed.strip("<>").split("><")

    yield complete
    bash.close(force=True)


def test_bash_completes(completed: Callable[[str], list[str]]) -> None:
    commands = completed("virtrace re")
    assert {"record", "replay", "recipe"} <= {*commands}
    assert all(command.startswith("re") for command in commands)
    assert completed("virtrace reco") == ["record"]
    assert completed("virtrace recipe sh") == ["recipe", "show"]
    assert completed("virtrace record --ca") == ["record", "--calls"]
    recipes = sorted([*catalogue.shipped(), "mine.yaml"])
    assert completed("virtrace record ") == ["record", *recipes]
    assert completed("virtrace explain ") == ["explain", "old.jsonl"]
    assert completed("virtrace export --to sv") == ["export", "--to", "svg"]


def test_the_man_page_is_rendered_without_a_warning() -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--local-file", "--warnings", "--encoding=UTF-8", "--pager=cat", str(PAGE)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MANWIDTH": "80"},
    )
    assert done.stderr == ""
    for name in COMMANDS:
        assert f"virtrace {name}" in done.stdout


def test_nothing_of_it_is_needed_to_run() -> None:
    """What makes it is no dependency of the package."""
    code = "import sys, virtrace.cli.main; print({'shtab', 'argparse_manpage'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
