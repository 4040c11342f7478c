"""Answers that a page of the documentation shows, to compare them with real ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support.command import virtrace
from tests.support.paths import DOCS
from virtrace.trace.reader import TraceStream

_BLOCK = re.compile(r"(?m)^(?: {4}.*\n)+")
# Of libvirt.
_SHOWN_VERSION = "9.0.0"


def documented(page: str) -> set[str]:
    """The answers in the blocks of a page, each in one line, without numbers."""
    found: list[str] = []
    for block in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        for line in block.splitlines():
            if line.startswith("      "):
                found[-1] += " " + line.strip()
            else:
                found.append(line.strip())
    return {without_numbers(line) for line in found if ": " in line}


def without_numbers(text: str) -> str:
    """Numbers, and those in names, are others each time."""
    return re.sub(r"\d[\d.]*\d|\d", "0", " ".join(text.split()))


def answers(cases: list[dict[str, Any]]) -> set[str]:
    """The answers of `virtrace explain --json`, as it prints them."""
    return {
        without_numbers(f"{' '.join(map(str, case['subject']))}: {case['answer']}")
        for case in cases
    }


def assert_shown(page: str, trace: str, output: Path, **names: str) -> None:
    """What a page shows below `virtrace explain TRACE` is what it prints of a real trace.

    The pages show one version of libvirt; traces of others are passed over.
    names: of guests of the trace, by those that the page has in their place
    """
    with TraceStream(output) as trace_:
        if trace_.header["target"]["program"]["version"] != _SHOWN_VERSION:
            return
    [block] = [
        block
        for block in _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
        if f"$ virtrace explain {trace}\n" in block
    ]
    printed = virtrace("explain", output).stdout
    for shown, real in names.items():
        printed = printed.replace(real, shown)
    found = _plain(printed)
    shown = block.partition(f"$ virtrace explain {trace}\n")[2]
    for part in filter(str.strip, shown.split("    ...\n")):
        _, same, found = found.partition(_plain(part))
        assert same, (part, found)


def _plain(text: str) -> str:
    """In one line, without folders of a lab, and without the units of times, which differ."""
    text = re.sub(r"/var/tmp/[\w./-]*/(?=[\w.]+)", "/var/tmp/lab/", " ".join(text.split()))
    return without_numbers(re.sub(r"(?<=\d) (?:us|ms|s)\b", " s", text))
