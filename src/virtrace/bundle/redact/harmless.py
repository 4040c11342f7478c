"""Texts that may stay in a bundle: known words, and forms that QEMU and libvirt make."""

from __future__ import annotations

import re

from virtrace.bundle import words
from virtrace.bundle.redact.context import Names
from virtrace.bundle.redact.shapes import (
    CODE,
    COMMON_NAME,
    COUNTED,
    LIBRARY,
    PLAIN,
    QOM_PART,
    shapes,
)

_LONGEST_PLAIN = 128
# Fewer digits are the number of a device or of a version.
_MANY_DIGITS = re.compile("(?:[0-9][^0-9]*){5}")


def is_plain(text: str, names: Names) -> bool:
    """Whether a text stays because of its form."""
    if len(text) > _LONGEST_PLAIN or not (PLAIN.fullmatch(text) or is_code(text)):
        return False
    if next(shapes(text), None):
        return False
    names.harmless(text)
    return True


def is_code(text: str) -> bool:
    """Whether it is a name from the source of libvirt or QEMU, made of words they use."""
    return bool(CODE.fullmatch(text)) and are_words(_camel_parts(text))


def is_compound(key: str) -> bool:
    """Whether a key of QMP is made of known words and few digits."""
    return are_words(_camel_parts(key)) and not _MANY_DIGITS.search(key)


def is_common_file(name: str) -> bool:
    """Whether many hosts have a file of this name."""
    if COMMON_NAME.fullmatch(name):
        return True
    return bool(LIBRARY.fullmatch(name)) and are_words(_camel_parts(name))


def is_numbered(part: str) -> bool:
    """Whether a part of a QOM path is a known word with an index: ``unattached[0]``."""
    known = are_words(re.split("[-_.]", part.partition("[")[0]))
    return bool(QOM_PART.fullmatch(part)) and known


def is_quantity(key: str) -> bool:
    """Whether a number under this key is a quantity rather than a name."""
    return bool(COUNTED.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", key).lower()))


def are_words(parts: list[str]) -> bool:
    return all(words.is_word(part.lower()) or len(part) < 2 for part in parts)


def _camel_parts(text: str) -> list[str]:
    return [part.lower() for part in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", text)]
