"""Words that every text is made of."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 call``, ``5,812 bytes``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
