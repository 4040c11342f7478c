"""Two traces side by side: calls, the way they went, what was told in them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from operator import itemgetter
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

from virtrace.analysis import values
from virtrace.analysis.explain import Explanation, explain
from virtrace.analysis.qmp import REPLY, SEND, Exchange
from virtrace.analysis.spans import Call, CallBuilder, Child, Span
from virtrace.analysis.summary import Summary
from virtrace.analysis.values import Difference, Place, Values
from virtrace.errors import TraceError
from virtrace.trace.format import Event, Json, Record, is_unavailable, unavailable
from virtrace.trace.reader import Recording

Item = TypeVar("Item")

# Commands that answer with a list of all devices or nodes, of which one disk is asked about.
_LISTS = frozenset({"query-block", "query-blockstats", "query-named-block-nodes"})

# Of the host's records. The domain's XML has more that is made anew each time than that is not.
_FACTS = ("path", "stat", "file_system", "image_info", "lvm")

# A difference of time is told from here on: so many times as long, and so much longer.
_RATIO = 2
_AT_LEAST_NS = 1_000_000

# Items on one side only, in one sequence: what comes after these is not aligned any more, as
# that takes a time that grows with their square.
_MOST_ALONE = 1000

# Each pair is kept with its calls, and nobody reads this many.
MOST_PAIRS = 200
# Calls of one trace that wait in memory for the one of the other.
_MOST_NEAR = 200


@dataclass(frozen=True)
class Step:
    """What happened on one side only.

    side: ``a`` or ``b``. kind: ``function``, ``point``, ``line`` or ``qmp``. name: the function,
    point or command; of a line its text, or its number where that is not known. within: the
    function that it happened in, by what both sides could see. arguments: of a QMP command;
    None where it has none.
    """

    side: str
    kind: str
    name: str
    within: str | None = None
    arguments: Json = None


@dataclass
class Pair:
    """Two calls that asked the same; equal pairs are one.

    a, b: of the first of them. explained: of both sides; None where the API is none that
    can be explained. calls: ``call`` of the events of each.
    """

    a: Call
    b: Call
    explained: tuple[Explanation, Explanation] | None
    steps: tuple[Step, ...]
    differences: tuple[Difference, ...]
    calls: list[tuple[int | None, int | None]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """But for counters, and for what only one side could see."""
        return not self.steps and all(each.kind in values.HARMLESS for each in self.differences)

    def of(self, *kinds: str) -> list[Difference]:
        return [each for each in self.differences if each.kind in kinds]

    @property
    def answers(self) -> list[Difference]:
        """What the API returned otherwise."""
        return [
            each
            for each in self.of(values.VALUE, values.ONLY_A, values.ONLY_B)
            if each.place.part == "returned" and each.place.where == self.a.root.name
        ]


@dataclass(frozen=True)
class Alone:
    """A call that the other trace has no other of. side: where it stands."""

    side: str
    call: Call


@dataclass(frozen=True)
class Hidden:
    """What happened on one side, and could not be seen on this one, and why."""

    side: str
    name: str
    why: str


@dataclass(frozen=True)
class Timing:
    """Medians of what took far longer on one side."""

    name: str
    a_ns: int
    b_ns: int


@dataclass(frozen=True)
class Comparison:
    """pairs: in the order in which a's calls began, as many as are told.

    more: further pairs of calls that are equal to none of them; more_differ: how many of them
    differ. passed: what was passed over on the way.
    """

    a: Recording
    b: Recording
    pairs: tuple[Pair, ...]
    alone: tuple[Alone, ...]
    hidden: tuple[Hidden, ...]
    notes: tuple[str, ...]
    timings: tuple[Timing, ...]
    passed: Values
    more: int = 0
    more_differ: int = 0

    @property
    def equal(self) -> bool:
        return not self.alone and not self.more_differ and all(pair.equal for pair in self.pairs)

    def problems(self, side: str) -> list[str]:
        """What is missing from a trace, or from one of its calls."""
        trace = self.a if side == "a" else self.b
        calls = [pair.a if side == "a" else pair.b for pair in self.pairs]
        calls += [each.call for each in self.alone if each.side == side]
        return trace.problems + [problem for call in calls for problem in call.problems]


def compare(a: Recording, b: Recording, spill: IO[bytes] | None = None) -> Comparison:
    """Reads both twice: to know which calls belong together, and to compare those.

    spill: a file for what is too much to be kept in memory, where none can be opened any more.
    """
    both = _Both(a, b)
    outlines = _outlines(a), _outlines(b)
    # By the place among a's calls as they end: that among b's, and among the pairs.
    partners: dict[int, tuple[int, int]] = {}
    # By the place among the calls of its side.
    alone_a: dict[int, Alone | None] = {}
    alone_b: dict[int, Alone | None] = {}
    for place, (one, other) in enumerate(_paired(outlines[0].calls, outlines[1].calls)):
        if one is not None and other is not None:
            partners[one.place] = other.place, place
        elif one is not None:
            alone_a[one.place] = None
        elif other is not None:
            alone_b[other.place] = None
    found: dict[bytes, tuple[int, Pair]] = {}
    more = more_differ = 0
    summaries = Summary(), Summary()
    with spill or TemporaryFile(prefix="virtrace-") as file:
        later = _Later(b, alone_b, file)
        for number, one_call in enumerate(_calls(a)):
            if number not in partners:
                alone_a[number] = Alone("a", one_call.alone())
                continue
            partner, place = partners[number]
            other_call = later.call(partner)
            summaries[0].add(one_call)
            summaries[1].add(other_call)
            pair = both.pair(one_call, other_call)
            key = _key(pair)
            if key not in found and len(found) >= MOST_PAIRS:
                more += 1
                more_differ += not pair.equal
                continue
            first, kept = found.setdefault(key, (place, pair))
            calls = kept.calls
            if place < first:
                found[key] = place, pair
                pair.calls = calls
            calls.append((one_call.id, other_call.id))
        later.finish()
    alone = [*alone_a.values(), *alone_b.values()]
    if None in alone:
        raise _changed()
    ordered = [pair for _, pair in sorted(found.values(), key=lambda each: each[0])]
    return Comparison(
        a=a,
        b=b,
        pairs=tuple(ordered),
        alone=tuple(filter(None, alone)),
        hidden=tuple(both.hidden(*(each.names for each in outlines))),
        notes=tuple(dict.fromkeys([*_settings(a, b), *both.notes])),
        timings=tuple(_timings(*summaries, both.seen)),
        passed=both.values,
        more=more,
        more_differ=more_differ,
    )


def texts(call: Call) -> Record:
    """The arguments that say what was asked about, such as domain and disk."""
    return {name: value for name, value in call.root.arguments.items() if values.is_text(value)}


# Calls


@dataclass(frozen=True)
class _Outline:
    """What says which calls belong together.

    like: the first call that asked the same, for all of them. place: among the calls, as they end.
    """

    like: Call
    place: int


@dataclass
class _Outlines:
    """calls: in the order in which they began. names: of all that happened in them, likewise."""

    calls: list[_Outline]
    names: list[str]


def _calls(trace: Recording) -> Iterator[Call]:
    return CallBuilder(trace.most_open).calls(trace)


def _outlines(trace: Recording) -> _Outlines:
    calls: list[tuple[int, _Outline]] = []
    like: dict[str, Call] = {}
    names: dict[str, tuple[int, int]] = {}
    for place, call in enumerate(_calls(trace)):
        asked = _asked(call)
        if asked not in like:
            like[asked] = call.alone()
        calls.append((call.root.t_enter_ns, _Outline(like[asked], place)))
        for node in call.nodes():
            met = call.root.t_enter_ns, place
            name = _name(node)
            if names.setdefault(name, met) > met:
                names[name] = met
    calls.sort(key=itemgetter(0))
    return _Outlines([outline for _, outline in calls], sorted(names, key=lambda name: names[name]))


class _Later:
    """Calls of a trace by their places, asked for once each, in nearly any order.

    Those that are passed on the way are kept until they are asked for: a few in memory, the rest
    in a file. alone: the places that are not asked for; gets what stands there.
    """

    def __init__(self, trace: Recording, alone: dict[int, Alone | None], file: IO[bytes]) -> None:
        self._rest = enumerate(_calls(trace))
        self._alone = alone
        self._near: dict[int, Call] = {}
        self._far: dict[int, tuple[int, int]] = {}
        self._file = file

    def call(self, place: int) -> Call:
        if place in self._near:
            return self._near.pop(place)
        if place in self._far:
            start, size = self._far.pop(place)
            self._file.seek(start)
            kept: Call = pickle.loads(zlib.decompress(self._file.read(size)))
            return kept
        for passed, call in self._rest:
            if passed == place:
                return call
            self._keep(passed, call)
        raise _changed()

    def finish(self) -> None:
        """To the end of the trace, where it says what is missing from it."""
        for passed, call in self._rest:
            self._keep(passed, call)

    def _keep(self, place: int, call: Call) -> None:
        if place in self._alone:
            self._alone[place] = Alone("b", call.alone())
            return
        if len(self._near) < _MOST_NEAR:
            self._near[place] = call
            return
        data = zlib.compress(pickle.dumps(call, pickle.HIGHEST_PROTOCOL), 1)
        self._far[place] = self._file.seek(0, os.SEEK_END), len(data)
        self._file.write(data)


def _changed() -> TraceError:
    return TraceError("the trace has changed while it was compared", "compare it once it ended")


def _paired(
    a: list[_Outline], b: list[_Outline]
) -> Iterator[tuple[_Outline | None, _Outline | None]]:
    """In order, those that asked the same; then those where one side knows less of what."""
    left = a, b
    unread = {
        name
        for each in (*a, *b)
        for name, value in texts(each.like).items()
        if is_unavailable(value)
    }
    for key in (_asked, _asked_by_name, partial(_asked_by_name, without=unread)):
        waiting: dict[str, list[_Outline]] = defaultdict(list)
        for each in reversed(left[1]):
            waiting[key(each.like)].append(each)
        alone = []
        for each in left[0]:
            same = waiting[key(each.like)]
            if same:
                yield each, same.pop()
            else:
                alone.append(each)
        others = {each.place for several in waiting.values() for each in several}
        left = alone, [each for each in left[1] if each.place in others]
    yield from ((each, None) for each in left[0])
    yield from ((None, each) for each in left[1])


def _asked(call: Call, without: Collection[str] = ()) -> str:
    asked = {name: value for name, value in texts(call).items() if name not in without}
    return json.dumps([call.root.name, asked], sort_keys=True)


def _asked_by_name(call: Call, without: Collection[str] = ()) -> str:
    return values.without_folders(_asked(call, without))


def _key(pair: Pair) -> bytes:
    """Of what makes two pairs one: all but the counters, and where it stands."""
    differences = [
        repr((each.kind, each.place.where, each.place.part, each.place.entry, each.path))
        + ("" if each.kind == values.COUNTER else repr((each.a, each.b)))
        for each in pair.differences
    ]
    returned = None if pair.explained is None else (pair.a.root.returned, pair.b.root.returned)
    key = repr((_asked(pair.a), returned, pair.steps, differences))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


# What is seen of a call on the way


@dataclass(frozen=True)
class _Seen:
    """A function or point, and the nearest function around it that both sides can see."""

    node: Span | Event
    within: str | None

    @property
    def key(self) -> tuple[str | None, str]:
        return self.within, self.node.name


@dataclass
class _Way:
    """What a call went through. lines: of each function that was seen, by its span."""

    seen: list[_Seen] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    lines: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))


def _way(call: Call, seen: frozenset[str]) -> _Way:
    """Functions that only one side can see are left out, and what they called is kept."""
    way = _Way()
    # Not recursive: a trace can be deeper than Python's stack.
    rest: list[tuple[Child, Span | None]] = [(call.root, None)]
    while rest:
        node, around = rest.pop()
        within = around.name if around else None
        if isinstance(node, Span):
            if node.name in seen or node is call.root:
                way.seen.append(_Seen(node, within))
                around = node
            rest.extend((child, around) for child in reversed(node.children))
        elif isinstance(node, Exchange):
            way.exchanges.append(node)
        elif node.event.type == "line":
            if around is not None and around.name == node.event.name:
                way.lines[around.id].append(node.event)
        elif node.event.name in seen and node.event.name != REPLY:
            way.seen.append(_Seen(node.event, within))
    return way


def _is_later(a: Record, b: Record) -> bool:
    """Whether the trace of one header began after that of the other; False where none tells."""
    if a["clock"]["source"] == b["clock"]["source"]:
        return bool(a["clock"]["start_ns"] > b["clock"]["start_ns"])
    # Two engines have two clocks, which part while the host sleeps.
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(a["started"]) > datetime.fromisoformat(b["started"])
    return False


class _Both:
    """What goes for all calls of the two traces. seen: the probes that both could see."""

    def __init__(self, a: Recording, b: Recording) -> None:
        self.traces = a, b
        self._facts = a.host_records(), b.host_records()
        self.notes: list[str] = []
        self._probes = tuple({each["name"]: each for each in t.header["probes"]} for t in (a, b))
        found = [
            {name for name, probe in probes.items() if probe["level"] != "missing"}
            for probes in self._probes
        ]
        self.seen = frozenset(found[0] & found[1])
        targets = [(each.header["target"]["pid"], each.header["target"]["exe"]) for each in (a, b)]
        same_daemon = targets[0] == targets[1] and _is_same(_loaded(a, b, "base"))
        self.values = Values(
            same_daemon=same_daemon,
            same_build=same_daemon or _is_same(_loaded(a, b, "build_id")),
            a_is_later=_is_later(a.header, b.header),
        )

    def hidden(self, a: Iterable[str], b: Iterable[str]) -> Iterator[Hidden]:
        """a, b: the names of all that happened."""
        for side, happened, probes in (("b", a, self._probes[1]), ("a", b, self._probes[0])):
            for name in happened:
                if name not in self.seen:
                    probe = probes.get(name)
                    why = "its recipe does not trace it" if probe is None else probe["why"]
                    yield Hidden(side, name, why or "no reason is given")

    def pair(self, a: Call, b: Call) -> Pair:
        explained = [
            explain([call], trace.header["probes"], host)
            for call, trace, host in zip((a, b), self.traces, self._facts)
        ]
        both = (explained[0][0], explained[1][0]) if all(explained) else None
        found = list(self._walk(_way(a, self.seen), _way(b, self.seen), both))
        return Pair(
            a,
            b,
            both,
            tuple(each for each in found if isinstance(each, Step)),
            tuple(each for each in found if isinstance(each, Difference)),
        )

    def _walk(
        self, a: _Way, b: _Way, explained: tuple[Explanation, Explanation] | None
    ) -> Iterator[Step | Difference]:
        for one, other in _aligned(a.seen, b.seen, lambda each: each.key):
            if one is None or other is None:
                side, each = ("a", one) if one else ("b", other)
                assert each is not None
                kind = "function" if isinstance(each.node, Span) else "point"
                yield Step(side, kind, each.node.name, each.within)
            elif isinstance(one.node, Span) and isinstance(other.node, Span):
                yield from self._functions(one.node, other.node)
                lines = a.lines.get(one.node.id, []), b.lines.get(other.node.id, [])
                yield from self._lines(one.node.name, *lines)
            elif isinstance(one.node, Event) and isinstance(other.node, Event):
                place = Place(one.node.name, "values", None, one.node.seq, other.node.seq)
                yield from self._captured(place, one.node.values, other.node.values)
        if explained is not None:
            yield from self._host(*explained)
        if SEND in self.seen:
            nodes = [_nodes(each) for each in explained] if explained else [{}, {}]
            for sent, also in _aligned(a.exchanges, b.exchanges, _sent, lambda each: each.command):
                if sent is None or also is None:
                    side, exchange = ("a", sent) if sent else ("b", also)
                    assert exchange is not None
                    name = exchange.command or "command of unknown name"
                    yield Step(side, "qmp", name, None, _arguments(exchange))
                else:
                    yield from self._exchanges(sent, also, nodes)

    def _captured(self, place: Place, a: Json, b: Json) -> Iterator[Difference]:
        return self.values.differences(place, a, b, captured=True)

    def _functions(self, a: Span, b: Span) -> Iterator[Difference]:
        yield from self._captured(Place(a.name, "arguments"), a.arguments, b.arguments)
        place = Place(a.name, "returned", None, a.exit_seq, b.exit_seq)
        yield from self._captured(place, _returned(a), _returned(b))

    def _host(self, a: Explanation, b: Explanation) -> Iterator[Difference]:
        one, other = a.case.host, b.case.host
        if one is not None and other is not None:
            facts = [{fact: each.record.get(fact) for fact in _FACTS} for each in (one, other)]
            yield from self.values.differences(Place("host", "facts"), *facts)
        elif one is not None or other is not None:
            self.notes.append(f"only {'A' if one else 'B'} has facts of the host")

    def _lines(self, function: str, a: list[Event], b: list[Event]) -> Iterator[Step]:
        if bool(a) != bool(b):
            side = "A" if a else "B"
            self.notes.append(f"only {side} has the source lines of {function}")
            return
        by_text = all(isinstance(each.values.get("text"), str) for each in (*a, *b))
        if not by_text and not self.values.same_build:
            self.notes.append(
                f"the source lines of {function} are of two builds and have no text: not compared"
            )
            return
        told = "text" if by_text else "line"
        for one, other in _aligned(a, b, lambda each: repr(each.values.get(told))):
            if one is None or other is None:
                side, each = ("a", one) if one else ("b", other)
                assert each is not None
                yield Step(side, "line", str(each.values.get(told)), function)

    def _exchanges(
        self, a: Exchange, b: Exchange, nodes: Sequence[dict[str, str]]
    ) -> Iterator[Difference]:
        command = a.command or "command of unknown name"
        place = Place(command, "sent", None, a.send.seq, b.send.seq)
        sent = _arguments(a)
        if sent is not None and sent == _arguments(b):
            # The same command can be sent twice with other arguments.
            place = replace(place, where=f"{command} {json.dumps(sent, ensure_ascii=False)}")
        yield from self.values.differences(place, sent or {}, _arguments(b) or {})
        seq = [each.reply.seq if each.reply else None for each in (a, b)]
        place = Place(place.where, "reply", None, *seq)
        replies = [_reply(each) for each in (a, b)]
        lists: list[Json] = [reply.get("return") for reply in replies]
        if command not in _LISTS or not all(isinstance(each, list) for each in lists):
            yield from self.values.differences(place, *replies)
            return
        # Devices of other disks, and how many there are, are not what was asked about.
        counts = [len(each) for each in lists]
        yield from self.values.differences(replace(place, part="entries"), *counts)
        entries = [_entries(*each) for each in zip(lists, nodes)]
        for entry in dict.fromkeys((*entries[0], *entries[1])):
            one, other = ({"": each[entry]} if entry in each else {} for each in entries)
            yield from self._entry(replace(place, entry=entry), one, other)

    def _entry(self, place: Place, a: Record, b: Record) -> Iterator[Difference]:
        if not a or not b:
            kind = values.ONLY_A if a else values.ONLY_B
            yield Difference(kind, place, ".", a.get(""), b.get(""))
            return
        yield from self.values.differences(place, a[""], b[""])


def _aligned(
    a: Sequence[Item], b: Sequence[Item], *keys: Callable[[Item], object]
) -> Iterator[tuple[Item | None, Item | None]]:
    """Side by side by the first key, in order; what that leaves open, by the next one."""
    key, *coarser = keys
    at_a = at_b = 0
    matches = _matches([key(each) for each in a], [key(each) for each in b])
    for next_a, next_b in [*matches, (len(a), len(b))]:
        ones, others = a[at_a:next_a], b[at_b:next_b]
        if ones and others and coarser:
            yield from _aligned(ones, others, *coarser)
        else:
            yield from ((each, None) for each in ones)
            yield from ((None, each) for each in others)
        if next_a < len(a):
            yield a[next_a], b[next_b]
        at_a, at_b = next_a + 1, next_b + 1


def _matches(a: Sequence[object], b: Sequence[object]) -> list[tuple[int, int]]:
    """Indices of a longest common subsequence, by Myers's greedy algorithm.

    difflib takes the longest run first, which pairs the turns of a loop with wrong ones.
    """
    # By diagonal: how far a got, and the matches on the way there, the last one first.
    reached: dict[int, tuple[int, Any]] = {1: (0, None)}
    for alone in range(min(len(a) + len(b), _MOST_ALONE) + 1):
        for diagonal in range(-alone, alone + 1, 2):
            left, up = reached.get(diagonal - 1, (-1, None)), reached.get(diagonal + 1, (-1, None))
            at, path = up if left[0] < up[0] else (left[0] + 1, left[1])
            while at < len(a) and at - diagonal < len(b) and a[at] == b[at - diagonal]:
                path = (at, at - diagonal, path)
                at += 1
            reached[diagonal] = at, path
            if at >= len(a) and at - diagonal >= len(b):
                return _unrolled(path)
    return _unrolled(max(reached.values(), key=lambda each: each[0])[1])


def _unrolled(path: Any) -> list[tuple[int, int]]:
    matches = []
    while path is not None:
        *match, path = path
        matches.append((match[0], match[1]))
    return matches[::-1]


def _name(node: Child) -> str:
    if isinstance(node, Span):
        return node.name
    return SEND if isinstance(node, Exchange) else node.event.name


def _returned(span: Span) -> Json:
    if span.returned is None:
        return unavailable(span.lost or "its return was not seen")
    return span.returned


def _sent(exchange: Exchange) -> object:
    return exchange.command, json.dumps(_arguments(exchange), sort_keys=True)


def _arguments(exchange: Exchange) -> Json:
    document = exchange.send.values.get("json")
    return document.get("arguments") if isinstance(document, dict) else None


def _reply(exchange: Exchange) -> Record:
    """What QEMU answered, without the id."""
    document = exchange.reply.values.get("json") if exchange.reply else None
    if not isinstance(document, dict):
        why = "it was not captured whole" if exchange.reply else "no reply was seen"
        return {"return": unavailable(why)}
    return {key: value for key, value in document.items() if key in ("return", "error")}


def _nodes(explanation: Explanation) -> dict[str, str]:
    """By name, which node of the disk it is: ``""`` the first one, ``parent``, ``backing``..."""
    devices = explanation.case.block.devices
    if len({device.name for device in devices}) != 1:
        return {}
    found: dict[str, str] = {}
    rest: list[tuple[str, Json]] = [("", devices[0].entry.value)]
    while rest:
        place, entry = rest.pop()
        if isinstance(entry, dict):
            for below in ("backing", "parent"):
                rest.append((f"{place}.{below}".lstrip("."), entry.get(below)))
            if isinstance(entry.get("node-name"), str):
                found.setdefault(entry["node-name"], place)
    return found


def _entries(told: list[Json], nodes: dict[str, str]) -> dict[str, Json]:
    """What a list says of the disk's nodes, by which of them it is."""
    found: dict[str, Json] = {}
    for entry in told:
        if isinstance(entry, dict):
            inserted = entry.get("inserted")
            name = entry.get("node-name") or (
                inserted.get("node-name") if isinstance(inserted, dict) else None
            )
            if isinstance(name, str) and name in nodes:
                found.setdefault(nodes[name], entry)
    return found


# The traces as a whole


def _loaded(a: Recording, b: Recording, key: str) -> list[tuple[Json, Json]]:
    """What is told of each file that both have loaded."""
    one, other = (
        {each["path"]: each[key] for each in trace.header["target"]["modules"]} for trace in (a, b)
    )
    return [(one[path], other[path]) for path in one if path in other]


def _is_same(loaded: list[tuple[Json, Json]]) -> bool:
    """Known of all files, of one at least."""
    return bool(loaded) and all(one is not None and one == other for one, other in loaded)


def _settings(a: Recording, b: Recording) -> Iterator[str]:
    """What was set up otherwise, and is no difference of the calls."""
    tools = [trace.header["tool"]["virtrace"] for trace in (a, b)]
    if tools[0] != tools[1]:
        yield f"A was recorded by virtrace {tools[0]}, B by {tools[1]}"
    recipes = [trace.header["recipe"] for trace in (a, b)]
    if any(recipes[0].get(part) != recipes[1].get(part) for part in ("spans", "points")):
        names = " and ".join(dict.fromkeys(str(recipe.get("name")) for recipe in recipes))
        yield f"the recipes ({names}) differ: only what both trace is compared"
    versions = [trace.header["target"]["libvirt_version"] for trace in (a, b)]
    builds = _loaded(a, b, "build_id")
    if versions[0] == versions[1] and any(
        None not in pair and len(set(pair)) > 1 for pair in builds
    ):
        yield f"both are libvirt {versions[0]}, but not the same build of it"
    debug_info = [
        any(probe["level"] in ("dwarf", "pack") for probe in trace.header["probes"])
        for trace in (a, b)
    ]
    if debug_info[0] != debug_info[1]:
        more, less = "AB" if debug_info[0] else "BA"
        yield f"{more} was traced with debug info, {less} without"


def _timings(a: Summary, b: Summary, seen: frozenset[str]) -> Iterator[Timing]:
    functions = [name for name in a.functions if name in seen]
    for rows, others, names in (
        (a.functions, b.functions, functions),
        (a.commands, b.commands, list(a.commands)),
    ):
        for name in names:
            one = rows[name].percentile_ns(50)
            other = others[name].percentile_ns(50) if name in others else None
            if one is not None and other is not None:
                low, high = sorted((one, other))
                if high > _RATIO * low and high - low >= _AT_LEAST_NS:
                    yield Timing(name, one, other)
