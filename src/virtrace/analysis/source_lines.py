"""The source lines that a function executed, and what changed on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from virtrace.analysis.quoted import Quoted
from virtrace.analysis.spans import Child, Point, Span
from virtrace.trace.format import Event, Json


class Change(NamedTuple):
    """A change of a watched value. old: None if unknown. new: may be unavailable."""

    name: str
    old: Json
    new: Json


class Line(NamedTuple):
    """A source line that was reached. following: the next line; None for the last one.

    changes: values that changed between this line and the following one. Compilers merge and move
    statements, so the change may belong to another line.
    """

    event: Event
    following: Event | None = None

    @property
    def number(self) -> int | None:
        number = self.event.values.get("line")
        return number if type(number) is int else None

    @property
    def file(self) -> str | None:
        file = self.event.values.get("file")
        return file if isinstance(file, str) else None

    @property
    def text(self) -> str | None:
        """The text of the line; None if the source is not available."""
        text = self.event.values.get("text")
        return text if isinstance(text, str) else None

    @property
    def changes(self) -> list[Change]:
        return [] if self.following is None else list(changes_in(self.following))


class Seen(NamedTuple):
    """Between which lines a watched number changed or, if both values are equal, that it did not.

    after, before: lines that were reached and at which the number could be read; before is None if
    the next reading was at the return.
    now: the new number, if the trace has it.
    """

    old: int
    now: Quoted
    after: Line
    before: Line | None

    @property
    def changed(self) -> bool:
        return bool(self.now.value != self.old)

    @property
    def place(self) -> str:
        since, file = self.after.number, self.after.file
        if self.before is None:
            return f"between line {since} of {file} and the return"
        if self.before.file == file:
            return f"between lines {since} and {self.before.number} of {file}"
        return f"between line {since} of {file} and line {self.before.number} of {self.before.file}"

    @property
    def text(self) -> str:
        became = f"-> {self.now.value}" if self.changed else "all the way"
        return f"{self.old} {became} {self.place}"

    @property
    def events(self) -> list[int]:
        """``seq`` of the events that show it."""
        until = self.before.event.seq if self.before else self.now.seq
        return [self.after.event.seq, until]


def is_line(child: Child, span: Span) -> bool:
    """Whether the node is a line of the function itself."""
    return isinstance(child, Point) and child.event.type == "line" and child.event.name == span.name


def lines_of(span: Span) -> list[Line]:
    """Return the lines of a function in order of time."""
    events = [
        child.event for child in span.children if isinstance(child, Point) and is_line(child, span)
    ]
    return [Line(*pair) for pair in zip(events, [*events[1:], None])]


def watch(lines: Sequence[Line], name: str, returned: Quoted | None) -> tuple[Seen, ...]:
    """Return each change of a number, or that it did not change; empty if the lines lack it.

    returned: the number as the function returned it.
    """
    found: list[Seen] = []
    known: int | None = None
    readable = False
    first = after = None
    for line in lines:
        told = Quoted(line.event.values, line.event.name, line.event.seq).get("changed", name)
        new = told.number("to") if told else None
        if new is not None:
            if known is not None and after is not None:
                found.append(Seen(known, new, after, line))
            now, known, readable = new, new.value, True
            first = first or line
        elif told is not None:
            readable = False
        if readable:
            after = line
    if first is None or after is None or known is None:
        return ()
    if returned is not None and returned.value != known:
        found.append(Seen(known, returned, after, None))
    return tuple(found) or (Seen(known, now, first, after),)


def changes_in(event: Event) -> Iterator[Change]:
    """Yield the changes since the previous line that the event of a line contains."""
    changed = event.values.get("changed")
    for name, change in changed.items() if isinstance(changed, dict) else ():
        if isinstance(change, dict):
            yield Change(name, change.get("from"), change.get("to", change))
