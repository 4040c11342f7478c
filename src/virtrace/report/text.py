"""A trace as text for a terminal: banner, call trees, summary.

Made for somebody who needs the answer now: each call begins with its answer, and the details are
below. Lines have no newline and keep to the style's width. Only what is meant for copying may be
wider: file names, commands, and the JSON of ``full``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from virtrace.analysis import qmp
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span, Tally
from virtrace.analysis.values.meaning import meaning
from virtrace.analysis.waiting import Waiting
from virtrace.errors import typed
from virtrace.report import units
from virtrace.report.highlight import Style, cells, paint, safe, shorten
from virtrace.report.lines import ROOM, column, copyable, fold, label, labelled, room_beside
from virtrace.report.pieces import (
    Frames,
    LineGroup,
    Node,
    Piece,
    StructNode,
    answer_of,
    attached,
    build_id_of,
    by_module,
    change_pieces,
    compact,
    counts,
    ending,
    engine,
    failure,
    flat,
    listed,
    nodes_below,
    not_found,
    not_found_and_needed,
    numbered,
    outcome,
    plain,
    question,
    queued,
    remedy_of,
    reply_of,
    rows,
    said,
    said_apart,
    shown,
    stopped,
    waited_for,
    words,
)
from virtrace.trace.format import (
    Footer,
    Header,
    Json,
    ProbeRecord,
    Record,
    SwitchedOff,
    is_unavailable,
)

# A struct with at most this many fields is as easy to read in a line as in a column.
_FIELDS_IN_LINE = 4
_MOST_WAITING = 20


def banner(
    header: Header,
    style: Style,
    *,
    output: str,
    command: str | None = None,
    missing: Sequence[str] = (),
) -> Iterator[str]:
    """Say what is traced, what each probe resolved to, and what to do next.

    output: the trace file.
    command: the command that virtrace runs; without one, the user is told what to run.
    missing: probes that were not found and are not optional.
    """
    yield from fold(attached(header), style)
    yield from levels(header, style)
    yield from lacking(missing, style)
    if command is not None:
        yield copyable("running", command, style)
    else:
        suggestion = header["recipe"].get("try")
        if isinstance(suggestion, str):
            yield copyable("run now", suggestion, style)
            yield label("") + "in another terminal"
    yield copyable("to end", "Ctrl-C", style)
    yield copyable("trace", output, style)
    yield ""


def levels(header: Header, style: Style) -> Iterator[str]:
    """Say what each probe resolved to, what it lacks, and how to get it."""
    for module, probes in by_module(header).items():
        yield from fold([("  " + module, "bold"), *words(build_id_of(header, module))], style)
        yield from _probe_table(probes, style)
        remedy = remedy_of(header, module)
        if remedy is not None:
            more = f"for more: {remedy}; or a symbol pack from a host that has it:"
            yield from fold(words(f"{more} `virtrace pack make`"), style, "    ", "      ")


def heading(header: Header, style: Style) -> Iterator[str]:
    """Say what was traced, when and where, and which probes were found."""
    host = header["host"]
    yield from fold(attached(header), style)
    yield from labelled("recorded", words(header["started"]), style)
    place = f"{host['system']}, {host['machine']}, Linux {host['kernel']}, {engine(header)}"
    yield from labelled("on", words(place), style)
    levels: dict[str, int] = {}
    for probe in header["probes"]:
        if probe["level"] != "missing":
            levels[probe["level"]] = levels.get(probe["level"], 0) + 1
    seen = ", ".join(f"{number} by {level}" for level, number in levels.items())
    yield from labelled("probes", words(seen or "none"), style)
    for why, names in not_found(header["probes"]):
        yield from labelled("missing", [*listed(names), *words(f"({why})", "yellow")], style)
    yield ""


def still_waiting(found: list[Waiting], style: Style) -> Iterator[str]:
    """Say what was awaited when the trace ended, longest first."""
    if not found:
        return
    yield from fold(words("still waiting when the trace ended, since:", "yellow"), style)
    for one in found[:_MOST_WAITING]:
        yield from fold(waited_for(one, style), style, "  ", "    ")
    if len(found) > _MOST_WAITING:
        yield from fold(
            words(f"and {len(found) - _MOST_WAITING:,} more, which waited for less time"),
            style,
            "  ",
        )
    yield ""


def long_trace(style: Style) -> Iterator[str]:
    """Placeholder for the totals, which are only known at the end."""
    yield from fold(
        words(
            "a long trace, shown while it is read: what was still waiting when it ended, "
            "and the totals, come last",
            "dim",
        ),
        style,
    )
    yield ""


def switched_off(records: Iterable[SwitchedOff], style: Style) -> Iterator[str]:
    """Say which probes were switched off before the end."""
    for record in records:
        what = f"{'lines of ' if record['kind'] == 'line' else ''}{plain(record['name'])}"
        yield from fold(
            [
                (f"not traced from +{units.seconds(record['t_ns'])} on:", "yellow"),
                *words(f"{what}: {record['why']}"),
            ],
            style,
        )
        yield ""


def call_tree(call: Call, style: Style) -> Iterator[str]:
    """Show the answer of a call, then its tree, then an empty line."""
    answer = answer_of(call)
    yield from _answer(call, answer, style)
    guides = _Guides(style)
    # Not recursive: a trace can be deeper than Python's stack.
    rest: list[tuple[Node, str, str]] = [(call.root, "", "")]
    while rest:
        node, first, below = rest.pop()
        children = nodes_below(node, answer, is_root=node is call.root)
        inside = guides.pipe if children else "" if isinstance(node, LineGroup) else guides.gap
        own = guides.bounded(below + inside)
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


def apart(node: Point | Exchange, style: Style) -> Iterator[str]:
    """Show what happened outside of calls in a line, and QEMU's reply below."""
    yield from fold(said_apart(node, style), style)
    reply = reply_of(node)
    if reply is not None and (style.full or qmp.error_of(reply) is None):
        yield from _reply(reply.values, "    ", style)


def lacking(missing: Sequence[str], style: Style) -> Iterator[str]:
    """Name the probes that were not found and are not optional; nothing if there are none."""
    if missing:
        yield from labelled("missing", not_found_and_needed(missing), style)


def nothing_called(style: Style) -> Iterator[str]:
    """Say what a trace without a call cannot tell."""
    what = "No call was seen. A call that began before the trace, and hangs, is not in it."
    yield from fold(words(what, "yellow"), style)


def summary(
    footer: Footer | None,
    style: Style,
    *,
    engine_name: str,
    tally: Tally,
    output: str,
    next_step: str | None = None,
    missing: Sequence[str] = (),
) -> Iterator[str]:
    """Say how the trace ended and what it cost.

    footer: None if the run was cut short.
    engine_name: as in the header.
    output: the trace file.
    next_step: the command to suggest, if not ``virtrace show`` of that file.
    missing: as of ``banner``.
    """
    yield from fold(counts(footer, tally), style)
    if footer is not None:
        yield from labelled("ended", ending(footer), style)
        yield from lacking(missing, style)
        yield from labelled("stopped", words(stopped(footer, engine_name)), style)
        hits = footer["hits"]
        hit = [f"{name} {number:,}" for name, number in hits.items() if number]
        if hit:
            yield from labelled("hits", listed(hit), style)
        never = [name for name, number in hits.items() if not number]
        if never:
            why = words("(not found, or never reached)", "dim")
            yield from labelled("no hits", [*listed(never), *why], style)
    yield copyable("trace", output, style)
    yield copyable("next", next_step or f"virtrace show {typed(output)}", style)


class _Guides:
    """The lines that connect a function with what happened in it."""

    def __init__(self, style: Style) -> None:
        self.tee, self.corner, self.pipe = (
            ("├─ ", "└─ ", "│  ") if style.unicode else ("|- ", "`- ", "|  ")
        )
        self.gap = "   "
        self._limit = (style.width - ROOM - len(self.gap)) // len(self.gap) * len(self.gap)

    def bounded(self, prefix: str) -> str:
        """Limit the width of a prefix: below a certain depth, the tree is not indented further."""
        return prefix[-self._limit :]


# Banner


def _probe_table(probes: list[ProbeRecord], style: Style) -> Iterator[str]:
    found = [probe for probe in probes if probe["level"] != "missing"]
    width = column((probe["name"] for probe in found), style)
    for probe in found:
        name = probe["name"] + " " * (width - cells(probe["name"]))
        offset = f"+{probe['offset']}" if probe["offset"] else ""
        pieces = [(name, "cyan"), (f"{probe['level']:<8}", ""), (offset, "dim")]
        about = "; ".join(filter(None, [probe.get("taken"), probe["why"]]))
        if about:
            pieces += words(f"({about})", "dim")
        if probe.get("lacks"):
            pieces += words(f"without {', '.join(probe['lacks'])}", "yellow")
        yield from fold(pieces, style, "    ", "      ")
    for why, names in not_found(probes):
        yield from fold(words(f"not found: {why}", "yellow"), style, "    ", "      ")
        yield from fold(listed(names), style, "      ", "      ")


# Call tree


def _answer(call: Call, answer: Record, style: Style) -> Iterator[str]:
    root = call.root
    pieces = [
        (f"+{units.seconds(root.t_enter_ns)}", "dim"),
        (question(call, style), "bold"),
        *outcome(root, style),
        *queued(call),
    ]
    if call.failed:
        errors = call.errors()
        yield from fold(failure(call), style)
        if len(errors) > 1:
            yield from fold(
                words(f"the last of {len(errors)} errors; all are below", "yellow"), style, "  "
            )
    fields = [pair for struct in answer.values() for pair in flat(struct)]
    in_line = _in_line(pieces, fields, style, room=style.width)
    if in_line is not None:
        pieces, fields = in_line, []
    yield from fold(pieces, style)
    yield from _table(fields, style, "  ", root)
    for problem in call.problems:
        yield from fold(words(f"incomplete: {problem}", "yellow"), style, "  ", "    ")


def _node(node: Node, first: str, below: str, style: Style) -> Iterator[str]:
    if isinstance(node, StructNode):
        yield from _struct(node, first, below, style)
        return
    if isinstance(node, Frames):
        yield from fold([(node.name, "bold")], style, first, below)
        for number, frame in node.rows:
            yield from fold([(f"{number:<3}", "dim"), *words(*frame)], style, below, below + "    ")
        return
    if isinstance(node, LineGroup):
        for row in _lines(node, room_beside(below, style), style):
            yield from fold(row, style, first, below + "  ")
            first = below
        return
    yield from fold(said(node, style), style, first, below)
    reply = reply_of(node)
    if reply is not None and (style.full or qmp.error_of(reply) is None):
        yield from _reply(reply.values, below, style)


def _struct(node: StructNode, first: str, below: str, style: Style) -> Iterator[str]:
    name: list[Piece] = [(node.name, "bold")]
    if node.in_answer:
        yield from fold([*name, *words("as in the answer above", "dim")], style, first, below)
        return
    fields = flat(node.fields)
    in_line = _in_line(name, fields, style, room=style.width - cells(first))
    yield from fold(in_line or name, style, first, below)
    if in_line is None:
        yield from _table(fields, style, below)


def _lines(node: LineGroup, room: int, style: Style) -> Iterator[list[Piece]]:
    """Yield a row each: the file, a line with text, its changes, lines without text or changes."""
    if node.file is not None:
        yield [(node.file, "dim")]
    for row in rows(node):
        text = row[0].text
        said = [change_pieces(change, style) for change in row[0].changes]
        number = plain(row[0].number) if text else numbered(row, room, style)
        if text:
            if not style.full:
                text = shorten(safe(text, style), room - cells(number) - 1, style)
            said.insert(0, words(text, "c" if said else "dim"))
        for beside in said or [[]]:
            yield [*words(number, "dim"), *beside]
            number = " " * cells(number)


def _in_line(
    pieces: list[Piece], fields: list[tuple[str, Json]], style: Style, room: int
) -> list[Piece] | None:
    """Return ``pieces`` and the fields in one line; None if it is too narrow."""
    if not 0 < len(fields) <= _FIELDS_IN_LINE:
        return None
    values = [(name, *shown(name, value, style)) for name, value in fields]
    line = [*pieces, *((f" {name} {text}", role) for name, text, role in values)]
    used = sum(cells(safe(text, style)) + 1 for text, _ in line) - 1
    return line if used <= room else None


def _reply(values: Record, below: str, style: Style) -> Iterator[str]:
    """Yield the reply's JSON: as much as fits into a line, or all of it."""
    prefix = paint(below, "dim", style)
    text = values.get("text")
    if isinstance(text, dict) and "text" in text:
        text = text["text"]
    if style.full and "json" in values and not is_unavailable(values["json"]):
        for line in json.dumps(values["json"], ensure_ascii=False, indent=2).split("\n"):
            yield prefix + paint(safe(line, style), "json", style)
    elif isinstance(text, str):
        text = text.strip()
        if not style.full:
            room = room_beside(below, style)
            # Only after escaping is it known how many columns the text takes.
            text = shorten(safe(text[: room + 1], style), room, style)
        yield prefix + paint(safe(text, style), "json", style)


def _table(
    fields: list[tuple[str, Json]], style: Style, prefix: str, of: Span | None = None
) -> Iterator[str]:
    """Yield one line a field: name, exact value (numbers to the right), readable value.

    of: the function that returned them, if its values can have words.
    """
    names = column((name for name, _ in fields), style)
    numbers = max((len(compact(value)) for _, value in fields if isinstance(value, int)), default=0)
    for name, value in fields:
        pad = " " * (names - cells(safe(name, style)))
        if isinstance(value, int):
            pieces = [(f"{compact(value):>{numbers}}", "c")]
            reading = None
            if not isinstance(value, bool):
                field = name.rpartition(".")[2]
                words_of_it = meaning(of.name, of.role, field, value) if of else None
                reading = words_of_it or units.humanized(field, value)
            if reading:
                pieces.append((f"({reading})", "bold"))
        else:
            text, role = shown(name, value, style)
            pieces = words(text, role) if role == "yellow" else [(text, role)]
        yield from fold([(name + pad, "cyan"), *pieces], style, prefix, prefix + "  ")
