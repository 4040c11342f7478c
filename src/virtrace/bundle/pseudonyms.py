"""Private values, and the pseudonyms that a bundle contains instead."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from virtrace.bundle import words

# What --keep can leave as it is.
KINDS = {
    "domain": "names of guests",
    "host": "names of hosts",
    "uuid": "UUIDs",
    "path": "names of files, folders and devices",
    "serial": "serial numbers and WWNs of disks and machines",
    "mac": "MAC addresses",
    "ip": "IP addresses",
    "user": "names of users",
    "email": "e-mail addresses",
    "pool": "names of storage pools and volume groups",
    "volume": "names of volumes",
    "snapshot": "names of snapshots and checkpoints",
    "secret": "passwords, keys and other secrets",
    "text": "all other text that is not known to be harmless, as descriptions",
}

_SHORTEST = 4
_SHORTEST_NUMBER = 8
# These stay at the end of a file's pseudonym: they say what kind of file it is.
_ENDING = re.compile(
    r"(?:\.(?:qcow2?|raw|img|iso|vmdk|vdi|vhdx?|qed|luks|fd|rom|bin|sock|socket|log|conf|xml|pid"
    r"|json|yaml|pem|snap|snapshot|bak|debug)|\.so(?:\.[0-9]+)*)$"
)


class Originals:
    """Collects what is private; returns every text unchanged (bundle.redact.context.Names)."""

    def __init__(self) -> None:
        # The kinds of each original, in the order in which they were met.
        self.kinds: dict[str, dict[str, None]] = {}
        # What stays, in lower case: finding it in a bundle is no leak.
        self.harmless_texts: set[str] = set()

    def add(self, kind: str, original: str) -> str:
        self.kinds.setdefault(original, {})[kind] = None
        return original

    def harmless(self, text: str) -> None:
        self.harmless_texts.add(text.lower())

    def number(self, number: int) -> None:
        self.harmless_texts.add(str(number))

    def watch(self, original: str, pseudonym: str) -> None:
        """Paths are known once their parts are."""

    def known(self, original: str) -> str | None:
        return None

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        return None

    def replace(self, text: str) -> str:
        return text


class Pseudonyms:
    """One pseudonym for each original, whatever it names (bundle.redact.context.Names)."""

    def __init__(self, originals: Originals, keep: Iterable[str] = ()) -> None:
        """keep: the kinds that stay; an original that is also of another kind does not."""
        self.keep = frozenset(keep)
        self._kinds = originals.kinds
        self._watched: dict[str, str] = {}
        self._forms = "\n".join(sorted(originals.harmless_texts))
        self._given: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._ordinary: dict[str, bool] = {}
        distinct = [original for original in self._kinds if not self.is_ordinary(original)]
        self._forbidden = frozenset(original.lower() for original in distinct)
        for original in self._kinds:
            self._give(original)
        found = sorted(
            (original for original in distinct if self._given[original] != original),
            key=len,
            reverse=True,
        )
        self._pattern = re.compile(_alternatives(found), re.IGNORECASE) if found else None

    def add(self, kind: str, original: str) -> str:
        if original not in self._given:
            self._kinds.setdefault(original, {})[kind] = None
            self._give(original)
        return self._given[original]

    def harmless(self, text: str) -> None:
        """Do nothing: all of them were collected."""

    def number(self, number: int) -> None:
        """Do nothing: all of them were collected."""

    def watch(self, original: str, pseudonym: str) -> None:
        if original != pseudonym:
            self._watched[original] = pseudonym

    def known(self, original: str) -> str | None:
        """Return the pseudonym of a value that is private at another place."""
        given = self._given.get(original)
        return None if given is None or self._is_common(original) else given

    def _is_common(self, original: str) -> bool:
        """Whether it is a part of paths, such as `libvirt`, which elsewhere is an ordinary word."""
        return self.kind_of(original) in ("path", "text") and self.is_ordinary(original)

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Return end and pseudonym of a distinctive original that begins at ``start``."""
        found = self._pattern.match(text, start) if self._pattern else None
        if found is None:
            return None
        return found.end(), self._of_any_case(found[0])

    def replace(self, text: str) -> str:
        """Replace all distinctive originals in a text, longest first."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self._of_any_case(found[0]), text)

    def is_ordinary(self, original: str) -> bool:
        """Whether a bundle can hold it without having it from the host.

        It is very short, or a part of what QEMU, libvirt and virtrace say themselves: finding it
        in a bundle says nothing. It is replaced, and looked for, where a name can stand.
        """
        if original not in self._ordinary:
            text = original.lower().strip()
            self._ordinary[original] = (
                len(text.encode("utf-8", "surrogatepass")) < _SHORTEST
                or (text.isdecimal() and len(text) < _SHORTEST_NUMBER)
                or words.in_corpus(text)
                or text in self._forms
            )
        return self._ordinary[original]

    @property
    def hidden(self) -> dict[str, str]:
        """Pseudonyms by original, for all that must not be found in the bundle."""
        given = {each: name for each, name in self._given.items() if name != each}
        return {**given, **self._watched}

    def map(self) -> dict[str, dict[str, str]]:
        """Originals by pseudonym, by kind, for the person who made the bundle."""
        found: dict[str, dict[str, str]] = {}
        for original, pseudonym in self._given.items():
            if original != pseudonym:
                found.setdefault(self.kind_of(original), {})[pseudonym] = original
        return found

    @functools.cached_property
    def pseudonyms(self) -> frozenset[str]:
        """All pseudonyms; complete only after all were given."""
        return frozenset(name for original, name in self._given.items() if name != original)

    def marked(self, text: str) -> list[tuple[str, bool]]:
        """Split a text into parts, and say whether each is a pseudonym."""
        parts = re.split(r"([a-z0-9]+-[0-9]+(?:\.[a-z0-9.]+)?)", text)
        return [(part, part in self.pseudonyms) for part in parts if part]

    def kind_of(self, original: str) -> str:
        """Return the first kind that it was seen as; a specific kind wins over `text`."""
        kinds = list(self._kinds.get(original, {"path" if "/" in original else "text": None}))
        return next((kind for kind in kinds if kind != "text"), kinds[0])

    def _give(self, original: str) -> None:
        kinds = set(self._kinds[original]) - {"text"} or {"text"}
        if kinds <= self.keep:
            self._given[original] = original
            return
        kind = self.kind_of(original)
        ending = ""
        if kind == "path":
            found = _ENDING.search(original)
            ending = found[0] if found and found.start() > 0 else ""
        stem = kind
        if kind == "ip":
            stem = "ipv6" if ":" in original else "ipv4"
        while True:
            self._numbers[stem] += 1
            pseudonym = f"{stem}-{self._numbers[stem]}{ending}"
            taken = pseudonym in self._kinds
            if not taken and self._forbidden.isdisjoint(_inner(pseudonym)):
                break
        self._given[original] = pseudonym

    def _of_any_case(self, found: str) -> str:
        if found in self._given:
            return self._given[found]
        # Some pairs of letters that match regardless of case differ in lower case.
        fold = found.casefold()
        return next((name for each, name in self._given.items() if each.casefold() == fold), "?")


def _inner(text: str) -> Iterator[str]:
    """Yield the originals that it contains."""
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            yield text[start:end]


def _alternatives(originals: list[str]) -> str:
    """Make a pattern of all, longest first; at most positions two characters rule out all."""
    groups: dict[str, dict[str, list[str]]] = {}
    for original in originals:
        groups.setdefault(original[0], {}).setdefault(original[1:2], []).append(original[2:])
    return "|".join(
        re.escape(first)
        + "(?:"
        + "|".join(
            f"{re.escape(second)}(?:{'|'.join(map(re.escape, rests))})"
            for second, rests in seconds.items()
        )
        + ")"
        for first, seconds in groups.items()
    )
