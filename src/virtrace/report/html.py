"""A trace as one page for a browser. It loads nothing, and nothing from the trace can run.

The page is complete without its script, which only folds, searches and colours.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from virtrace import wording
from virtrace.analysis.chain import chains
from virtrace.analysis.explain.disks import EXPLAINER
from virtrace.analysis.explain.model import Explanation, Finding
from virtrace.analysis.explain.trace import MOST_CASES, explain_nodes
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Point, Span
from virtrace.analysis.spent import TimeSpent
from virtrace.analysis.summary import (
    Bucket,
    DiskAnswers,
    Movement,
    Statistics,
    Summary,
    histograms,
    summarize,
)
from virtrace.analysis.waiting import ended_ns, waiting
from virtrace.report import diagram, explanation, origins, pieces, units
from virtrace.report import summary as many
from virtrace.report.highlight import Style, safe
from virtrace.report.pieces import Piece
from virtrace.report.template import joined, prepare, rendered
from virtrace.report.timeline import timeline
from virtrace.trace.format import Event, Json, Record
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.roles import ERROR
from virtrace.trace.target import modules_of

_STYLE = Style(unicode=True, full=True)
# The whole page is in memory, here and in the browser.
MOST_EVENTS = 20_000
# From this number of calls on, the page begins with the summary.
_MANY = 10
# Browsers limit the depth of nesting; below this depth the tree is not indented further.
_DEEPEST = 100
_FIELDS_IN_LINE = 4
_CLOSED = Style(unicode=True)
_LINES_WIDTH = 40
_TEMPLATE = "page.html"


def prepare_page() -> None:
    """Read everything that a page needs except the trace and its explainers."""
    prepare(_TEMPLATE)


def page(trace: ReadableTrace, nodes: Sequence[Call | Point | Exchange]) -> str:
    """Return the whole document. nodes: calls, and what is outside of them."""
    summary = summarize(nodes)
    found = waiting(nodes, ended_ns(trace), trace.switched_off)
    time = TimeSpent(trace)
    calls = [node for node in time.watch(nodes) if isinstance(node, Call)]
    apart = [node for node in nodes if not isinstance(node, Call)]
    explained = explain_nodes(nodes, trace, most=MOST_EVENTS)
    texts, stories = _Texts(), _Stories(explained)
    anchored = [(f"call-{number}", call) for number, call in enumerate(calls, 1)]
    by_id = {call.id: (anchor, call) for anchor, call in anchored}
    answers = [_Answer(each, by_id) for each in explained[:MOST_CASES]]
    meant = {id_: each for each in reversed(answers) for id_ in each.ids}
    shown = [_call(anchor, call, texts, stories, meant) for anchor, call in anchored]
    meanings = {id(call): told["meaning"] for call, told in zip(calls, shown)}
    return rendered(
        _TEMPLATE,
        title=_title(trace, calls),
        searched="calls and what happened in them",
        found="calls",
        headline=joined(many.headline(summary)),
        attached=joined(pieces.attached(trace.header)),
        problems=trace.problems,
        answers=answers,
        waiting=[joined(pieces.waited_for(one, _STYLE)) for one in found],
        many=len(calls) > _MANY,
        calls=shown,
        errors=list(_errors(anchored)),
        timeline_of_all=timeline(anchored, None) if calls else None,
        chain=Markup(diagram.chain_svg(chains(calls), alone=False)) if calls else None,
        **_summary(summary, anchored, meanings),
        times=list(_times(time)),
        times_means=many.time_means(time),
        apart=[_apart(node, texts) for node in apart],
        exchanges=list(_conversation(calls, apart)),
        stored=texts.stored,
        stories=stories.stored,
        facts=list(_facts(trace)),
        modules=list(_modules(trace)),
    )


def _title(trace: ReadableTrace, calls: Sequence[Call]) -> str:
    if len(calls) == 1:
        return pieces.question(calls[0], _STYLE)
    return f"{wording.count(len(calls), 'call')}, {trace.header['started']}"


# QMP texts


@dataclass
class _Text:
    """A QMP text; its id is separate, because it is the only part that differs between replies."""

    name: str
    before: Markup
    id: str
    after: Markup
    size: str
    number: int = 0

    @property
    def times(self) -> str:
        ids = ", each with its own id" if self.id and self.number > 1 else ""
        return wording.count(self.number, "time") + ids


class _Texts:
    """Each distinct text once, however often it was sent: a reply can be megabytes long."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, str], int] = {}
        self.stored: list[_Text] = []

    def of(self, node: Child) -> Iterator[Record]:
        """Yield the command and reply of a node: where its text is stored, and its id."""
        name = "a command that was not seen"
        if isinstance(node, Exchange) and node.is_qmp:
            name = node.command or "command of unknown name"
            yield self._store(node.send, "sent", name)
        reply = pieces.reply_of(node)
        if reply is not None:
            yield self._store(reply, "answered", f"answer to {name}")

    def _store(self, event: Event, what: str, name: str) -> Record:
        text = _raw(event.values.get("text"))
        json = event.values.get("json")
        id_ = json.get("id") if isinstance(json, dict) else None
        before, after = text, ""
        if isinstance(id_, str) and text.count(f'"{id_}"') == 1:
            start = text.index(f'"{id_}"') + 1
            before, after = text[:start], text[start + len(id_) :]
        else:
            id_ = ""
        index = self._index.setdefault((before, after), len(self.stored))
        size = pieces.length(event.values.get("text"))
        if index == len(self.stored):
            self.stored.append(_Text(name, _marked(before), id_, _marked(after), size))
        self.stored[index].number += 1
        return {"what": what, "index": index, "id": id_, "size": size}


def _raw(text: Json) -> str:
    if isinstance(text, dict) and isinstance(text.get("text"), str):
        text = text["text"]
    return text.strip() if isinstance(text, str) else pieces.shown("", text, _STYLE)[0]


def _marked(text: str) -> Markup:
    # JSON is full of quotes, which need no escape outside of attributes.
    return Markup(html.escape(safe(text, _STYLE), quote=False))


def _conversation(calls: Iterable[Call], apart: Iterable[Point | Exchange]) -> Iterator[Record]:
    """Yield every exchange in order of time, with the anchor of its details."""
    inside = (node for call in calls for node in call.nodes())
    exchanges = [node for node in (*inside, *apart) if isinstance(node, Exchange) and node.is_qmp]
    for node in sorted(exchanges, key=lambda node: node.t_enter_ns):
        yield {
            "when": f"+{units.seconds(node.t_enter_ns)}",
            "target": _anchor(node),
            "pieces": joined(pieces.said(node, _STYLE)[1:]),
        }


# Where the numbers came from


@dataclass
class _Story:
    """The explanation of one or more calls: a sentence, a picture, and a rule for each number.

    role: of the sentence; red if the answer contradicts what QEMU reported.
    rules: number, rule, and what source lines show of it.
    """

    title: str
    role: str
    picture: Markup
    rules: list[tuple[str, str, list[str]]]
    calls: list[tuple[str, str]] = field(default_factory=list)


class _Stories:
    """Each distinct story once, however many calls have it."""

    def __init__(self, explained: Iterable[Explanation[Any]]) -> None:
        self.stored: list[_Story] = []
        self._of_call: dict[int | None, int] = {}
        for each in explained:
            if each.explainer == EXPLAINER.name:
                self._of_call |= dict.fromkeys(each.calls, self._store(each))

    def _store(self, each: Explanation[Any]) -> int:
        picture = Markup(origins.origins_svg(each.lineages)) if each.lineages else Markup("")
        rules = [
            (lineage.number, lineage.rule.text, [seen.text for seen in lineage.rule.seen])
            for lineage in each.lineages
        ]
        role = "red" if each.contradicts else ""
        self.stored.append(_Story(explanation.answer(each), role, picture, rules))
        return len(self.stored) - 1

    def of(self, anchor: str, call: Call) -> int | None:
        """Return the index of a call's story; None if there is nothing to explain."""
        index = self._of_call.get(call.id)
        if index is not None:
            when = f"+{units.seconds(call.root.t_enter_ns)}"
            self.stored[index].calls.append((anchor, when))
        return index


# What the trace means


class _Answer:
    """An answer of `virtrace explain`, with what it rests on.

    ids: of the calls that it is about. calls: anchor and time of these.
    """

    def __init__(
        self, each: Explanation[Any], by_id: Mapping[int | None, tuple[str, Call]]
    ) -> None:
        self.subject = " ".join(each.case.subject)
        self.title = explanation.answer(each)
        self.role = "red" if each.contradicts else ""
        self.facts = [
            {"name": fact.name, "exact": explanation.fact_text(fact), "reading": fact.meaning,
             "role": "c"}
            for fact in each.case.facts
        ]  # fmt: skip
        self.note = each.case.note
        self.causes = [_cause(finding, each) for finding in each.findings]
        self.ids = dict.fromkeys(each.calls)
        found = (by_id[id_] for id_ in self.ids if id_ in by_id)
        self.calls = [(anchor, f"+{units.seconds(call.root.t_enter_ns)}") for anchor, call in found]


def _cause(finding: Finding, each: Explanation[Any]) -> Record:
    cause = finding.cause
    return {
        "name": cause.name + (" (possible)" if finding.possible else ""),
        "means": explanation.fill_text(cause.means, each.case),
        "evidence": [explanation.evidence_text(one) for one in finding.evidence],
        "versions": cause.versions,
        "do": [
            (explanation.fill_text(command, each.case, command=True), shows)
            for command, shows in cause.do
        ],
    }


# Calls


def _call(
    anchor: str,
    call: Call,
    texts: _Texts,
    stories: _Stories,
    meant: Mapping[int | None, _Answer],
) -> Record:
    """Return what is shown of a call. meant: the first answer about each call, by its id."""
    answer = pieces.answer_of(call)
    fields = [_field(*pair) for struct in answer.values() for pair in pieces.flat(struct)]
    nodes = [node for node in call.nodes() if node is not call.root]
    story = stories.of(anchor, call)
    meaning: _Story | _Answer | None = None if story is None else stories.stored[story]
    return {
        "anchor": anchor,
        "when": f"+{units.seconds(call.root.t_enter_ns)}",
        "question": pieces.question(call, _STYLE),
        "outcome": joined([*pieces.outcome(call.root, _STYLE), *pieces.queued(call)]),
        "answer": fields if len(fields) <= _FIELDS_IN_LINE else [],
        "fields": fields if len(fields) > _FIELDS_IN_LINE else [],
        "error": joined(pieces.failure(call)) if call.failed else [],
        "problems": call.problems,
        "story": story,
        "meaning": meaning or meant.get(call.id),
        "timeline": timeline([(anchor, call)], {id(node): _anchor(node) for node in nodes}),
        "steps": list(_steps(call, answer, texts)),
    }


def _apart(node: Point | Exchange, texts: _Texts) -> Record:
    return {
        "anchor": _anchor(node),
        "pieces": joined(pieces.said_apart(node, _STYLE)),
        "refs": list(texts.of(node)),
    }


@dataclass(frozen=True)
class _PageNode:
    """One step of writing a tree: the line of a node, or the end of a function.

    opens: what follows is inside of it, until a step that closes it.
    """

    pieces: list[Piece]
    anchor: str = ""
    opens: bool = False
    closes: bool = False
    refs: list[Record] = field(default_factory=list)
    fields: list[Record] = field(default_factory=list)
    lines: list[Record] = field(default_factory=list)


def _steps(call: Call, answer: Record, texts: _Texts) -> Iterator[_PageNode]:
    # Not recursive: a trace can be deeper than Python's stack.
    rest: list[tuple[pieces.Node | None, int]] = [(call.root, 0)]
    while rest:
        node, depth = rest.pop()
        if node is None:
            yield _PageNode([], closes=True)
        elif isinstance(node, pieces.StructNode):
            note = [("as in the answer above", "dim")] if node.in_answer else []
            fields = [] if node.in_answer else [_field(*pair) for pair in pieces.flat(node.fields)]
            yield _PageNode(joined([(node.name, "bold"), *note]), fields=fields)
        elif isinstance(node, pieces.Frames):
            frames = [
                {"name": number, "exact": text, "reading": "", "role": role}
                for number, (text, role) in node.rows
            ]
            yield _PageNode([(node.name, "bold")], fields=frames)
        elif isinstance(node, pieces.LineGroup):
            yield _lines(node)
        else:
            below = pieces.nodes_below(node, answer, is_root=node is call.root)
            opens = bool(below) and depth < _DEEPEST
            line = joined(pieces.said(node, _STYLE))
            yield _PageNode(line, _anchor(node), opens=opens, refs=list(texts.of(node)))
            if opens:
                rest.append((None, depth))
            rest.extend((child, depth + 1) for child in reversed(below))


def _lines(node: pieces.LineGroup) -> _PageNode:
    """Return lines as a closed element: their numbers, and what changed."""
    changes = [change for line in node.lines for change in line.changes]
    numbers = pieces.numbered(node.lines, _LINES_WIDTH, _CLOSED)
    told: list[Piece] = [(numbers if node.file is None else f"{numbers} of {node.file}", "dim")]
    for change in changes[:_FIELDS_IN_LINE]:
        text, role = told.pop()
        told += [(f"{text},", role), *pieces.change_pieces(change, _STYLE)]
    if len(changes) > _FIELDS_IN_LINE:
        told.append((f"and {len(changes) - _FIELDS_IN_LINE:,} more changes", "dim"))
    lines = [
        {
            "number": line.number,
            "text": line.text or "",
            "changes": [joined(pieces.change_pieces(change, _STYLE)) for change in line.changes],
        }
        for line in node.lines
    ]
    return _PageNode(joined(told), f"event-{node.lines[0].event.seq}", lines=lines)


def _anchor(node: Child) -> str:
    if isinstance(node, Span):
        return f"span-{node.id}"
    return f"event-{(node.send if isinstance(node, Exchange) else node.event).seq}"


def _field(name: str, value: Json) -> Record:
    if type(value) is int:
        reading = units.humanized(name.rpartition(".")[2], value)
        return {"name": name, "exact": str(value), "reading": reading or "", "role": "c"}
    text, role = pieces.shown(name, value, _STYLE)
    return {"name": name, "exact": text, "reading": "", "role": role}


def _errors(anchored: Iterable[tuple[str, Call]]) -> Iterator[Record]:
    for _, call in anchored:
        for node in call.nodes():
            if isinstance(node, Point) and node.event.role == ERROR:
                yield {
                    "target": _anchor(node),
                    "when": f"+{units.seconds(node.event.t_ns)}",
                    "pieces": joined(
                        [(pieces.question(call, _STYLE), "bold"), *pieces.said(node, _STYLE)]
                    ),
                }


# Summary


def _summary(
    summary: Summary, anchored: list[tuple[str, Call]], meanings: dict[int, _Story | _Answer | None]
) -> Record:
    """meanings: by ``id()`` of the call."""
    anchors = {id(call): anchor for anchor, call in anchored}
    functions, commands = list(summary.functions.values()), list(summary.commands.values())
    return {
        "disks": [_disk(disk, meanings[id(disk.last)]) for disk in summary.disks.values()],
        "functions": _rows(functions, anchors),
        "functions_axis": many.span(histograms(functions)),
        "commands": _rows(commands, anchors),
        "commands_axis": many.span(histograms(commands)),
    }


def _times(time: TimeSpent) -> Iterator[Record]:
    for heads, rows, more in many.time_tables(time):
        told = [(row[0], list(zip(heads[1:], row[1:]))) for row in rows]
        yield {"heads": heads, "rows": told, "more": more}


def _rows(rows: list[Statistics], anchors: dict[int, str]) -> list[Record]:
    return [
        {
            "name": row.name,
            "count": f"{row.count:,}",
            "errors": row.errors,
            "unfinished": row.unfinished,
            "times": [
                (name, "-" if ns is None else units.duration(ns))
                for name, ns in row.times().items()
            ],
            "slowest": anchors[id(row.slowest)] if row.slowest else None,
            "buckets": len(ruler),
            "bars": list(_bars(ruler)),
        }
        for row, ruler in zip(rows, histograms(rows))
    ]


def _bars(ruler: list[Bucket]) -> Iterator[Record]:
    most = max((bucket.count for bucket in ruler), default=0)
    for x, bucket in enumerate(ruler):
        if bucket.count:
            # A bucket that is not empty is always visible.
            height = max(round(10 * bucket.count / most, 2), 0.8)
            bounds = f"{units.duration(bucket.from_ns)} to {units.duration(bucket.to_ns)}"
            title = f"{bounds}: {bucket.count:,}"
            yield {"x": x, "y": round(10 - height, 2), "height": height, "title": title}


def _disk(disk: DiskAnswers, meaning: _Story | _Answer | None) -> Record:
    return {
        "name": many.disk_name(disk),
        "calls": wording.count(disk.calls, "call"),
        "failed": disk.failed,
        "meaning": meaning,
        "numbers": [
            {
                "name": number,
                "pieces": joined(many.movement(number, moved)),
                "path": _path(moved),
            }
            for number, moved in disk.numbers.items()
            if moved.moves or moved.unavailable
        ],
    }


def _path(movement: Movement) -> str:
    """Return values as steps over time, in a field of 100 by 24; empty if nothing changed."""
    moves = movement.moves
    if len(moves) < 2:
        return ""
    low, high = min(movement.values), max(movement.values)
    start, end = moves[0].t_ns, moves[-1].t_ns
    # The last value has a duration too.
    width = max(end - start, 1) * 1.05
    points = [
        (100 * (move.t_ns - start) / width, 22 - 20 * (move.value - low) / (high - low))
        for move in moves
    ]
    return f"M0 {points[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in points) + "H100"


# The trace


def _facts(trace: ReadableTrace) -> Iterator[tuple[str, str]]:
    header, tool, target = trace.header, trace.header["tool"], trace.header["target"]
    yield "recorded", header["started"]
    yield "system", f"{header['host']['system'] or 'unknown'}, {header['host']['machine']}"
    yield "kernel", header["host"]["kernel"]
    yield "process", f"{target['exe']}, pid {target['pid']}"
    if "qemu" in header:
        yield "QEMU", f"{header['qemu']['exe']}, pid {header['qemu']['pid']}"
    program = target["program"]
    yield program["name"], program["version"] or "of unknown version"
    yield "virtrace", f"{tool['virtrace']}, with Python {tool['python']}"
    yield "engine", pieces.engine(header)
    yield "recipe", str(header["recipe"].get("name", "without a name"))
    for off in trace.switched_off:
        lines = "lines of " if off["kind"] == "line" else ""
        yield "switched off", f"{lines}{off['name']} at +{units.seconds(off['t_ns'])}: {off['why']}"
    if trace.footer is not None:
        yield "ended", " ".join(text for text, _ in pieces.ending(trace.footer))
        yield "stopped", pieces.stopped(trace.footer, tool["engine"]["name"])
        yield "events", f"{trace.footer['events']:,}, {trace.footer['dropped']:,} dropped"
    for module in modules_of(header):
        yield "build-id", f"{module['build_id'] or 'none'}, {module['path']} at {module['base']}"


def _modules(trace: ReadableTrace) -> Iterator[Record]:
    hits = trace.footer["hits"] if trace.footer is not None else {}
    for module, probes in pieces.by_module(trace.header).items():
        yield {
            "name": module,
            "build_id": pieces.build_id_of(trace.header, module),
            "probes": [
                {
                    **probe,
                    "offset": f"+{probe['offset']}" if probe["offset"] else "",
                    "hits": wording.count(hits[probe["name"]], "hit")
                    if probe["name"] in hits
                    else "",
                }
                for probe in probes
            ],
        }
