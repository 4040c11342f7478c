"""A trace as text for a terminal: banner, call trees, summary.

Made for somebody who needs the answer now: every call begins with what it answered, and
how that came about stands below. Lines come without their newline and keep to the style's
width; only what is there to be copied may be wider: names of files, commands to type, and
the JSON of ``full``.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Union

from virtrace.analysis import qmp
from virtrace.analysis.spans import ERROR, Call, Child, Span, Tally
from virtrace.report import units
from virtrace.report.highlight import Style, cells, cut, paint, safe, shorten
from virtrace.trace.format import Event, Json, Record, is_unavailable

# Text, and the role it is painted in. Lines break between pieces, with a space.
Piece = tuple[str, str]

# Columns that the deepest line of a tree still has for itself.
_ROOM = 24
_LABEL = 9
_POINTER = re.compile("0x[0-9a-f]+")
_SHORT_BUILD_ID = 12
# Up to so many fields of a struct are as easily read in a line as in a column.
_FIELDS_IN_LINE = 4

_REASONS = {
    "done": "all that was asked for is traced",
    "limit": "the limit of calls or seconds was reached",
    "interrupt": "interrupted",
    "target-exit": "the traced process ended",
    "error": "stopped by an error",
}


@dataclass(frozen=True)
class _Struct:
    """A captured struct, as a node of the tree below its function."""

    name: str
    fields: Record
    in_answer: bool


_Node = Union[Child, _Struct]


def banner(
    header: Record, style: Style, *, output: str, command: str | None = None
) -> Iterator[str]:
    """What is attached to, what each probe resolved to, what to do next.

    output: the trace file being written. command: what virtrace itself runs; without one
    the user is told what to run.
    """
    yield from _attached(header, style)
    for module, probes in _by_module(header).items():
        yield from _fold([("  " + module, "bold"), *_words(_build_id(header, module))], style)
        yield from _probe_table(probes, style)
    if command is not None:
        yield _copyable("running", command, style)
    else:
        suggestion = header["recipe"].get("try")
        if isinstance(suggestion, str):
            yield _copyable("run now", suggestion, style)
            yield _label("") + "in another terminal"
    yield _copyable("to end", "Ctrl-C", style)
    yield _copyable("trace", output, style)
    yield ""


def heading(header: Record, style: Style) -> Iterator[str]:
    """What was traced, when and where, and what the probes could see."""
    tool, host = header["tool"], header["host"]
    yield from _attached(header, style)
    yield from _labelled("recorded", _words(header["started"]), style)
    place = f"{host['system']}, {host['machine']}, Linux {host['kernel']}, GDB {tool['gdb']}"
    yield from _labelled("on", _words(place), style)
    levels: dict[str, int] = {}
    for probe in header["probes"]:
        if probe["level"] != "missing":
            levels[probe["level"]] = levels.get(probe["level"], 0) + 1
    seen = ", ".join(f"{number} by {level}" for level, number in levels.items())
    yield from _labelled("probes", _words(seen or "none"), style)
    for why, names in _missing(header["probes"]):
        yield from _labelled("missing", [*_listed(names), *_words(f"({why})", "yellow")], style)
    yield ""


def call_tree(call: Call, style: Style) -> Iterator[str]:
    """The answer of the call, then all that happened in it, then an empty line."""
    returned = {} if call.failed else call.root.returned or {}
    answer = {name: value for name, value in returned.items() if _is_struct(value)}
    yield from _answer(call, answer, style)
    guides = _Guides(style)
    # Not recursive: a trace can be deeper than Python's stack.
    rest: list[tuple[_Node, str, str]] = [(call.root, "", "")]
    while rest:
        node, first, below = rest.pop()
        children = _below(node, answer, is_root=node is call.root)
        own = guides.bounded(below + (guides.pipe if children else guides.gap))
        yield from _node(node, first, own, style)
        below = guides.bounded(below)
        for child in reversed(children):
            last = child is children[-1]
            rest.append(
                (
                    child,
                    below + (guides.corner if last else guides.tee),
                    below + (guides.gap if last else guides.pipe),
                )
            )
    yield ""


def summary(
    footer: Record | None,
    style: Style,
    *,
    tally: Tally,
    output: str,
    next_step: str | None = None,
) -> Iterator[str]:
    """How the run ended and what it cost.

    footer: None where the run was cut short. output: the trace file. next_step: what to
    type next, if not ``virtrace show`` of that file.
    """
    yield from _fold(_counts(footer, tally), style)
    if footer is not None:
        yield from _labelled("ended", _ending(footer), style)
        stopped = footer["stopped_ns"]
        yield from _labelled(
            "stopped",
            _words(
                f"{units.duration(stopped['total'])} in all, "
                f"{units.duration(stopped['max'])} at the longest, GDB's own share not counted"
            ),
            style,
        )
        hits = footer["hits"]
        hit = [f"{name} {number:,}" for name, number in hits.items() if number]
        if hit:
            yield from _labelled("hits", _listed(hit), style)
        never = [name for name, number in hits.items() if not number]
        if never:
            why = _words("(not found, or never reached)", "dim")
            yield from _labelled("no hits", [*_listed(never), *why], style)
    yield _copyable("trace", output, style)
    yield _copyable("next", next_step or f"virtrace show {shlex.quote(output)}", style)


# Lines and their pieces


def _words(text: str, role: str = "") -> list[Piece]:
    return [(word, role) for word in text.split(" ")]


def _with_commas(pieces: list[Piece]) -> list[Piece]:
    return [(f"{text},", role) for text, role in pieces[:-1]] + pieces[-1:]


def _listed(names: Iterable[str]) -> list[Piece]:
    return _with_commas([(name, "") for name in names])


def _labelled(label: str, pieces: Iterable[Piece], style: Style) -> Iterator[str]:
    return _fold(pieces, style, _label(label), _label(""))


def _copyable(label: str, text: str, style: Style) -> str:
    return paint(_label(label), "dim", style) + paint(safe(text, style), "bold", style)


def _label(text: str) -> str:
    return f"  {text:<{_LABEL}}"


def _fold(pieces: Iterable[Piece], style: Style, first: str = "", below: str = "") -> Iterator[str]:
    """Lines of the style's width: ``first`` stands before the first, ``below`` before the rest."""
    prefix = first
    line: list[Piece] = []
    used = 0
    for raw, role in pieces:
        text = safe(raw, style)
        room = _room(prefix, style)
        if line and used + 1 + cells(text) > room:
            yield _painted(prefix, line, style)
            prefix, line, used = below, [], 0
            room = _room(prefix, style)
        while cells(text) > room:
            end = cut(text, room)
            yield _painted(prefix, [(text[:end], role)], style)
            prefix, text = below, text[end:]
            room = _room(prefix, style)
        used += cells(text) + (1 if line else 0)
        line.append((text, role))
    if line:
        yield _painted(prefix, line, style)


def _room(prefix: str, style: Style) -> int:
    return max(style.width - cells(prefix), _ROOM)


def _painted(prefix: str, line: list[Piece], style: Style) -> str:
    runs = groupby(line, key=lambda piece: piece[1])
    return paint(prefix, "dim", style) + " ".join(
        paint(" ".join(text for text, _ in run), role, style) for role, run in runs
    )


class _Guides:
    """The lines that lead from a function to what happened in it."""

    def __init__(self, style: Style) -> None:
        self.tee, self.corner, self.pipe = (
            ("├─ ", "└─ ", "│  ") if style.unicode else ("|- ", "`- ", "|  ")
        )
        self.gap = "   "
        self._limit = (style.width - _ROOM - len(self.gap)) // len(self.gap) * len(self.gap)

    def bounded(self, prefix: str) -> str:
        """Below a certain depth the tree no longer moves to the right."""
        return prefix[-self._limit :]


# Banner


def _attached(header: Record, style: Style) -> Iterator[str]:
    target = header["target"]
    version = target["libvirt_version"]
    recipe = header["recipe"].get("name")
    yield from _fold(
        [
            ("virtrace", "bold"),
            *_words(f"{header['tool']['virtrace']}:"),
            *_words(f"recipe {recipe}" if isinstance(recipe, str) else "a recipe without a name"),
            *_words("on libvirt"),
            (version, "bold") if version is not None else ("of unknown version,", "yellow"),
            *_words(f"({target['exe']}, pid {target['pid']})"),
        ],
        style,
        below="  ",
    )


def _by_module(header: Record) -> dict[str, list[Record]]:
    modules: dict[str, list[Record]] = {}
    for probe in header["probes"]:
        modules.setdefault(probe["module"] or "no module", []).append(probe)
    return modules


def _build_id(header: Record, module: str) -> str:
    """Of the loaded file of this name: a probe says ``libvirt.so.0``, a file adds ``.9000.0``."""
    for loaded in header["target"]["modules"]:
        name = os.path.basename(loaded["path"])
        if name == module or name.startswith(module + "."):
            build_id = loaded["build_id"]
            return f"build-id {build_id[:_SHORT_BUILD_ID]}" if build_id else "has no build-id"
    return "is not loaded"


def _probe_table(probes: list[Record], style: Style) -> Iterator[str]:
    found = [probe for probe in probes if probe["level"] != "missing"]
    width = max((cells(probe["name"]) for probe in found), default=0)
    for probe in found:
        name = probe["name"] + " " * (width - cells(probe["name"]))
        offset = f"+{probe['offset']}" if probe["offset"] else ""
        pieces = [(name, "cyan"), (f"{probe['level']:<8}", ""), (offset, "dim")]
        if probe["why"]:
            pieces += _words(f"({probe['why']})", "yellow")
        yield from _fold(pieces, style, "    ", "      ")
    for why, names in _missing(probes):
        yield from _fold(_words(f"not found: {why}", "yellow"), style, "    ", "      ")
        yield from _fold(_listed(names), style, "      ", "      ")


def _missing(probes: list[Record]) -> Iterator[tuple[str, list[str]]]:
    """The probes that were not found, together where the reason is the same."""
    reasons: dict[str, list[str]] = {}
    for probe in probes:
        if probe["level"] == "missing":
            reasons.setdefault(probe["why"] or "no reason is given", []).append(probe["name"])
    yield from reasons.items()


# Call tree


def _answer(call: Call, answer: Record, style: Style) -> Iterator[str]:
    root = call.root
    told = [
        _plain(value) if isinstance(value, str) else _value(name, value, style)[0]
        for name, value in root.arguments.items()
        if _is_text(value)
    ]
    pieces = [
        (f"+{units.seconds(root.t_enter_ns)}", "dim"),
        (f"{root.name}({', '.join(told)})", "bold"),
        *_outcome(root, style),
    ]
    if call.failed:
        errors = call.errors()
        if errors:
            yield from _fold(_error(errors[-1]), style, below="  ")
            if len(errors) > 1:
                yield from _fold(
                    _words(f"the last of {len(errors)} errors; all are below", "yellow"),
                    style,
                    "  ",
                )
        else:
            yield from _fold(_words("failed, and no error was seen", "red"), style)
    fields = [pair for struct in answer.values() for pair in _flat(struct)]
    in_line = _in_line(pieces, fields, style, room=style.width)
    if in_line is not None:
        pieces, fields = in_line, []
    yield from _fold(pieces, style, below="  ")
    yield from _table(fields, style, "  ")
    for problem in call.problems:
        yield from _fold(_words(f"incomplete: {problem}", "yellow"), style, "  ", "    ")


def _below(node: _Node, answer: Record, *, is_root: bool) -> list[_Node]:
    """What the tree shows below a node; structs that the answer already shows are named only."""
    if not isinstance(node, Span):
        return []
    entry = [
        _Struct(f"{name} on entry", value, False)
        for name, value in node.arguments.items()
        if _is_struct(value)
    ]
    returned = [
        _Struct(name, value, answer.get(name) == value)
        for name, value in (node.returned or {}).items()
        if _is_struct(value) and not (is_root and name in answer)
    ]
    return [*entry, *node.children, *returned]


def _node(node: _Node, first: str, below: str, style: Style) -> Iterator[str]:
    if isinstance(node, Span):
        yield from _fold(_function(node, style), style, first, below)
    elif isinstance(node, qmp.Exchange):
        yield from _exchange(node, first, below, style)
    elif isinstance(node, _Struct):
        yield from _struct(node, first, below, style)
    else:
        yield from _point(node.event, first, below, style)


def _struct(node: _Struct, first: str, below: str, style: Style) -> Iterator[str]:
    name: list[Piece] = [(node.name, "bold")]
    if node.in_answer:
        yield from _fold([*name, *_words("as in the answer above", "dim")], style, first, below)
        return
    fields = _flat(node.fields)
    in_line = _in_line(name, fields, style, room=style.width - cells(first))
    yield from _fold(in_line or name, style, first, below)
    if in_line is None:
        yield from _table(fields, style, below)


def _in_line(
    pieces: list[Piece], fields: list[tuple[str, Json]], style: Style, room: int
) -> list[Piece] | None:
    """``pieces`` and the fields behind them, where all that fits one line."""
    if not 0 < len(fields) <= _FIELDS_IN_LINE:
        return None
    values = [(name, *_value(name, value, style)) for name, value in fields]
    line = [*pieces, *((f" {name} {text}", role) for name, text, role in values)]
    used = sum(cells(safe(text, style)) + 1 for text, _ in line) - 1
    return line if used <= room else None


def _function(span: Span, style: Style) -> list[Piece]:
    arguments = [
        (f"{name}={text}", role)
        for name, value in span.arguments.items()
        if not _is_struct(value)
        for text, role in [_value(name, value, style)]
    ]
    pieces = _with_commas(arguments)
    if pieces:
        text, role = pieces[0]
        pieces[0] = (f"{span.name}({text}", "call" if role == "c" else role)
        text, role = pieces[-1]
        pieces[-1] = (f"{text})", role)
    else:
        pieces = [(f"{span.name}()", "call")]
    return [*pieces, *_outcome(span, style)]


def _outcome(span: Span, style: Style) -> list[Piece]:
    """What a function returned, and when."""
    if span.returned is None:
        return _words(f"return not seen{f': {span.lost}' if span.lost else ''}", "yellow")
    pieces: list[Piece] = []
    for name, value in span.returned.items():
        if not _is_struct(value):
            text, role = _value(name, value, style)
            pieces.append((f"= {text}" if name == "result" else f"{name}={text}", role))
    if span.duration_ns is not None:
        pieces.append((f"in {units.duration(span.duration_ns)}", "dim"))
    return pieces


def _exchange(exchange: qmp.Exchange, first: str, below: str, style: Style) -> Iterator[str]:
    document = exchange.send.values.get("json")
    pieces = [("QMP", "dim"), (exchange.command or "command of unknown name", "bold")]
    pieces.append((exchange.id or "without an id", ""))
    if isinstance(document, dict) and "arguments" in document:
        arguments = _compact(document["arguments"])
        pieces.append((arguments if style.full else shorten(arguments, 40, style), "json"))
    if exchange.reply is None:
        why = "no reply was seen" if exchange.id else "its reply cannot be told from others"
        yield from _fold([*pieces, ("->", ""), *_words(why, "yellow")], style, first, below)
        return
    values = exchange.reply.values
    failure = _qmp_error(values.get("json"))
    if failure is not None:
        pieces += [("->", ""), *_words(failure, "red")]
    else:
        pieces.append((f"-> {_size(values.get('text'))}", ""))
    pieces.append((f"in {units.duration(exchange.duration_ns or 0)}", "dim"))
    yield from _fold(pieces, style, first, below)
    if failure is None or style.full:
        yield from _reply(values, below, style)


def _qmp_error(document: Json) -> str | None:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return None
    return f"error {error.get('class')}: {error.get('desc')}"


def _size(text: Json) -> str:
    size = qmp.size(text)
    if size is not None:
        return units.count(size, "byte")
    return f"unavailable: {text['unavailable']}" if is_unavailable(text) else "text of unknown size"


def _reply(values: Record, below: str, style: Style) -> Iterator[str]:
    """Its JSON: as much as fits a line, or all of it."""
    prefix = paint(below, "dim", style)
    text = values.get("text")
    if isinstance(text, dict) and "text" in text:
        text = text["text"]
    if style.full and "json" in values and not is_unavailable(values["json"]):
        for line in _pretty(values["json"]).split("\n"):
            yield prefix + paint(safe(line, style), "json", style)
    elif isinstance(text, str):
        text = text.strip()
        if not style.full:
            room = _room(below, style)
            # What a character takes on the screen is known only once it is made safe.
            text = shorten(safe(text[: room + 1], style), room, style)
        yield prefix + paint(safe(text, style), "json", style)


def _point(event: Event, first: str, below: str, style: Style) -> Iterator[str]:
    values = event.values
    if event.name == ERROR:
        pieces = _error(event)
        if "function" in values:
            place = f"{values.get('file')}:{values.get('line')}"
            pieces += _words(f"(raised in {_plain(values['function'])}, {place})", "dim")
        yield from _fold(pieces, style, first, below)
        return
    if event.name == qmp.REPLY:
        size = _size(values.get("text"))
        pieces = [("QMP", "dim"), *_words(f"reply of {size} to a command that was not seen")]
        yield from _fold(pieces, style, first, below)
        yield from _reply(values, below, style)
        return
    inline = [
        (f"{name}={text}", role)
        for name, value in values.items()
        for text, role in [_value(name, value, style)]
    ]
    yield from _fold([(event.name, "bold"), *inline], style, first, below)


def _error(event: Event) -> list[Piece]:
    code, message = event.values.get("code"), event.values.get("message")
    return _words(f"error {_plain(code)}: {_plain(message)}", "red")


# Values


def _is_struct(value: Json) -> bool:
    return isinstance(value, dict) and not _is_text(value)


def _is_text(value: Json) -> bool:
    """A string of the daemon's, whole, cut, or not to be had; a pointer is none."""
    if isinstance(value, str):
        return not _POINTER.fullmatch(value)
    return isinstance(value, dict) and set(value) in (
        {"unavailable"},
        {"text", "length"},
        {"bytes"},
        {"bytes", "length"},
    )


def _plain(value: Json) -> str:
    """A value inside a sentence: strings without quotes."""
    if isinstance(value, str):
        return value
    return _value("", value, Style())[0]


def _value(field: str, value: Json, style: Style) -> Piece:
    """A value, with its unit where the field's name tells it."""
    if value is None or isinstance(value, bool):
        return _compact(value), "c"
    if isinstance(value, int):
        return units.quantity(field, value), "c"
    if isinstance(value, str):
        return (value if _POINTER.fullmatch(value) else _quoted(value, style)), "c"
    if is_unavailable(value):
        return f"unavailable: {_plain(value['unavailable'])}", "yellow"
    if _is_text(value):
        length = f", of {units.count(value['length'], 'byte')}" if "length" in value else ""
        if "text" in value:
            return f"{_quoted(value['text'], style)}{length}", "c"
        return f"{_raw_bytes(value['bytes'])}{length}", "c"
    text = _compact(value)
    return (text if style.full else shorten(text, style.width, style)), "json"


def _quoted(value: Json, style: Style) -> str:
    if isinstance(value, str) and not style.full:
        value = shorten(value, style.width, style)
    return _compact(value)


def _raw_bytes(encoded: Json) -> str:
    r"""Text that is not UTF-8, with its odd bytes as ``\xff``."""
    try:
        return repr(base64.b64decode(encoded))
    except (binascii.Error, TypeError, ValueError):
        return _compact(encoded)


def _compact(value: Json) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "(nested too deep to show)"


def _pretty(value: Json) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except RecursionError:
        return _compact(value)


def _flat(struct: Record) -> list[tuple[str, Json]]:
    """(field, value); a field of a struct inside the struct is named ``outer.inner``."""
    fields: list[tuple[str, Json]] = []
    rest: list[tuple[str, Json]] = [("", struct)]
    while rest:
        name, value = rest.pop()
        if _is_struct(value):
            prefix = f"{name}." if name else ""
            rest.extend((f"{prefix}{key}", inner) for key, inner in reversed(list(value.items())))
        else:
            fields.append((name, value))
    return fields


def _table(fields: list[tuple[str, Json]], style: Style, prefix: str) -> Iterator[str]:
    """One line a field: name, exact value (numbers to the right), value as a person reads it."""
    names = max((cells(safe(name, style)) for name, _ in fields), default=0)
    numbers = max(
        (len(_compact(value)) for _, value in fields if isinstance(value, int)), default=0
    )
    for name, value in fields:
        pad = " " * (names - cells(safe(name, style)))
        if isinstance(value, int):
            pieces = [(f"{_compact(value):>{numbers}}", "c")]
            reading = None
            if not isinstance(value, bool):
                reading = units.reading(name.rpartition(".")[2], value)
            if reading:
                pieces.append((f"({reading})", "bold"))
        else:
            text, role = _value(name, value, style)
            pieces = _words(text, role) if role == "yellow" else [(text, role)]
        yield from _fold([(name + pad, "cyan"), *pieces], style, prefix, prefix + "  ")


# Summary


def _counts(footer: Record | None, tally: Tally) -> list[Piece]:
    pieces = [(units.count(tally.calls, "call"), "bold")]
    if tally.failed:
        pieces.append((f"{tally.failed:,} failed", "red"))
    if tally.incomplete:
        pieces.append((f"{tally.incomplete:,} incomplete", "yellow"))
    if footer is None:
        pieces.append(("the run was cut short", "yellow"))
    else:
        pieces.append((units.count(footer["events"], "event"), ""))
        if footer["dropped"]:
            pieces.append((f"{footer['dropped']:,} dropped", "red"))
    if tally.outside:
        pieces.append((f"{units.count(tally.outside, 'event')} outside of any call", ""))
    return _with_commas(pieces)


def _ending(footer: Record) -> list[Piece]:
    pieces = _words(f"{_REASONS.get(footer['reason'], footer['reason'])};")
    if footer["detached"]:
        return pieces + _words("detached from the process")
    if footer["reason"] == "target-exit":
        return pieces + _words("there is nothing left to detach from")
    return pieces + _words(
        "NOT DETACHED: breakpoints may be left in the process, and its next call may kill it",
        "red",
    )
