"""The gate that all goes through that is printed, and what is said where it cannot go out."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import virtrace
from tests.support import pages
from virtrace import engines
from virtrace.errors import UsageError
from virtrace.printing import gated, line, own, print_lines, safe
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Selection
from virtrace.record.engine import record
from virtrace.record.job import Job
from virtrace.report.highlight import Style, paint

PACKAGE = Path(virtrace.__file__).parent
TRACE = str(pages.SAMPLE)
FULL = "virtrace: standard output cannot be written: No space left on device\ntry: "
CLOSED = "virtrace: standard output cannot be written: Bad file descriptor\ntry: "


def shell(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """words: with redirections."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m virtrace.cli.main {words}', sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def through_the_gate(*texts: str, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with gated(out, out, out):
        for text in texts:
            print(text)
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "show --help",
        f"show {TRACE}",
        f"show --json {TRACE}",
        f"explain {TRACE}",
        f"diff {TRACE} {TRACE}",
        "recipe list",
        "recipe show blockinfo",
        f"export {TRACE} --to csv -o made",
    ],
)
def test_what_cannot_be_printed_is_an_error(words: str, tmp_path: Path) -> None:
    for place, said in (("/dev/full", FULL), ("&-", CLOSED)):
        done = shell(f"{words} >{place}", tmp_path)
        assert done.stderr.startswith(said)
        assert len(done.stderr.splitlines()) == 2
        assert done.returncode == 2
        (tmp_path / "made").unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["/dev/full", "&-"])
def test_an_error_that_nobody_sees_keeps_its_status(place: str, tmp_path: Path) -> None:
    done = shell(f"show none 2>{place}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(pages.SAMPLE.read_bytes()[:-100])
    assert shell(f"show cut.jsonl >/dev/null 2>{place}", tmp_path).returncode == 4
    assert shell(f"nothing 2>{place}", tmp_path).returncode == 2


def test_no_file_takes_the_place_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    """It would get what is printed, by whatever is started as well."""
    for name, streams in (("whole", ""), ("made", "<&- 2>&-")):
        assert shell(f"export {TRACE} --to csv -o {name} {streams}", tmp_path).returncode == 0
    assert (tmp_path / "made").read_bytes() == (tmp_path / "whole").read_bytes()
    # Where nobody learns that it was written, it was not.
    for streams in ("<&- >&- 2>&-", ">&- 2>&-", "<&- >&-"):
        assert shell(f"export {TRACE} --to csv -o other {streams}", tmp_path).returncode == 2
        assert not (tmp_path / "other").exists()


def test_nobody_can_answer_where_standard_input_is_closed(tmp_path: Path) -> None:
    done = shell(f"rescue {os.getpid()} <&-", tmp_path)
    assert done.returncode in (0, 3)
    assert "Traceback" not in done.stderr


def test_a_fault_of_its_own_is_told_like_every_other() -> None:
    broken = "import virtrace.cli.show as show; show.run = lambda _: [][0]"
    code = f"{broken}; from virtrace.cli.main import main; raise SystemExit(main(['show', 'x']))"
    said = {}
    for debug in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "VIRTRACE_DEBUG": debug},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 3
        said[debug] = done.stderr
    assert said[""] == (
        "virtrace: internal error: IndexError: list index out of range\n"
        "try: report it, with the output of VIRTRACE_DEBUG=1\n"
    )
    assert said["1"].startswith("Traceback (most recent call last):\n")
    assert said["1"].endswith(said[""])


def test_a_print_is_a_line_and_nothing_else() -> None:
    assert through_the_gate("a\nb\r\tc\x1b[1md", "") == "a\\nb\\r\\tc\\u001b[1md\n\n"
    # Also where a line ends or begins with it.
    assert through_the_gate("\na\n") == "\\na\\n\n"
    assert through_the_gate(own("\r") + "a") == "a\n"


def test_what_the_encoding_lacks_is_an_escape() -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        shown = through_the_gate("é \udcff", encoding=encoding)
        assert shown == ("é \\udcff\n" if encoding == "utf-8" else "\\u00e9 \\udcff\n")


def test_only_our_own_colour_passes() -> None:
    style = Style(color=True, unicode=True)
    strange = "\x1b[1m \x1b[36m \x1b[39;49;00m \x9b1m \x00"
    text = f'{{"a": [1, true, "{strange}"]}} f(x);'
    for role in ("bold", "dim", "red", "yellow", "cyan", "json", "c", "call"):
        painted = paint(text, role, style)
        shown = line(painted, controls=True, unicode=True)
        bare = re.sub("\x1b\\[[0-9;]*m", "", shown)
        assert bare == safe(text, unicode=True)
        assert shown != bare
        assert line(painted, controls=False, unicode=True) == bare


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("grüße", "日本語", "שלום", "emoji 🎉", "e\u0301", "✓ │ └─ ▁█ …"):
        assert safe(text, unicode=True) == text


def test_lines_of_our_own_are_printed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    with gated(sys.stdout, sys.stderr, sys.stdout):
        print_lines(["a", "b\nc"])
    assert capsys.readouterr().out == "a\nb\\nc\n"


def test_a_file_whose_name_looks_like_an_option(tmp_path: Path) -> None:
    name = "-rf; x.jsonl"
    traces = pages.SAMPLE.parent / "diff"
    (tmp_path / name).write_bytes((traces / "last-sector-7.0.0.jsonl").read_bytes())
    commands = []
    for words in ("show", "show --summary", "explain", "diff"):
        other = f" {traces / 'last-sector-12.8.0.jsonl'}" if words == "diff" else ""
        done = shell(f"{words} -- '{name}'{other}", tmp_path)
        found = re.findall(r"(?:virtrace (?:show|explain|diff)|jq) .*", done.stdout)
        assert found, done
        commands += found
    for command in commands:
        assert f"./{name}" in shlex.split(command)


@pytest.mark.parametrize(
    "words",
    [
        {"command": ["a\0b"]},
        {"command": ["a", "\ud800"]},
        {"selection": Selection(where={"disk": "a\0b"})},
    ],
    ids=str,
)
def test_words_of_a_trace_that_no_program_can_get(words: dict[str, Any]) -> None:
    job = Job(catalogue.find_recipe("blockinfo"), os.getpid(), Path("t.jsonl"), **words)
    with pytest.raises(UsageError, match="no program can be given"):
        record(job, [engines.load("gdb")])


def test_nothing_goes_round_the_gate() -> None:
    """Found by the names that lead round it, in the source itself."""
    way_round = r"sys\.(__std|std(out|err)\.(write|buffer))|os\.write\([12],|gdb\.write"
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Call)) else ""
            if re.match(way_round, text):
                found.add((str(file.relative_to(PACKAGE)), text.partition("(")[0]))
    assert found == {
        # What it goes through itself.
        ("inferior/commands.py", "sys.__stdout__"),
        ("inferior/commands.py", "sys.__stderr__"),
        # Of numbers alone; the guard has nothing that GDB's Python could be asked for.
        ("guard/process.py", "os.write"),
    }
