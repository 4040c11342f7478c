"""Records as pieces of text, without layout.

A piece is a text and its style, which a terminal paints and a page marks up.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Union

from virtrace import wording
from virtrace.analysis import qmp
from virtrace.analysis.source_lines import Change, Line, is_line, lines_of
from virtrace.analysis.spans import Call, Child, Point, Span, Tally
from virtrace.analysis.values.meaning import meaning
from virtrace.analysis.waiting import Waiting
from virtrace.report import units
from virtrace.report.highlight import Style, cells, shorten
from virtrace.trace import roles
from virtrace.trace.format import (
    Event,
    Footer,
    Header,
    Json,
    LoadedModule,
    ProbeRecord,
    Record,
    is_pointer,
    is_text,
    is_unavailable,
)
from virtrace.trace.target import is_file_of, modules_of

# A text and its style. Lines break between pieces, at a space.
Piece = tuple[str, str]

_SHORT_BUILD_ID = 12

_REASONS = {
    "done": "everything requested was traced",
    "limit": "a limit was reached",
    "interrupt": "interrupted",
    "target-exit": "the traced process ended",
    "error": "stopped by an error",
    "rotated": "the file was full",
}


class StructNode(NamedTuple):
    """A captured struct, as a node of the tree below its function."""

    name: str
    fields: Record
    in_answer: bool


class Frames(NamedTuple):
    """A captured backtrace, as a node of the tree below its function; innermost first."""

    name: str
    frames: list[Json]

    @property
    def rows(self) -> Iterator[tuple[str, Piece]]:
        """Yield number and frame; for what ended the backtrace early, only the reason."""
        for number, frame in enumerate(self.frames):
            known = isinstance(frame, str)
            yield f"#{number}" if known else "", (plain(frame), "" if known else "yellow")


class LineGroup(NamedTuple):
    """Consecutive source lines of one file, as a node below their function.

    file: None if it is the file of the previous lines of the function.
    """

    file: str | None
    lines: list[Line]


Node = Union[Child, StructNode, Frames, LineGroup]


def words(text: str, role: str = "") -> list[Piece]:
    return [(word, role) for word in text.split(" ")]


def with_commas(pieces: list[Piece]) -> list[Piece]:
    return [(f"{text},", role) for text, role in pieces[:-1]] + pieces[-1:]


def listed(names: Iterable[str]) -> list[Piece]:
    return with_commas([(name, "") for name in names])


def engine(header: Header) -> str:
    """Return name and version of the engine that recorded a trace."""
    recorded_by = header["tool"]["engine"]
    name = {"gdb": "GDB"}.get(recorded_by["name"], recorded_by["name"])
    return f"{name} {recorded_by['version']}" if recorded_by["version"] else name


def attached(header: Header) -> list[Piece]:
    """Say what was traced, and by which virtrace."""
    target = header["target"]
    program, pid = target["program"], target["pid"]
    version = program["version"]
    recipe = header["recipe"].get("name")
    return [
        ("virtrace", "bold"),
        *words(f"{header['tool']['virtrace']}:"),
        *words(f"recipe {recipe}" if isinstance(recipe, str) else "a recipe without a name"),
        *words(f"on {program['name']}"),
        (version, "bold") if version is not None else ("of unknown version,", "yellow"),
        *words(f"({target['exe']}, {f'pid {pid}' if pid else 'not running'})"),
        *(
            words(f"and QEMU ({header['qemu']['exe']}, pid {header['qemu']['pid']})")
            if "qemu" in header
            else ()
        ),
    ]


def by_module(header: Header) -> dict[str, list[ProbeRecord]]:
    """Group the probes by module."""
    modules: dict[str, list[ProbeRecord]] = {}
    for probe in header["probes"]:
        modules.setdefault(probe["module"] or "no module", []).append(probe)
    return modules


def build_id_of(header: Header, module: str) -> str:
    loaded = _loaded(header, module)
    if loaded is None:
        return "is not loaded"
    build_id = loaded["build_id"]
    return f"build-id {build_id[:_SHORT_BUILD_ID]}" if build_id else "has no build-id"


def remedy_of(header: Header, module: str) -> str | None:
    """Return how to get what the probes of a module lack."""
    loaded = _loaded(header, module)
    return loaded.get("remedy") if loaded is not None else None


def _loaded(header: Header, module: str) -> LoadedModule | None:
    """Return the loaded file of a module."""
    for loaded in modules_of(header):
        if is_file_of(os.path.basename(loaded["path"]), module):
            return loaded
    return None


def not_found(probes: list[ProbeRecord]) -> Iterator[tuple[str, list[str]]]:
    """Yield each reason for missing probes, and the probes."""
    reasons: dict[str, list[str]] = {}
    for probe in probes:
        if probe["level"] == "missing":
            reasons.setdefault(probe["why"] or "no reason is given", []).append(probe["name"])
    yield from reasons.items()


def not_found_and_needed(names: Iterable[str]) -> list[Piece]:
    return words(f"not found, and not optional: {', '.join(names)}", "red")


def answer_of(call: Call) -> Record:
    """Return the structs that a call filled in; none if it failed, whatever they contain."""
    returned = {} if call.failed else call.root.returned or {}
    return {name: value for name, value in returned.items() if is_struct(value)}


def question(call: Call, style: Style) -> str:
    """Return a call as a person would write it: ``virDomainGetBlockInfo(vm1, vda)``.

    For a client's call: ``remoteDispatchDomainGetState(vm1) of process 7``.
    """
    if call.procedure is not None:
        process = (call.client or {}).get("process-id")
        domain = "" if call.domain is None else f"({call.domain})"
        whose = f" of process {process}" if type(process) is int else ""
        return f"{call.procedure}{domain}{whose}"
    told = [
        plain(value) if isinstance(value, str) else shown(name, value, style)[0]
        for name, value in call.root.arguments.items()
        if is_text(value)
    ]
    return f"{call.root.name}({', '.join(told)})"


def nodes_below(node: Node, answer: Record, *, is_root: bool) -> list[Node]:
    """Return the nodes below a node; of structs in `answer` only the names are shown."""
    if not isinstance(node, Span):
        return []
    entry = [
        StructNode(f"{name} on entry", value, False)
        for name, value in node.arguments.items()
        if is_struct(value)
    ]
    returned = [
        StructNode(name, value, answer.get(name) == value)
        for name, value in (node.returned or {}).items()
        if is_struct(value) and not (is_root and name in answer)
    ]
    asked = [
        Frames(f"{name} on entry", value)
        for name, value in node.arguments.items()
        if is_backtrace(value)
    ]
    told = [
        Frames(name, value) for name, value in (node.returned or {}).items() if is_backtrace(value)
    ]
    return [*entry, *asked, *_with_lines(node), *returned, *told]


def _with_lines(span: Span) -> Iterator[Node]:
    lines = iter(lines_of(span))
    file: str | None = None
    together: list[Line] = []
    for child in span.children:
        if not is_line(child, span):
            together = []
            yield child
            continue
        line = next(lines)
        if not together or line.file != file:
            together = []
            yield LineGroup(None if line.file == file else line.file, together)
            file = line.file
        together.append(line)


def rows(node: LineGroup) -> Iterator[list[Line]]:
    """Yield a line with text or changes, or several lines with nothing but their numbers."""
    for is_quiet, group in groupby(node.lines, lambda line: not line.text and not line.changes):
        lines = list(group)
        yield from [lines] if is_quiet else ([line] for line in lines)


def numbered(lines: list[Line], width: int, style: Style) -> str:
    """Return ``line 5``, ``lines 5, 7, 8``, or ``lines 5, 7 ... 20`` if the width is too small."""
    numbers = [plain(line.number) for line in lines]
    text = f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(numbers)}"
    if style.full or cells(text) <= width:
        return text
    end = f"{' …' if style.unicode else ' ...'} {numbers[-1]}"
    fitting, comma, _ = text[: max(width - cells(end), 0) + 1].rpartition(",")
    return fitting + end if comma else text


def change_pieces(change: Change, style: Style) -> list[Piece]:
    """Say ``allocation 0 -> 2147483648 (2.000 GiB)``, without the old value if not known."""
    old = shown(change.name, change.old, style)[0]
    before = [] if change.old is None else [(old, ""), ("->", "")]
    new, role = shown(change.name, change.new, style)
    return [(change.name, "cyan"), *before, (new, "bold" if role == "c" else role)]


def said(node: Child, style: Style) -> list[Piece]:
    """Return the line of a node: a function, an exchange or a point."""
    if isinstance(node, Span):
        return _function(node, style)
    return _exchange(node, style) if isinstance(node, qmp.Exchange) else _point(node.event, style)


def said_apart(node: Point | qmp.Exchange, style: Style) -> list[Piece]:
    """Return the line of a node outside of calls, with time and monitor or thread."""
    event = node.event if isinstance(node, Point) else node.send
    mon = event.values.get("mon")
    where = f"monitor {mon}" if isinstance(mon, str) else f"thread {event.tid}"
    return [(f"+{units.seconds(event.t_ns)}", "dim"), *words(where, "dim"), *said(node, style)]


def reply_of(node: Child) -> Event | None:
    """Return the QMP reply to show below the line of a node."""
    if isinstance(node, qmp.Exchange):
        return node.reply if node.is_qmp else None
    return node.event if isinstance(node, Point) and node.event.role == roles.QMP_REPLY else None


def _function(span: Span, style: Style) -> list[Piece]:
    arguments = [
        (f"{name}={text}", role)
        for name, value in span.arguments.items()
        if not is_struct(value) and not is_backtrace(value)
        for text, role in [_with_words(span.name, span.role, name, value, style)]
    ]
    pieces = with_commas(arguments)
    if pieces:
        text, role = pieces[0]
        pieces[0] = (f"{span.name}({text}", "call" if role == "c" else role)
        text, role = pieces[-1]
        pieces[-1] = (f"{text})", role)
    else:
        pieces = [(f"{span.name}()", "call")]
    return [*pieces, *outcome(span, style)]


def outcome(span: Span, style: Style) -> list[Piece]:
    """Say what a function returned, and its duration."""
    if span.returned is None:
        return words(f"return not seen{f': {span.lost}' if span.lost else ''}", "yellow")
    pieces: list[Piece] = []
    for name, value in span.returned.items():
        if not is_struct(value) and not is_backtrace(value):
            text, role = shown(name, value, style)
            pieces.append((f"= {text}" if name == "result" else f"{name}={text}", role))
    if span.duration_ns is not None:
        pieces.append((f"in {units.duration(span.duration_ns)}", "dim"))
    return pieces


def queued(call: Call) -> list[Piece]:
    """Say how long a client's call waited for a worker."""
    if call.queued_ns is None:
        return []
    return words(f"after {units.duration(call.queued_ns)} of waiting for a worker", "dim")


def _command(node: qmp.Exchange, style: Style) -> list[Piece]:
    if not node.is_qmp:
        return _named(node.send, style)
    document = node.send.values.get("json")
    pieces = [("QMP", "dim"), (node.command or "command of unknown name", "bold")]
    pieces.append((node.id or "without an id", ""))
    if isinstance(document, dict) and "arguments" in document:
        arguments = compact(document["arguments"])
        pieces.append((arguments if style.full else shorten(arguments, 40, style), "json"))
    return pieces


def waited_for(one: Waiting, style: Style) -> list[Piece]:
    """Say how long something was awaited, what, and by which call."""
    pieces = [(units.duration(one.ns), "yellow")]
    if isinstance(one.node, qmp.Exchange):
        mon = one.node.send.values.get("mon")
        pieces += _command(one.node, style)
        pieces += words(f"to monitor {mon}" if isinstance(mon, str) else "", "dim")
    elif isinstance(one.node, Point):
        pieces += [*said(one.node, style), *words("was picked up by no worker")]
    elif one.call is None or one.node is not one.call.root:
        pieces.append((f"{one.node.name}()", "bold"))
    if one.call is not None:
        inside = len(pieces) > 1
        pieces += [*words("in" if inside else "", "dim"), (question(one.call, style), "bold")]
    if isinstance(one.node, Span):
        pieces += _held_by(one.node)
    return [piece for piece in pieces if piece[0]]


def _held_by(span: Span) -> list[Piece]:
    """Name the owners of a lock, as of the entry of the function that takes it."""
    held = []
    for owner in ("owner", "async_owner") if span.role == roles.LOCK else ():
        tid, api, since = (
            span.arguments.get(f"{owner}{what}") for what in ("", "_api", "_since_ms")
        )
        if type(tid) is int and tid:
            told = f"for a job that thread {tid} holds, {plain(api)}"
            when = f", since {units.clock(since)}" if type(since) is int and since else ""
            held += words(told + when, "yellow")
    return held


def _exchange(node: qmp.Exchange, style: Style) -> list[Piece]:
    pieces = _command(node, style)
    if node.reply is None:
        why = "no reply was seen" if node.is_awaited else "its reply cannot be identified"
        return [*pieces, ("->", ""), *words(why, "yellow")]
    failure = qmp.error_of(node.reply)
    if failure is not None:
        pieces += [("->", ""), *words(f"error {failure}", "red")]
    elif not node.is_qmp:
        pieces += [("->", ""), *_named(node.reply, style)]
    else:
        pieces.append((f"-> {length(node.reply.values.get('text'))}", ""))
    return [*pieces, (f"in {units.duration(node.duration_ns or 0)}", "dim")]


def _point(event: Event, style: Style) -> list[Piece]:
    values = event.values
    if event.role == roles.ERROR or (event.role == roles.ERROR_AGAIN and "message" in values):
        pieces = raised(event)
        if "function" in values:
            place = f"{values.get('file')}:{values.get('line')}"
            pieces += words(f"(raised in {plain(values['function'])}, {place})", "dim")
        return pieces
    if event.role == roles.QMP_REPLY:
        size = length(values.get("text"))
        return [("QMP", "dim"), *words(f"reply of {size} to a command that was not seen")]
    document = values.get("json")
    if event.role == roles.QMP_EVENT and isinstance(document, dict) and "event" in document:
        pieces = [("QMP event", "dim"), (plain(document["event"]), "bold")]
        if "data" in document:
            data = compact(document["data"])
            pieces.append((data if style.full else shorten(data, style.width, style), "json"))
        return pieces
    return _named(event, style)


def _named(event: Event, style: Style) -> list[Piece]:
    """Return the name of a point, and its values."""
    inline = [
        (f"{name}={text}", role)
        for name, value in flat(event.values)
        for text, role in [_with_words(event.name, event.role, name, value, style)]
    ]
    return [(event.name, "bold"), *inline]


def length(text: Json) -> str:
    """Say how long a captured text is, also one that was cut."""
    size = qmp.size(text)
    if size is not None:
        return wording.count(size, "byte")
    return f"unavailable: {text['unavailable']}" if is_unavailable(text) else "text of unknown size"


def raised(event: Event) -> list[Piece]:
    """Return code and message of an error."""
    code, message = event.values.get("code"), event.values.get("message")
    return words(f"error {plain(code)}: {plain(message)}", "red")


def failure(call: Call) -> list[Piece]:
    """Say with which error a call failed: its last, or the last of other threads meanwhile."""
    errors = call.errors()
    if errors:
        return raised(errors[-1])
    if not call.meanwhile:
        return words("failed, and no error was seen", "red")
    return [*raised(call.meanwhile[-1]), *words("(on another thread meanwhile)", "red")]


def is_struct(value: Json) -> bool:
    return isinstance(value, dict) and not is_text(value)


def is_backtrace(value: Json) -> bool:
    """Whether a value is an array of texts; no array in C is read like that."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def plain(value: Json) -> str:
    """Return a value for use in a sentence: strings without quotes."""
    if isinstance(value, str):
        return value
    return shown("", value, Style())[0]


def shown(field: str, value: Json, style: Style) -> Piece:
    """Return a value, with its unit if the name of the field implies it."""
    if value is None or isinstance(value, bool):
        return compact(value), "c"
    if isinstance(value, int):
        return units.quantity(field, value), "c"
    if isinstance(value, str):
        return (value if is_pointer(value) else _quoted(value, style)), "c"
    if is_unavailable(value):
        return f"unavailable: {plain(value['unavailable'])}", "yellow"
    if is_text(value):
        length = value.get("length")
        rest = f", of {wording.count(length, 'byte')}" if type(length) is int else ""
        if "text" in value:
            return f"{_quoted(value['text'], style)}{rest}", "c"
        return f"{_raw_bytes(value['bytes'])}{rest}", "c"
    text = compact(value)
    return (text if style.full else shorten(text, style.width, style)), "json"


def _with_words(probe: str, of: str | None, name: str, value: Json, style: Style) -> Piece:
    """Return a value of a probe with its words, if libvirt has some: ``flags=1 (start paused)``."""
    text, role = shown(name, value, style)
    words = meaning(probe, of, name, value)
    return (f"{text} ({words})" if words else text), role


def _quoted(value: Json, style: Style) -> str:
    if isinstance(value, str) and not style.full:
        value = shorten(value, style.width, style)
    return compact(value)


def _raw_bytes(encoded: Json) -> str:
    r"""Decode text that is not UTF-8; bytes that do not fit become ``\xff``."""
    try:
        return repr(base64.b64decode(encoded))
    except (binascii.Error, TypeError, ValueError):
        return compact(encoded)


def compact(value: Json) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def flat(struct: Record) -> list[tuple[str, Json]]:
    """Return fields and values; a field of a nested struct is named ``outer.inner``."""
    fields: list[tuple[str, Json]] = []
    rest: list[tuple[str, Json]] = [("", struct)]
    while rest:
        name, value = rest.pop()
        if is_struct(value):
            prefix = f"{name}." if name else ""
            rest.extend((f"{prefix}{key}", inner) for key, inner in reversed(list(value.items())))
        else:
            fields.append((name, value))
    return fields


def counts(footer: Footer | None, tally: Tally) -> list[Piece]:
    """Count calls and events, and those that failed, are incomplete or were dropped."""
    pieces = []
    if tally.calls or not tally.apart:
        pieces.append((wording.count(tally.calls, "call"), "bold"))
    if tally.apart:
        pieces.append((f"{tally.apart:,} outside of calls", "" if tally.calls else "bold"))
    if tally.failed:
        pieces.append((f"{tally.failed:,} failed", "red"))
    if tally.incomplete:
        pieces.append((f"{tally.incomplete:,} incomplete", "yellow"))
    if footer is None:
        pieces.append(("the run was cut short", "yellow"))
    else:
        pieces.append((wording.count(footer["events"], "event"), ""))
        if footer["dropped"]:
            pieces.append((f"{footer['dropped']:,} dropped", "red"))
    if tally.outside:
        pieces.append((f"{wording.count(tally.outside, 'event')} outside of any call", ""))
    return with_commas(pieces)


def ending(footer: Footer) -> list[Piece]:
    """Say why the trace ended, and whether virtrace detached from the process."""
    pieces = words(f"{_REASONS.get(footer['reason'], footer['reason'])};")
    if footer["reason"] == "rotated":
        return pieces + words("the recording continues in the next one")
    if footer["detached"]:
        return pieces + words("detached from the process")
    if footer["reason"] == "target-exit":
        return pieces + words("there is nothing left to detach from")
    return pieces + words(
        "NOT DETACHED: breakpoints may be left in the process, and its next call may kill it",
        "red",
    )


# Engines by the kernel's probes, one of them of former versions.
_BY_UPROBES = ("uprobes", "bpftrace")


def stopped(footer: Footer, engine_name: str) -> str:
    """Say how long the process was stopped."""
    if engine_name in _BY_UPROBES:
        return "never: at a uprobe, only the thread that hits it is delayed"
    still = footer["stopped_ns"]
    told = f"{units.duration(still['total'])} in all, {units.duration(still['max'])} at the longest"
    return f"{told}, GDB's own share not counted" if engine_name == "gdb" else told
