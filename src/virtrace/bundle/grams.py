"""A quick test whether a long text can contain another: by sequences of four bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LENGTH = 4
_WORD = re.compile(rb"[0-9A-Za-z_.%\x80-\xff-]{4,}")


class Grams:
    """All sequences of four bytes in the words of a text."""

    def __init__(self, words: Iterable[bytes]) -> None:
        self._all = {piece for word in words for piece in _pieces(word)}

    @classmethod
    def of_text(cls, text: bytes) -> Grams:
        return cls(set(_WORD.findall(text)))

    def may_hold(self, text: bytes) -> bool:
        """Return False if the text is certainly not contained."""
        return all(piece in self._all for word in _WORD.findall(text) for piece in _pieces(word))

    def may_hold_word(self, word: bytes) -> bool:
        """Return False if the single word is certainly not contained."""
        return all(piece in self._all for piece in _pieces(word))


def _pieces(word: bytes) -> Iterable[bytes]:
    return (word[at : at + _LENGTH] for at in range(len(word) - _LENGTH + 1))
