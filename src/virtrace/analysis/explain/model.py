"""What an explanation is made of: the case, its causes, their evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, Union

from virtrace import resources
from virtrace.analysis.blockinfo import seen_by
from virtrace.analysis.explain.messages import UNSEEN, errors_of, quoted_errors, said
from virtrace.analysis.lineage import Lineage
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call, Point
from virtrace.documents import parsed
from virtrace.trace.format import Event, FailureRecord, Json, ProbeRecord
from virtrace.trace.reader import NOTHING_SAID, HostSaid

Node = Union[Call, Point, Exchange]


class Bytes(int):
    """A number of bytes, for texts."""

    @classmethod
    def of(cls, number: int | None) -> Bytes | None:
        return None if number is None else cls(number)

    @property
    def mib(self) -> str:
        return f"{self / (1 << 20):,.1f} MiB"


class Nanoseconds(int):
    """A duration, for texts."""


class Cause(NamedTuple):
    """An entry of an explainer's YAML file; the head of disks.yaml describes the parts."""

    name: str
    says: str
    means: str
    do: tuple[tuple[str, str], ...] = ()
    versions: str | None = None
    either: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


class Finding(NamedTuple):
    """A cause that holds. possible: another finding may be the true one instead."""

    cause: Cause
    evidence: tuple[Evidence, ...]
    possible: bool = False


class Fact(NamedTuple):
    """A value of the answer, with what it means. seq, path: as of Evidence."""

    name: str
    value: Json
    meaning: str = ""
    seq: int | None = None
    path: str | None = None


class Case:
    """What an answer is about. Each explainer has a class of its own.

    moves: its numbers are others in each call, and no matter for its explanation.
    """

    moves = False

    @property
    def subject(self) -> tuple[str, ...]:
        """Names of what it is about, such as domain and disk."""
        raise NotImplementedError

    @property
    def names(self) -> Mapping[str, Json]:
        """Names and texts to fill into the causes' texts; None: unknown."""
        return {}

    @property
    def numbers(self) -> Mapping[str, int | None]:
        """Numbers to fill into the causes' texts, Bytes and Nanoseconds among them."""
        return {}

    @property
    def key(self) -> object:
        """A key that is equal for cases with one explanation, their findings being equal."""
        return self.subject, tuple(map(str, self.names.values())), tuple(self.numbers.values())

    @property
    def facts(self) -> Sequence[Fact]:
        """Values to show below the answer."""
        return ()

    @property
    def note(self) -> str | None:
        """A remark to show below them."""
        return None

    def failed_with(self, texts: Iterable[str]) -> list[Evidence] | None:
        """Return the reasons if the client got a message with one of the texts; else None."""
        return None

    @property
    def calls(self) -> Sequence[int | None]:
        """``call`` of the events that show it, if it is of the whole trace."""
        return ()


@dataclass(frozen=True)
class CallCase(Case):
    """What one call was answered; calls with equal answers are one case."""

    call: Call

    @property
    def error(self) -> str | None:
        """The message that the client got; None if there was no error, or none was seen."""
        return said(errors_of(self.call))

    @property
    def reasons(self) -> list[Evidence] | None:
        """The errors of the call; None if it did not fail."""
        return list(quoted_errors(self.call)) if self.call.failed else None

    def failed_with(self, texts: Iterable[str]) -> list[Evidence] | None:
        error = self.error
        return self.reasons if error is not None and any(map(error.__contains__, texts)) else None

    @property
    def names(self) -> Mapping[str, Json]:
        return {"error": self.error or UNSEEN}

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.call.id]


@dataclass(frozen=True)
class TimedCase(CallCase):
    """One call, which is a case of its own, as each takes another time."""

    @property
    def numbers(self) -> Mapping[str, int | None]:
        ns = self.call.root.duration_ns
        return {"duration": None if ns is None else Nanoseconds(ns)}

    @property
    def key(self) -> object:
        return self.call.id


C = TypeVar("C", bound=Case)
C_co = TypeVar("C_co", bound=Case, covariant=True)
Condition = Callable[[C], "list[Evidence] | None"]


class Catalogue(Generic[C]):
    """The causes of an explainer: texts from a YAML file, best first, and conditions.

    The last one is ``unknown``. Its condition is asked only if no other holds.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.conditions: dict[str, Condition[C]] = {}

    def condition(self, name: str) -> Callable[[Condition[C]], Condition[C]]:
        """Register a cause's condition, which returns its evidence, or None if it does not hold."""

        def add(condition: Condition[C]) -> Condition[C]:
            self.conditions[name] = condition
            return condition

        return add

    @functools.cached_property
    def causes(self) -> tuple[Cause, ...]:
        """All causes, best explanation first."""
        return tuple(
            Cause(
                name=name,
                says=entry["says"],
                means=entry["means"],
                do=tuple(entry.get("do", {}).items()),
                versions=entry.get("versions"),
                either=tuple(_list(entry.get("either", []))),
                excludes=tuple(_list(entry.get("excludes", []))),
                links=tuple(entry.get("links", {}).items()),
            )
            for name, entry in parsed(self._text).items()
        )

    @functools.cached_property
    def _text(self) -> str:
        return resources.text(self.file)

    def load(self) -> None:
        """Read the file, where none can be opened later. It is parsed when a case needs it."""
        _ = self._text

    def find(self, case: C) -> tuple[Finding, ...]:
        """Return the causes that hold, by rank; ``unknown`` if none does."""
        *causes, unknown = self.causes
        evidence = {cause.name: self.conditions[cause.name](case) for cause in causes}
        held = [cause for cause in causes if evidence[cause.name] is not None]
        excluded = {name for cause in held for name in cause.excludes}
        held = [cause for cause in held if cause.name not in excluded]
        names = {cause.name for cause in held}
        return tuple(
            Finding(cause, tuple(evidence[cause.name] or ()), not names.isdisjoint(cause.either))
            for cause in held
        ) or (Finding(unknown, tuple(self.conditions[unknown.name](case) or ())),)


def failed(case: CallCase) -> list[Evidence] | None:
    """Hold for every call that failed: a condition."""
    return case.reasons


def register_messages(causes: Catalogue[C], messages: Mapping[str, Sequence[str]]) -> None:
    """Register the causes of calls that fail with a known message.

    messages: texts by cause; the message has to have one of them.
    """

    def condition(texts: Sequence[str]) -> Condition[C]:
        return lambda case: case.failed_with(texts)

    for name, texts in messages.items():
        causes.condition(name)(condition(texts))


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Traced:
    """What is known of a trace before its events are read.

    names_off: the probes that were switched off, once they have been.
    """

    probes: Sequence[ProbeRecord]
    host: HostSaid = NOTHING_SAID
    names_off: Callable[[], Collection[str]] = frozenset

    @functools.cached_property
    def seen(self) -> frozenset[str]:
        """Names and roles of the probes that were found."""
        return seen_by(self.probes)

    def switched_off(self, wanted: Collection[str]) -> bool:
        """Whether a probe of one of these roles was switched off. Asked at the end of the trace."""
        off = self.names_off()
        return any(each["role"] in wanted and each["name"] in off for each in self.probes)

    def failure(self, call: Call) -> FailureRecord | None:
        """Return what the host said as a call failed."""
        return self._failures.get(call.id)

    @functools.cached_property
    def _failures(self) -> Mapping[int | None, FailureRecord]:
        return {each["call"]: each for each in self.host.failures}


def events_in(node: Node) -> Iterator[Event]:
    """Yield the events of a node that are no entries, returns or exchanges."""
    for each in node.nodes() if isinstance(node, Call) else (node,):
        if isinstance(each, Point):
            yield each.event


def number_of(event: Event | None, name: str) -> int | None:
    """Return a value of an event; None if it is no number."""
    value = None if event is None else event.values.get(name)
    return value if type(value) is int else None


def stated(event: Event, name: str, text: str) -> list[Evidence]:
    """Return a number of an event as evidence; empty if it is none."""
    found = Quoted(event.values, event.name, event.seq).number(name)
    return [] if found is None else [state(found, text)]


class Reader(Protocol[C_co]):
    """Finds cases in the nodes of one trace, in the order in which they end."""

    def take(self, node: Node) -> Iterable[C_co]:
        """Return the cases that a node shows."""

    def finish(self, end_ns: int) -> Iterable[C_co]:
        """Return those that only the whole trace shows. end_ns: when it ended."""


@dataclass(frozen=True)
class EachCall(Generic[C]):
    """A reader for cases of one call each. case: None if the call is none of the explainer's."""

    case: Callable[[Call], C | None]

    def take(self, node: Node) -> Iterable[C]:
        found = self.case(node) if isinstance(node, Call) else None
        return [] if found is None else [found]

    def finish(self, end_ns: int) -> Iterable[C]:
        return ()


# A reader that finds nothing.
NOTHING: EachCall[Any] = EachCall(lambda _: None)


def _without_lineage(_case: Case) -> tuple[Lineage, ...]:
    return ()


@dataclass(frozen=True)
class Explainer(Generic[C]):
    """Explains one kind of case.

    name: in ``--json``.
    causes: texts and conditions.
    reader: makes a reader of a trace.
    lineage: where the numbers of a case came from.
    is_fallback: its answers are given only if there are no others.
    """

    name: str
    causes: Catalogue[C]
    reader: Callable[[Traced], Reader[C]]
    lineage: Callable[[C], tuple[Lineage, ...]] = _without_lineage
    is_fallback: bool = False


@dataclass
class Explanation(Generic[C]):
    """One case, and the calls that showed it.

    explainer: its name.
    case: of the first such call.
    findings: by rank, never empty.
    lineages: empty if there are no numbers whose way is known.
    calls: ``call`` of their events, in the order in which the calls ended.
    """

    explainer: str
    case: C
    findings: tuple[Finding, ...]
    lineages: tuple[Lineage, ...] = ()
    calls: list[int | None] = field(default_factory=list)

    @property
    def answers(self) -> tuple[Finding, ...]:
        """The first finding, and those that the trace cannot tell from it."""
        first, *rest = self.findings
        return (first, *(each for each in rest if first.possible and each.possible))

    @property
    def contradicts(self) -> bool:
        """Whether the answer does not follow from what QEMU reported."""
        return contradicts(self.findings)


def contradicts(findings: tuple[Finding, ...]) -> bool:
    return findings[0].cause.name == "contradiction"
