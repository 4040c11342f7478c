"""Words that are QEMU's, libvirt's and virtrace's own, and so tell nothing of a host."""

from __future__ import annotations

import functools
from pathlib import Path

from virtrace.recipe import catalogue

_PACKAGE = Path(__file__).resolve().parents[1]
# Whatever these say can stand in a bundle without having come from the trace.
_OWN_TEXTS = (
    *("analysis/*.py", "analysis/*.yaml", "report/*.py", "report/*.json", "report/page/*"),
    *("bundle/*", "trace/*.py", "trace/*.json"),
)


@functools.cache
def _lists() -> dict[str, frozenset[str]]:
    text = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    lists = (part.split() for part in text.split("\n\n# ")[1:])
    return {name: frozenset(words) for name, *words in lists}


def is_name(text: str) -> bool:
    """A command, member, value or type of QEMU or libvirt; exactly so written."""
    return text in _lists()["names"]


def is_word(text: str) -> bool:
    """A word that messages of QEMU and libvirt are made of, in lower case."""
    return text in _lists()["words"] or text in _lists()["names"]


def is_common_folder(path: str) -> bool:
    """The same on many hosts."""
    return path in _lists()["folders"]


@functools.cache
def corpus() -> str:
    """All that a bundle can say by itself, in lower case."""
    own = (file for name in _OWN_TEXTS for file in sorted(_PACKAGE.glob(name)))
    files = [*own, *(catalogue.file_of(name) for name in catalogue.shipped())]
    texts = (file.read_text(encoding="utf-8") for file in files if file.is_file())
    return "\n".join(texts).lower()
