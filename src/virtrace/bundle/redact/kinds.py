"""What the place of a text implies about it: known.yaml, and the rules that follow from it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virtrace.bundle.pseudonyms import KINDS
from virtrace.documents import document

# How a text is read whose place does not say what it names.
READ_AS = {
    "argument": "an argument of a program",
    "code": "a function of libvirt or QEMU",
    "command": "a command line, of a shell or of QEMU's monitor",
    "disk": "a target, such as vda, or a path",
    "id": "a name that QEMU or libvirt may have made",
    "message": "prose of libvirt or QEMU",
    "name": "a name of unknown kind",
    "place": "a path, or the name of something in QEMU",
    "source": "a file of the source, or any other",
    "untyped": "anything: its form decides",
}
# These words in a key make its value a secret, whatever else the key says.
PASSWORD = re.compile(
    "passw(?:or)?d|passphrase|passcode|secret|token|credential|cookie|api-?key|private-?key|psk|(?:^|-)pin$"
)
# Kinds of what users give names to.
NAMES = frozenset(KINDS) - {"host", "path", "serial"}
# Names that have another kind if they have its form.
SHAPED = frozenset({"uuid", "mac", "ip", "email", "volume"})


def _inverted(lists: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: kind for kind, names in lists.items() for name in names}


_KNOWN: dict[str, Any] = document(Path(__file__).with_name("known.yaml"))
KEYS = _inverted(_KNOWN["keys"])
LISTS: dict[str, str] = _KNOWN["lists"]
ELEMENTS: dict[str, str] = _KNOWN["elements"]
ARGUMENTS: dict[str, list[str]] = _KNOWN["arguments"]
NAMED = _inverted(_KNOWN["named"])
EVERYWHERE: dict[str, list[str]] = _KNOWN["everywhere"]


@functools.lru_cache(maxsize=8192)
def kind_of_key(key: str) -> str | None:
    """Return the kind that a key implies, one of KINDS or READ_AS; None if it implies none."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[_.\s]", "-", key).lower()
    if name in KEYS:
        return KEYS[name]
    if PASSWORD.search(name):
        return "secret"
    *before, last = name.split("-")
    if last in _KNOWN["endings"]:
        return KEYS[last]
    if before and last in ("name", "names", "dname"):
        return KEYS.get(before[-1])
    return None


def pseudonym_kind(key: str) -> str:
    """Return the kind of pseudonyms for values under a key."""
    kind = kind_of_key(key)
    return kind if kind in KINDS else "text"


def kind_of_path(path: str) -> str | None:
    """Return the kind that a capture path implies: ``domain->name`` is the name of a guest."""
    fields = re.fullmatch(r"\*?\w+(?:(?:->|\.)\w+)+", path)
    if fields is None:
        return None
    *above, last = re.split(r"->|\.", path.lstrip("*"))
    if last == "name":
        # `def` is of whatever it is a part of.
        kinds = [NAMED[field] for field in above if field in NAMED]
        return kinds[0] if kinds else None
    kind = kind_of_key(last)
    return kind if kind in KINDS else None
