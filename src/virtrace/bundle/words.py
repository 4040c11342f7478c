"""Words that are QEMU's, libvirt's and virtrace's own, and so tell nothing of a host."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from virtrace.bundle.grams import Grams
from virtrace.recipe.folder import shipped_folder

_RELEASE = re.compile(
    r"[0-9]{1,6}(?:[.+~][0-9]{1,5})*(?:\.(?:fc|el|an|oe|lp|amzn|cm)[0-9_]+(?:\.[a-z0-9_]{1,8})?)?"
    r"|(?:fc|el|deb|bpo|arch|rc|ubuntu|lp|amzn|oe|an|v)[0-9]{1,4}[0-9_u.]{0,6}|[0-9.]+\+(?:bpo|deb|rpt)[0-9u+-]*"
)
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


def is_system(text: str) -> bool:
    """A part of a distribution's or kernel's name or version; `7.2`, `el9_4`, `deb12u18`."""
    return text in _lists()["systems"] or bool(_RELEASE.fullmatch(text))


def is_common_folder(path: str) -> bool:
    """The same on many hosts."""
    return path in _lists()["folders"]


def in_corpus(text: str) -> bool:
    """Whether a bundle can say it by itself. text: in lower case."""
    raw = text.encode("utf-8", "surrogatepass")
    return _corpus_grams().may_hold(raw) and text in corpus()


@functools.cache
def _corpus_grams() -> Grams:
    return Grams.of_text(corpus().encode("utf-8", "surrogatepass"))


@functools.cache
def corpus() -> str:
    """All that a bundle can say by itself, in lower case."""
    own = (file for name in _OWN_TEXTS for file in sorted(_PACKAGE.glob(name)))
    files = [*own, *sorted(shipped_folder().rglob("*.yaml"))]
    texts = (
        _said(file) if file.suffix == ".py" else file.read_text(encoding="utf-8")
        for file in files
        if file.is_file()
    )
    return "\n".join(texts).lower()


def _said(file: Path) -> str:
    """The texts in a source file; what only its comments and its docstrings say is never shown."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return "\n".join(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in statements
    )
