"""Definitions that all redactors share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from virtrace.trace.format import Json

# Limits: texts within texts, and parts of one text.
DEEPEST = 100


@dataclass(frozen=True)
class Context:
    """The place of a text.

    of_c: whether keys are names of C and of the recipe, which stay; otherwise they are QMP's or
    others', and only known ones stay.
    depth: number of texts, and of levels of JSON in them, that it is inside of.
    """

    of_c: bool = False
    depth: int = 0

    def keys(self, *, of_c: bool) -> Context:
        return self if of_c is self.of_c else replace(self, of_c=of_c)

    def deeper(self, levels: int = 1) -> Context:
        return replace(self, depth=self.depth + levels)


class Names(Protocol):
    """Takes private texts, and returns what the bundle contains instead.

    Originals collects, and returns everything unchanged; Pseudonyms replaces.
    """

    def add(self, kind: str, original: str) -> str:
        """Return the replacement of a private text. kind: one of KINDS."""

    def harmless(self, text: str) -> None:
        """Note a text that stays because of its form, such as an alias that libvirt made."""

    def number(self, number: int) -> None:
        """Note a number of the trace, which stays: a password or a serial can be the same."""

    def watch(self, original: str, pseudonym: str) -> None:
        """Note a text that consists of other originals, such as a path, to be searched for too."""

    def known(self, original: str) -> str | None:
        """Return the replacement of a text that is private at another place; None if it is not."""

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Return end and replacement of the distinctive original at ``start``."""

    def replace(self, text: str) -> str:
        """Replace all distinctive originals in a text, longest first."""


class TextRedactor(Protocol):
    """Redacts any text or JSON value; the reader of each format calls it for the parts."""

    names: Names

    def value(self, value: Json, key: str, context: Context) -> Json:
        """A JSON value. key: what it is called."""

    def key(self, key: str, context: Context) -> str:
        """A key of an object, or the name of an XML attribute."""

    def text(self, text: str, key: str, context: Context) -> str:
        """A text that is called `key`, or is a value of that kind."""

    def typed(self, text: str, kind: str, context: Context) -> str:
        """A text of a kind: one of KINDS or READ_AS, or whatever its key is called."""

    def name(self, text: str, context: Context) -> str:
        """A name of unknown kind; the pseudonym it has elsewhere is used, if any."""

    def unknown(self, text: str, context: Context) -> str:
        """A name that a user chose: even an everyday word may be one."""

    def structured(self, text: str, context: Context) -> str | None:
        """JSON, XML, a URI or a path; None if the text is none of them."""
