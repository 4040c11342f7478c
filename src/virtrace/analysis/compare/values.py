"""Compare values of two traces: differences, counters, and values that must differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from virtrace.analysis.quoted import step
from virtrace.trace.format import Json, is_pointer, is_unavailable, unavailable

# Kinds of differences. Two traces with only the last three kinds are equal.
VALUE = "value"
ONLY_A, ONLY_B = "only-a", "only-b"
FELL = "fell"
COUNTER = "counter"
UNSEEN_A, UNSEEN_B = "unseen-a", "unseen-b"
HARMLESS = frozenset({COUNTER, UNSEEN_A, UNSEEN_B})

_ABSENT = object()
_NOT_RECORDED = unavailable("not recorded")

# Names of QEMU's statistics and of libvirt's copy of them.
_CLOCK = re.compile("idle_time_ns|.*_latency_ns|avg_.*_queue_depth")
_COUNTER = re.compile(
    ".*(_operations|_req|_bytes|_merged|_times|_time_ns)|discard-(nb|bytes)-.*|bins"
)
_COUNTED = re.compile(r'\.stats\b|\["driver-specific"\]')

_NULL = "0x0"
# libvirt numbers the nodes that it creates, and QEMU numbers nodes without a name.
_NODE = re.compile(r"\blibvirt-[0-9]+-|#block[0-9]+")
# The host in a URL is not a folder.
_FOLDER = re.compile(r'(?<!/)/(?:[^/"\s]+/)+')
_QOM = "/machine/"


@dataclass(frozen=True)
class ComparedAt:
    """The place of a compared value.

    where: the function or point; the QMP command, with its arguments if both sides sent the
    same; or ``host``.
    part: ``arguments`` or ``returned`` of a function; ``values`` of a point; ``sent``, ``reply`` or
    ``entries`` (length of a list) of QMP; ``facts`` of the host.
    entry: in QMP's lists, which node of the disk: ``""`` (its own), ``parent``, ``backing``...;
    else None.
    seq_a, seq_b: the events; None if unknown.
    """

    where: str
    part: str
    entry: str | None = None
    seq_a: int | None = None
    seq_b: int | None = None


@dataclass(frozen=True)
class Difference:
    """A difference.

    kind: one of the kinds above.
    path: in the part, or in the entry, for jq.
    a, b: the values; None if that side has none.
    """

    kind: str
    place: ComparedAt
    path: str
    a: Json = None
    b: Json = None


@dataclass
class Values:
    """Compares values, and counts those that it ignores.

    same_daemon: whether both traces are of one process.
    same_build: whether both are of the same binaries.
    a_is_later: whether A was recorded after B.
    ignored: by kind, number of values that differ as they must.
    folders: pairs of folders that are the only difference between two paths.
    """

    same_daemon: bool
    same_build: bool
    a_is_later: bool
    ignored: Counter[str] = field(default_factory=Counter)
    folders: Counter[tuple[str, str]] = field(default_factory=Counter)

    def differences(
        self, place: ComparedAt, a: Json, b: Json, *, captured: bool = False
    ) -> Iterator[Difference]:
        """captured: a missing value right below was not captured, rather than not there."""
        # Not recursive: JSON can be deeper than Python's stack.
        rest: list[tuple[int, str, str, Json, Json]] = [(0, "", "", a, b)]
        while rest:
            depth, path, name, a, b = rest.pop()
            if captured and depth == 1:
                a = _NOT_RECORDED if a is _ABSENT else a
                b = _NOT_RECORDED if b is _ABSENT else b
            below = _below(a, b)
            if below is not None:
                for key, below_a, below_b in reversed(below):
                    named = key if isinstance(key, str) else name
                    rest.append((depth + 1, path + step(key), named, below_a, below_b))
                continue
            kind = self._kind(place, path, name, a, b)
            if kind is not None:
                sides = (None if value is _ABSENT else value for value in (a, b))
                yield Difference(kind, place, path or ".", *sides)

    def _kind(self, place: ComparedAt, path: str, name: str, a: Json, b: Json) -> str | None:
        if is_unavailable(a) or is_unavailable(b):
            if is_unavailable(a) and is_unavailable(b):
                return None
            return UNSEEN_A if is_unavailable(a) else UNSEEN_B
        if a is _ABSENT or b is _ABSENT:
            return ONLY_B if a is _ABSENT else ONLY_A
        # repr distinguishes true from 1, and NaN is equal to itself.
        if repr(a) == repr(b):
            return None
        if place.part == "values" and name in ("file", "line") and not self.same_build:
            return self._ignore("places in libvirt's source")
        if isinstance(a, str) and isinstance(b, str):
            return self._text(a, b)
        cut = _cut(a, b)
        if cut is not None:
            return cut
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            return self._number(path, name, a, b)
        return VALUE

    def _number(self, path: str, name: str, a: float, b: float) -> str | None:
        if isinstance(a, bool) or isinstance(b, bool):
            return VALUE
        if not _COUNTED.search(path):
            return VALUE
        if _CLOCK.fullmatch(name):
            return self._ignore("QEMU's idle times and latencies")
        if _COUNTER.fullmatch(name):
            # A counter of QEMU falls only if QEMU was restarted.
            return FELL if self.same_daemon and (a < b) is self.a_is_later else COUNTER
        return VALUE

    def _text(self, a: str, b: str) -> str | None:
        if is_pointer(a) and is_pointer(b):
            return VALUE if _NULL in (a, b) else self._ignore("addresses")
        a, b = (_NODE.sub("libvirt-#-", text) for text in (a, b))
        if a == b:
            return self._ignore("numbers in node names")
        # For one daemon, another folder means another file.
        if self.same_daemon or a.startswith(_QOM) or without_folders(a) != without_folders(b):
            return VALUE
        folders = zip(_FOLDER.findall(a), _FOLDER.findall(b))
        self.folders.update(pair for pair in folders if pair[0] != pair[1])
        return self._ignore("folders of files")

    def _ignore(self, what: str) -> str | None:
        self.ignored[what] += 1
        return None


def without_folders(text: str) -> str:
    """Remove folders from a text: two hosts, or two labs, keep the same files in other folders."""
    return _FOLDER.sub("/", text)


def _below(a: Json, b: Json) -> list[tuple[str | int, Json, Json]] | None:
    """Return what is below on both sides; None if their types differ."""
    if is_unavailable(a) or is_unavailable(b):
        return None
    if isinstance(a, dict) and isinstance(b, dict):
        return [(key, a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in dict.fromkeys((*a, *b))]
    if isinstance(a, list) and isinstance(b, list):
        return [(index, *pair) for index, pair in enumerate(zip_longest(a, b, fillvalue=_ABSENT))]
    return None


def _cut(a: Json, b: Json) -> str | None:
    """Return the kind of difference if one text is a cut beginning of the other, else None."""
    for part, whole, kind in ((a, b, UNSEEN_A), (b, a, UNSEEN_B)):
        if isinstance(part, dict) and isinstance(whole, str):
            beginning = part.get("text")
            if isinstance(beginning, str) and whole.startswith(beginning):
                return kind if part.get("length") == len(whole.encode(errors="replace")) else VALUE
    return None
