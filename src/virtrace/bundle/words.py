"""Words of QEMU, libvirt and virtrace, which reveal nothing about a host."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from virtrace import resources
from virtrace.bundle.grams import Grams
from virtrace.recipe.folder import fragments_folder, shipped_folder

_RELEASE = re.compile(
    r"[0-9]{1,6}(?:[.+~][0-9]{1,5})*(?:\.(?:fc|el|an|oe|lp|amzn|cm)[0-9_]+(?:\.[a-z0-9_]{1,8})?)?"
    r"|(?:fc|el|deb|bpo|arch|rc|ubuntu|lp|amzn|oe|an|v)[0-9]{1,4}[0-9_u.]{0,6}|[0-9.]+\+(?:bpo|deb|rpt)[0-9u+-]*"
)
# Texts that can be in a bundle without coming from the trace.
_OWN_TEXTS = (
    *("analysis/*.py", "analysis/*.yaml", "report/*.py", "report/*.json", "report/page/*"),
    *("bundle/*", "trace/*.py", "trace/*.json", "snapshot/*.py", "snapshot/*.yaml"),
)


@functools.cache
def _lists() -> dict[str, frozenset[str]]:
    text = resources.text(Path(__file__).with_name("words.txt"))
    lists = (part.split() for part in text.split("\n\n# ")[1:])
    return {name: frozenset(words) for name, *words in lists}


def is_name(text: str) -> bool:
    """Whether it is a command, member, value or type of QEMU or libvirt; case-sensitive."""
    return text in _lists()["names"]


def is_word(text: str) -> bool:
    """Whether it is a word of QEMU's and libvirt's messages. text: in lower case."""
    return text in _lists()["words"] or text in _lists()["names"]


def is_system(text: str) -> bool:
    """Whether it is part of a system's name or version: `7.2`, `el9_4`, `deb12u18`."""
    return text in _lists()["systems"] or bool(_RELEASE.fullmatch(text))


def is_common_folder(path: str) -> bool:
    """Whether many hosts have a folder of this name."""
    return path in _lists()["folders"]


def in_corpus(text: str) -> bool:
    """Whether a bundle can contain it without having it from the trace. text: in lower case."""
    raw = text.encode("utf-8", "surrogatepass")
    return _corpus_grams().may_hold(raw) and text in corpus()


@functools.cache
def _corpus_grams() -> Grams:
    return Grams.of_text(corpus().encode("utf-8", "surrogatepass"))


@functools.cache
def corpus() -> str:
    """Return all texts that a bundle can contain on its own, in lower case."""
    patterns = [*((resources.PACKAGE, name) for name in _OWN_TEXTS)]
    patterns += [(shipped_folder(), "*.yaml"), (fragments_folder(), "*.yaml")]
    files = (file for place in patterns for file in resources.matching(*place))
    texts = (_said(file) if file.suffix == ".py" else resources.text(file) for file in files)
    return "\n".join(texts).lower()


def _said(file: Path) -> str:
    """Return the strings in a source file, without docstrings: these are never shown."""
    nodes = [*ast.walk(ast.parse(resources.text(file)))]
    statements = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return "\n".join(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in statements
    )
