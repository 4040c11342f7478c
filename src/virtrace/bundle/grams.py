"""Whether a text can stand in a long one: most cannot, which four bytes of them tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LENGTH = 4
_WORD = re.compile(rb"[0-9A-Za-z_.%\x80-\xff-]{4,}")


class Grams:
    """All that the words of a text are made of, four bytes at a time."""

    def __init__(self, words: Iterable[bytes]) -> None:
        self._all = {piece for word in words for piece in _pieces(word)}

    @classmethod
    def of_text(cls, text: bytes) -> Grams:
        return cls(set(_WORD.findall(text)))

    def may_hold(self, text: bytes) -> bool:
        """False: it does not stand there."""
        return all(piece in self._all for word in _WORD.findall(text) for piece in _pieces(word))

    def may_hold_word(self, word: bytes) -> bool:
        """The same of what is one word by itself."""
        return all(piece in self._all for piece in _pieces(word))


def _pieces(word: bytes) -> Iterable[bytes]:
    return (word[at : at + _LENGTH] for at in range(len(word) - _LENGTH + 1))
