"""What one file says of its host: a trace, a snapshot, a bundle, or a report of doctor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypedDict

from virtrace.analysis.blockinfo import NUMBERS
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Bytes, Explanation, Nanoseconds, Node
from virtrace.analysis.explain.trace import explain_nodes
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.checks import format as doctor
from virtrace.report.explanation import answer
from virtrace.snapshot.format import is_snapshot, read_snapshot
from virtrace.trace.format import Json, TextOrNull
from virtrace.trace.reader import TraceStream

# Names of traits. What QEMU's answer has is compared part by part.
ANSWER, VALUES, VERDICT, DOCTOR, RECIPE = "answer", "values", "verdict", "doctor", "recipe"
SHAPE = "QEMU's answer to "
# Between the parts of a value of such a trait.
PART = "\n"
# What comes from one file has a limit.
_MOST_VALUES, _MOST_NUMBERS, _MOST_PARTS, _LONGEST = 200, 1000, 2000, 200
# Commands that change nothing: what QEMU answers them has its shape.
_QUESTION = "query-"


class NumbersRecord(TypedDict):
    """Numbers of one name. unit: ``bytes``, ``ns`` or empty."""

    unit: str
    values: list[int]


class Facts(TypedDict):
    """What one file says.

    kind: ``trace``, ``snapshot`` or ``doctor``.
    traits: values by the name of the trait. says: a sentence for each value of the trait `answer`
    or `verdict`. numbers: by their names.
    nothing: why it answers nothing; null if it does.
    problems: what is missing of it.
    """

    kind: str
    traits: dict[str, list[str]]
    says: dict[str, str]
    numbers: dict[str, NumbersRecord]
    nothing: TextOrNull
    problems: list[str]


@dataclass
class _Found:
    """Collects facts, within limits."""

    kind: str
    traits: dict[str, dict[str, None]] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, NumbersRecord] = field(default_factory=dict)

    def trait(self, name: str, value: str, sentence: str | None = None) -> None:
        name, value = name[:_LONGEST], value[: _MOST_PARTS * _LONGEST]
        if len(self.traits) < _MOST_VALUES or name in self.traits:
            values = self.traits.setdefault(name, {})
            if len(values) < _MOST_VALUES and value not in values:
                values[value] = None
                if sentence is not None:
                    self.says[value] = sentence[: 10 * _LONGEST]

    def number(self, name: str, value: int) -> None:
        if len(self.numbers) < _MOST_VALUES or name in self.numbers:
            unit = {Bytes: "bytes", Nanoseconds: "ns"}.get(type(value), "")
            record = self.numbers.setdefault(name[:_LONGEST], {"unit": unit, "values": []})
            if len(record["values"]) < _MOST_NUMBERS:
                record["values"].append(int(value))

    def facts(self, nothing: str | None = None, problems: Iterable[str] = ()) -> Facts:
        traits = {name: list(values) for name, values in self.traits.items()}
        return {
            "kind": self.kind,
            "traits": traits,
            "says": self.says,
            "numbers": self.numbers,
            "nothing": nothing,
            "problems": [*problems],
        }


def facts_of(file: BinaryIO, path: str) -> Facts:
    """Read what a file says, which may be a stranger's. path: its name in errors.

    Raises: TraceError if it is none of the kinds, or damaged.
    """
    if doctor.is_report(file):
        return _of_doctor(file, path)
    if is_snapshot(file, path):
        return _of_snapshot(file, path)
    with TraceStream(path, file) as trace:
        return _of_trace(trace)


def _of_doctor(file: BinaryIO, path: str) -> Facts:
    report, found = doctor.read_report(file, path), _Found("doctor")
    found.trait(DOCTOR, "tracing works" if report["works"] else report["answer"])
    for section in report["sections"]:
        program = section["program"]
        if program is not None:
            found.trait(f"version of {program['name']}", program["version"] or "not known")
        if section["reach"] is not None:
            found.trait("reach", section["reach"])
    return found.facts()


def _of_snapshot(file: BinaryIO, path: str) -> Facts:
    snapshot, found = read_snapshot(file, path), _Found("snapshot")
    program = snapshot["daemon"]["program"]
    found.trait(f"version of {program['name']}", program["version"] or "not known")
    for verdict in snapshot["verdicts"]:
        found.trait(VERDICT, verdict["verdict"], verdict["says"])
    return found.facts()


def _of_trace(trace: TraceStream) -> Facts:
    found = _Found("trace")
    program = trace.header["target"]["program"]
    found.trait(f"version of {program['name']}", program["version"] or "not known")
    name = trace.header["recipe"].get("name")
    found.trait(RECIPE, name if isinstance(name, str) else "without a name")
    nodes = _noted(CallBuilder(trace.most_open).everything(trace), found)
    explained = explain_nodes(nodes, trace)
    for each in explained:
        _answered(each, found)
    nothing = None
    if not explained:
        nothing = "nothing in it can be explained" if explained.seen else "nothing happened in it"
    return found.facts(nothing, trace.problems)


def _noted(nodes: Iterable[Node], found: _Found) -> Iterator[Node]:
    """Note what QEMU's answers have, and how long calls took, as the nodes pass through."""
    shapes: dict[str, dict[str, None]] = {}
    for node in nodes:
        for each in node.nodes() if isinstance(node, Call) else [node]:
            if isinstance(each, Exchange) and each.is_qmp and each.reply is not None:
                command = each.command or ""
                if command.startswith(_QUESTION) and not each.failed:
                    parts = shapes.setdefault(command[:_LONGEST], {})
                    _note_parts(each.reply.values.get("json"), parts)
        if isinstance(node, Call) and node.root.duration_ns is not None:
            name = node.procedure or node.root.name
            found.number(f"time of {name}", Nanoseconds(node.root.duration_ns))
        yield node
    for command, parts in shapes.items():
        found.trait(f"{SHAPE}{command}", PART.join(sorted(parts)))


def _note_parts(reply: Json, parts: dict[str, None]) -> None:
    """Note the path of each member of an answer; elements of a list have one path."""
    answered = reply.get("return") if isinstance(reply, dict) else None
    rest: list[tuple[str, Json]] = [("", answered)]
    while rest and len(parts) < _MOST_PARTS:
        path, value = rest.pop()
        if isinstance(value, list):
            rest += [(path, element) for element in value]
        elif isinstance(value, dict):
            for key, member in value.items():
                inner = f"{path}.{key}".removeprefix(".")[:_LONGEST].replace(PART, " ")
                parts[inner] = None
                rest.append((inner, member))


def _answered(each: Explanation[Any], found: _Found) -> None:
    causes = ", ".join(finding.cause.name for finding in each.answers)
    sentence = f"{' '.join(each.case.subject)}: {answer(each)}"
    found.trait(ANSWER, f"{each.explainer}: {causes}", sentence)
    if isinstance(each.case, DiskCase):
        relation = _relation(each.case)
        if relation is not None:
            found.trait(VALUES, relation)
    for name, value in each.case.numbers.items():
        if value is not None:
            found.number(f"{each.explainer}: {name}", value)


def _relation(case: DiskCase) -> str | None:
    """Return how the three sizes compare, such as `physical < allocation = capacity`."""
    sizes = {name: case.block.number(name) for name in NUMBERS}
    known = {name: value for name, value in sizes.items() if value is not None}
    if len(known) < len(sizes):
        return None
    name, *others = sorted(known, key=lambda each: (known[each], each))
    text = f"0 = {name}" if known[name] == 0 else name
    for other in others:
        text += f" {'=' if known[other] == known[name] else '<'} {other}"
        name = other
    return text
