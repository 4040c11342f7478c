"""Explanations as text: the answer first, then where each number came from, then evidence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Any

from virtrace import wording
from virtrace.analysis.blockinfo import NUMBERS
from virtrace.analysis.explain.model import (
    Bytes,
    Case,
    Cause,
    Explanation,
    Fact,
    Finding,
    Nanoseconds,
)
from virtrace.analysis.explain.trace import Explained, SeenCalls
from virtrace.analysis.lineage import Lineage, Origin
from virtrace.analysis.quoted import Evidence
from virtrace.errors import typed
from virtrace.report import units
from virtrace.report.highlight import Style, cells, paint, safe
from virtrace.report.lines import ROOM, copyable, fold
from virtrace.report.pieces import Piece, plain, with_commas, words
from virtrace.trace.bundle_reader import FOLDER, TRACE

_CALLS_SHOWN = 8
# Commands that unpack what jq cannot read, by file name extension.
_UNPACK = {
    ".tar.gz": f"tar -xOzf {{}} {FOLDER}{TRACE}",
    ".gz": "zcat {}",
    ".zst": "zstdcat {}",
}
_BELOW = " " * 4


def explanation_lines(
    explanations: Sequence[Explanation[Any]], style: Style, *, path: str
) -> Iterator[str]:
    """Yield all answers, then the details of each case. path: name of the trace."""
    if len(explanations) > 1:
        for explanation in explanations:
            yield from _answer(explanation, style)
        yield ""
    for explanation in explanations:
        yield from _case(explanation, style)
        yield ""
    yield from _how_to_see_an_event(explanations, path, style)


def further(explained: Explained[Any], style: Style, *, path: str) -> Iterator[str]:
    """Say how many cases were left out; nothing if there are none."""
    if explained.more:
        calls = wording.count(explained.more_calls, "call")
        more = f"{wording.count(explained.more, 'more case')}, in {calls}; to see one of them:"
        yield from fold(words(more, "yellow"), style)
        yield copyable("one", f"virtrace explain --call N {typed(path)}", style)


def nothing_explained(explained: Explained[Any], style: Style, *, path: str) -> Iterator[str]:
    """Say that no explainer knows what the trace has, and what that is."""
    if not explained.seen:
        yield from fold(words("Nothing of what the recipe traces happened.", "bold"), style)
        what = "A call that began before the trace, and hangs, is not in it:"
        yield from fold(words(what), style)
        yield copyable("next", "virtrace snapshot", style)
        return
    what = "Nothing that this trace has can be explained. It has:"
    yield from fold(words(what, "bold"), style)
    for row in explained.seen:
        yield from fold(_seen(row), style, "  ", _BELOW)
    yield copyable("next", f"virtrace show {typed(path)}", style)


def _seen(row: SeenCalls) -> list[Piece]:
    noun = "call" if row.is_call else "event"
    pieces: list[Piece] = [(row.name, "bold"), (wording.count(row.count, noun), "")]
    if row.failed:
        why = "" if row.error is None else f", the last with: {plain(row.error)}"
        pieces.append((f"{row.failed:,} failed{why}", "red"))
    elif row.is_call and row.count > row.unfinished:
        pieces.append(("none failed", ""))
    if row.unfinished:
        pieces.append((f"{row.unfinished:,} not seen to end", "yellow"))
    return [word for text, role in with_commas(pieces) for word in words(text, role)]


def _case(explanation: Explanation[Any], style: Style) -> Iterator[str]:
    yield from _answer(explanation, style)
    yield from _numbers(explanation, style)
    yield from _facts(explanation.case.facts, style)
    if explanation.calls:
        yield from fold(_calls(explanation), style, _INDENT, _INDENT)
    for lineage in explanation.lineages:
        yield ""
        yield from _lineage(lineage, style)
    yield from _note(explanation, style)
    for finding in explanation.findings:
        yield ""
        yield from _finding(finding, explanation.case, style)


def answer(explanation: Explanation[Any]) -> str:
    """Return the answer as a sentence; several if the trace cannot tell which cause it is."""
    sentences = [fill_text(each.cause.says, explanation.case) for each in explanation.answers]
    if len(sentences) == 1:
        return sentences[0]
    return f"The trace alone cannot tell which it is. {' Or: '.join(sentences)}"


def fill_text(text: str, case: Case, *, command: bool = False) -> str:
    """Fill the numbers and names of a case into a text of its causes.

    Numbers that differ never read the same: where rounding would do that, they are exact.
    command: quote names for a shell, and write unknown values in capitals.
    """
    used = {name for _, name, _, _ in Formatter().parse(text) if name}
    filled = {
        name: name.upper() if value is None else plain(value)
        for name, value in case.names.items()
        if name in used
    }
    if command:
        filled = {
            name: shown if case.names[name] is None else shlex.quote(shown)
            for name, shown in filled.items()
        }
    numbers = {name: value for name, value in case.numbers.items() if name in used}
    rounded = {name: _rounded(value) for name, value in numbers.items()}
    for name, value in numbers.items():
        like = {numbers[other] for other, shown in rounded.items() if shown == rounded[name]}
        filled[name] = rounded[name] if len(like) == 1 else f"{value} {_UNITS[type(value)]}"
    return text.format(**filled)


_UNITS: dict[type, str] = {Bytes: "bytes", Nanoseconds: "ns"}


def _rounded(value: int | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Bytes):
        return units.binary(value) or f"{value} bytes"
    return units.duration(value) if isinstance(value, Nanoseconds) else f"{value:,}"


# The parts


def _answer(explanation: Explanation[Any], style: Style) -> Iterator[str]:
    *names, last = explanation.case.subject
    name: list[Piece] = [*((each, "cyan") for each in names), (f"{last}:", "cyan")]
    yield from fold([*name, *words(answer(explanation), "bold")], style)


def _numbers(explanation: Explanation[Any], style: Style) -> Iterator[str]:
    rows = []
    for lineage in explanation.lineages:
        value = lineage.answer.value
        read = units.binary(value) if value is not None else None
        rows.append((lineage, _exactly(value), f"({read})" if read else ""))
    exact = max((len(number) for _, number, _ in rows), default=0)
    human = max((len(read) for _, _, read in rows), default=0)
    for lineage, number, read in rows:
        pieces = [
            (f"{number:>{exact}}", "c"),
            (f"{read:<{human}}", "bold"),
            *words(meaning(lineage)),
        ]
        prefix = f"  {lineage.number:<{_NAME}} "
        column = len(prefix) + exact + human + 2
        below = " " * column if style.width - column > ROOM else _BELOW
        yield from fold(pieces, style, prefix, below)
    for same in _read_the_same(explanation.lineages):
        yield from fold(words(same), style, _INDENT, _INDENT)


def _read_the_same(lineages: Sequence[Lineage]) -> Iterator[str]:
    """Say which of the numbers differ although ``virsh --human`` shows them as equal."""
    by_reading: dict[str, dict[str, int]] = {}
    for lineage in lineages:
        value = lineage.answer.value
        reading = units.binary(value) if value is not None else None
        if value is not None and reading is not None:
            by_reading.setdefault(reading, {})[lineage.number] = value
    for reading, numbers in by_reading.items():
        apart = max(numbers.values()) - min(numbers.values())
        if apart:
            names = " and ".join(numbers)
            yield f"--human shows {reading} for {names}, which are up to {apart:,} bytes apart"


def fact_text(fact: Fact) -> str:
    """Return the value of a fact, readable."""
    if isinstance(fact.value, Bytes):
        return units.quantity("capacity", fact.value)
    return units.duration(fact.value) if isinstance(fact.value, Nanoseconds) else plain(fact.value)


def evidence_text(evidence: Evidence) -> str:
    """Return a statement with its value, readable."""
    if evidence.value is None:
        return evidence.text
    return f"{evidence.text}: {units.quantity('capacity', evidence.value)}"


def _facts(facts: Sequence[Fact], style: Style) -> Iterator[str]:
    width = max((cells(safe(fact.name, style)) for fact in facts), default=0)
    for fact in facts:
        pad = " " * (width - cells(safe(fact.name, style)))
        value = words(fact_text(fact), "c")
        pieces = [(fact.name + pad, "cyan"), *value, *words(fact.meaning, "dim")]
        yield from fold([each for each in pieces if each[0]], style, "  ", _BELOW)


_NAME = max(len(name) for name in NUMBERS)
_INDENT = " " * (_NAME + 3)


def _exactly(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def meaning(lineage: Lineage) -> str:
    """Return what the number means, by its source."""
    meanings = [step.meaning for step in lineage.steps() if step.kind in ("qmp", "host")]
    return ", or ".join(dict.fromkeys(meanings))


def _calls(explanation: Explanation[Any]) -> list[Piece]:
    calls = [str(call) for call in explanation.calls]
    shown = ", ".join(calls[:_CALLS_SHOWN])
    more = f" and {len(calls) - _CALLS_SHOWN:,} more" if len(calls) > _CALLS_SHOWN else ""
    first = ", with the numbers of the first" if explanation.case.moves and len(calls) > 1 else ""
    noun = "call" if len(calls) == 1 else "calls"
    return words(f"in {noun} {shown}{more} of the trace{first}", "dim")


def _lineage(lineage: Lineage, style: Style) -> Iterator[str]:
    name = [(lineage.number, "bold"), *words(f"comes from: {lineage.rule.text}")]
    yield from fold(name, style, "  ", _BELOW)
    for seen in lineage.rule.seen:
        told = [(_event(seen.now.seq), "dim"), *words(f"seen: {seen.text}")]
        yield from fold(told, style, _BELOW, _BELOW * 2)
        if seen.after.text and seen.changed:
            source = [(str(seen.after.number), "dim"), *words(seen.after.text, "c")]
            yield from fold(source, style, _BELOW + " " * 5, _BELOW * 2)
    yield from _step(lineage.answer, lineage.answer.value, _BELOW, style)


def _step(step: Origin, answered: int | None, prefix: str, style: Style) -> Iterator[str]:
    """Yield a step and its sources; a value is shown only if it differs from the answer."""
    yield from fold(_told(step, answered), style, prefix, prefix + _BELOW)
    several = len(step.sources) > 1
    for number, source in enumerate(step.sources):
        if several:
            yield from fold([("or" if number else "either", "yellow")], style, prefix)
        yield from _step(source, answered, prefix + ("  " if several else ""), style)


def _told(step: Origin, answered: int | None) -> list[Piece]:
    pieces = [(_event(step.seq), "dim"), *words(step.where)]
    if step.path:
        pieces.append((step.path, "cyan"))
    if step.value not in (None, answered):
        pieces.append((f"= {step.value}", "red"))
    if step.meaning:
        pieces += words(f"= {step.meaning}")
    if step.missing:
        pieces += words(f"(unavailable: {step.missing})", "yellow")
    return pieces


def _event(seq: int | None) -> str:
    return f"{'-' if seq is None else f'#{seq}':<4}"


def _note(explanation: Explanation[Any], style: Style) -> Iterator[str]:
    if explanation.case.note is not None:
        yield ""
        yield from fold(words(explanation.case.note, "dim"), style, "  ", _BELOW)


def _finding(finding: Finding, case: Case, style: Style) -> Iterator[str]:
    cause = finding.cause
    title: list[Piece] = [("cause", "dim"), (cause.name, "bold")]
    if finding.possible:
        title += words("(possible)", "yellow")
    yield from fold(title, style, "  ")
    yield from fold(words(fill_text(cause.means, case)), style, _BELOW, _BELOW)
    for evidence in finding.evidence:
        said = words(evidence_text(evidence))
        yield from fold([(_event(evidence.seq), "dim"), *said], style, _BELOW, _BELOW * 2)
    if cause.versions:
        yield from fold(words(f"versions: {cause.versions}"), style, _BELOW, _BELOW * 2)
    yield from _to_do(cause, case, style)


def _to_do(cause: Cause, case: Case, style: Style) -> Iterator[str]:
    # Commands and addresses are for copying, so they are not folded.
    for command, shows in cause.do:
        typed = paint(safe(fill_text(command, case, command=True), style), "bold", style)
        yield f"{_BELOW}{paint('$', 'dim', style)} {typed}"
        yield from fold(words(shows), style, _BELOW * 2, _BELOW * 2)
    for name, address in cause.links:
        yield f"{_BELOW}{safe(name, style)}: {paint(address, 'cyan', style)}"


def _how_to_see_an_event(
    explanations: Sequence[Explanation[Any]], path: str, style: Style
) -> Iterator[str]:
    """Show the command that prints an event, for the first quoted event."""
    for finding in explanations[0].findings if explanations else ():
        for evidence in finding.evidence:
            if evidence.seq is not None:
                chosen = f"select(.seq == {evidence.seq}){_in_the_record(evidence.path or '')}"
                command = f"jq {shlex.quote(chosen)} {typed(path)}"
                for ending, unpack in _UNPACK.items():
                    if path.endswith(ending):
                        command = f"{unpack.format(typed(path))} | jq {shlex.quote(chosen)}"
                        break
                yield copyable(f"#{evidence.seq}", command, style)
                return


def _in_the_record(path: str) -> str:
    """Return the jq path from a record of the file to what has this path in the event's values.

    A reader parses a text that is JSON into ``values.json``. Where the record has it depends on the
    file: beside the values, as a text in them (a bundle), or parsed in them (version 1).
    """
    inside = re.fullmatch(r"\.json\b(.*)", path)
    if inside is None:
        return f".values{path}"
    document = ".json // .values.json // (.values.text | fromjson)"
    return f" | {document} | .{inside[1].removeprefix('.')}"
