"""A command imports what it needs: others need packages that take longer than its own work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.paths import DATA
from virtrace.analysis.explain.registry import TRACES

HEAVY = {"elftools", "jinja2", "perfetto", "pygments.lexers", "tarfile", "tqdm", "yaml"}
OFFLINE = {"virtrace.binary", "virtrace.bundle", "virtrace.lab", "virtrace.recipe"}
SCRIPT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from virtrace.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def imported(*words: str) -> set[str]:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True
    )
    return set(json.loads(ended.stderr))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_no_command(option: str) -> None:
    found = imported(option)
    assert not found & HEAVY
    ours = {name for name in found if name.startswith("virtrace")}
    assert ours == {
        *("virtrace", "virtrace.cli", "virtrace.cli.main", "virtrace.errors", "virtrace.printing")
    }


@pytest.mark.parametrize("words", [["show"], ["show", "--json"], ["show", "--summary"]], ids=str)
def test_show_imports_what_it_shows_with(words: list[str]) -> None:
    assert not imported(*words, str(pages.SAMPLE)) & (HEAVY | OFFLINE)


@pytest.mark.parametrize(
    ("trace", "explainers"),
    [
        (pages.SAMPLE, {"disks", "monitors"}),
        (DATA / "version1" / "pool-refresh.jsonl", {"disks", "pools"}),
    ],
    ids=["sample", "version 1"],
)
def test_explain_imports_the_explainers_of_the_trace(trace: Path, explainers: set[str]) -> None:
    found = imported("explain", str(trace))
    assert {name for name in TRACES if f"virtrace.analysis.explain.{name}" in found} == explainers


def test_record_imports_what_gdb_needs_beside_it() -> None:
    found = imported("record", "--help")
    assert not found & {"elftools.elf.elffile", "virtrace.engines.uprobes", "virtrace.cli.doctor"}
    assert not found & {"virtrace.binary.ctype", "virtrace.trace.reader"}


def test_what_is_needed_elsewhere_is_seen() -> None:
    assert HEAVY & imported("explain", str(pages.SAMPLE)) == {"yaml"}
