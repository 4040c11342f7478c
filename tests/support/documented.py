"""Answers that a page of the documentation shows, to compare them with real ones."""

from __future__ import annotations

import re
from typing import Any

from tests.support.paths import DOCS

_BLOCK = re.compile(r"(?m)^(?: {4}.*\n)+")


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
