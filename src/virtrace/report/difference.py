"""The differences between two traces as text: the answer first, then steps, then values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from virtrace import wording
from virtrace.analysis.blockinfo import COUNTERS, NUMBERS
from virtrace.analysis.compare import values
from virtrace.analysis.compare.model import (
    AnswersApart,
    Comparison,
    Hidden,
    OnlyOnOneSide,
    Pair,
)
from virtrace.analysis.compare.values import Difference
from virtrace.analysis.contrast import why
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.errors import typed
from virtrace.report import units
from virtrace.report.explanation import answer, meaning
from virtrace.report.highlight import Style
from virtrace.report.lines import copyable, fold, label, labelled
from virtrace.report.pieces import Piece, compact, plain, question, shown, words
from virtrace.trace.format import Json

# Limits without --full: pairs of calls, values or steps of each, names.
_PAIRS, _LINES, _NAMES = 4, 6, 3
_ALWAYS_IGNORED = "pids, threads, monitors, QMP ids, times"
_BELOW = " " * 4
_BRIEF = Style(width=40)


def difference_lines(found: Comparison, style: Style, *, paths: tuple[str, str]) -> Iterator[str]:
    """Yield the lines. paths: names of the two traces."""
    differing = [pair for pair in found.pairs if not pair.equal]
    yield from _answers(found.answers, style)
    yield from _verdict(found, differing, style)
    yield ""
    for side, trace, path in (("A", found.a, paths[0]), ("B", found.b, paths[1])):
        program = trace.header["target"]["program"]
        version = program["version"] or "of unknown version"
        told = f"{program['name']} {version}, {trace.header['started']},"
        yield from labelled(side, [*words(told), (path, "cyan")], style)
    shown_ = differing if style.full else differing[:_PAIRS]
    for pair in shown_:
        yield ""
        yield from _pair(pair, style)
    if len(differing) > len(shown_):
        yield ""
        rest = wording.count(len(differing) - len(shown_), "more pair") + " of calls differ"
        yield from fold(words(rest, "dim"), style, "  ")
    if found.more:
        yield ""
        rest = f"{wording.count(found.more, 'further pair')} of calls, of which"
        told = f"{rest} {found.more_differ or 'none'} differ, are not listed"
        yield from fold(words(told, "yellow"), style, "  ")
    yield ""
    yield from _counters(found, style)
    yield from _not_compared(found, style)
    yield from _timings(found, style)
    if not style.full and differing:
        command = f"virtrace diff --full {typed(paths[0])} {typed(paths[1])}"
        yield copyable("all", command, style)


def sentence(pair: Pair) -> str:
    """Say in what two calls differ, and why, as far as the traces tell."""
    if pair.equal:
        return "equal."
    if pair.explained is not None:
        one, other = pair.explained
        changed = _changed(one, other)
        if changed:
            reason = why(one.case, other.case) or "the answers differ"
            return f"{reason}: {_numbers_in_words(changed)}."
        answered = one.case.block.answered, other.case.block.answered
        if answered[0] != answered[1]:
            here, there = "AB" if answered[0] else "BA"
            return f"numbers in {here}, none in {there}: {answer(other if answered[0] else one)}"
        if answer(one) != answer(other) and answered == (False, False):
            return f"no numbers in either. A: {answer(one)} B: {answer(other)}"
    elif pair.answers:
        told = [" ".join(text for text, _ in _row(each, _BRIEF)) for each in pair.answers]
        return f"the answers differ: {_listed(told, _BRIEF)}."
    return f"the same answer, but not the same {_kinds(pair)}."


def _answers(answers: Sequence[AnswersApart], style: Style) -> Iterator[str]:
    """Yield what `virtrace explain` answers with otherwise, A before B."""
    fits = answers if style.full or len(answers) <= _LINES + 1 else answers[:_LINES]
    for each in fits:
        for side, one, other in (("A", each.a, each.b), ("B", each.b, each.a)):
            if one is not None:
                only = "only " if other is None else ""
                name: list[Piece] = [(f"{' '.join(one.case.subject)}:", "cyan")]
                said = words(f"{only}in {side}: {answer(one)}", "bold")
                yield from fold([*name, *said], style)
    if len(fits) < len(answers):
        yield from fold(words(f"and {len(answers) - len(fits):,} more answers", "dim"), style)


def _verdict(found: Comparison, differing: list[Pair], style: Style) -> Iterator[str]:
    equal = [pair for pair in found.pairs if pair.equal]
    count = sum(len(pair.calls) for pair in equal)
    if found.equal:
        grew = any(pair.of(values.COUNTER) for pair in equal)
        but = ", but for counters" if grew else ""
        yield from fold(
            words(f"Equal: {wording.count(count, 'call')} in both{but}.", "bold"), style
        )
        return
    for pair in differing:
        often = f" ({wording.count(len(pair.calls), 'call')})" if len(pair.calls) > 1 else ""
        said = words(sentence(pair) + often, "bold")
        yield from fold([*_name(pair, style), *said], style)
    for side in ("a", "b"):
        calls = [each.call for each in found.alone if each.side == side]
        names: dict[str, int] = {}
        for call in calls:
            asked = question(call, style)
            names[asked] = names.get(asked, 0) + 1
        told = [f"{name} ({wording.count(number, 'call')})" for name, number in names.items()]
        if told:
            text = f"only in {side.upper()}: {_listed(told, style)}"
            yield from fold(words(text, "bold"), style)
    if equal:
        yield from fold(words(f"equal: {wording.count(count, 'other call')}"), style)


def _name(pair: Pair, style: Style) -> list[Piece]:
    if pair.explained is None:
        return [(f"{question(pair.a, style)}:", "cyan")]
    block = pair.explained[0].case.block
    return [(block.domain, "cyan"), (f"{block.disk}:", "cyan")]


def _changed(a: Explanation[DiskCase], b: Explanation[DiskCase]) -> dict[str, tuple[int, int]]:
    """Return the numbers that both sides have and that differ, in bytes."""
    one, other = a.case.block, b.case.block
    if not (one.answered and other.answered):
        return {}
    numbers = {name: (one.number(name), other.number(name)) for name in NUMBERS}
    return {
        name: (here, there)
        for name, (here, there) in numbers.items()
        if here is not None and there is not None and here != there
    }


def _numbers_in_words(changed: dict[str, tuple[int, int]]) -> str:
    said = {
        name: " against ".join(units.binary(value) or str(value) for value in pair)
        for name, pair in changed.items()
    }
    if changed.get("allocation", ())[::-1] == changed.get("physical"):
        said["physical"] = "the other way round"
    return ", ".join(f"{name} {text}" for name, text in said.items())


def _kinds(pair: Pair) -> str:
    """Count what differs besides the answer: ``2 QMP commands, 6 values``."""
    steps = {"function": "function", "point": "point", "line": "source line", "qmp": "QMP command"}
    counts = [(sum(step.kind == kind for step in pair.steps), noun) for kind, noun in steps.items()]
    counts.append((len(pair.of(values.VALUE)), "value"))
    counts.append((len(pair.of(values.ONLY_A, values.ONLY_B)), "field"))
    counts.append((len(pair.of(values.FELL)), "counter"))
    return ", ".join(wording.count(number, noun) for number, noun in counts if number)


# A pair


def _pair(pair: Pair, style: Style) -> Iterator[str]:
    first, second = pair.calls[0]
    more = f" and {len(pair.calls) - 1:,} more" if len(pair.calls) > 1 else ""
    calls = words(f"call {first} of A, {second} of B{more}", "dim")
    yield from fold([*_name(pair, style), *calls], style)
    if pair.explained is not None:
        yield from _numbers(*pair.explained, style)
        yield from _causes(*pair.explained, style)
    yield from _steps(pair, style)
    yield from _values("values", _not_said(pair, full=style.full), style)
    yield from _values("fell", pair.of(values.FELL), style)
    for name, kind in (("only A", values.ONLY_A), ("only B", values.ONLY_B)):
        fields = [each for each in pair.of(kind) if each.place.part != "sent"]
        yield from _values(name, fields, style, most=_NAMES)


def _not_said(pair: Pair, *, full: bool) -> list[Difference]:
    """Return the values that differ, without copies of the numbers in the answer."""
    told = [each for each in pair.of(values.VALUE) if each.place.part != "sent"]
    if full or pair.explained is None:
        return told
    said = {(_leaf(each), repr(each.a), repr(each.b)) for each in pair.answers}
    return [each for each in told if (_leaf(each), repr(each.a), repr(each.b)) not in said]


def _numbers(a: Explanation[DiskCase], b: Explanation[DiskCase], style: Style) -> Iterator[str]:
    changed = _changed(a, b)
    exact = max((len(str(value)) for pair in changed.values() for value in pair), default=0)
    for name, pair in changed.items():
        for side, explanation, value in zip("AB", (a, b), pair):
            [lineage] = [each for each in explanation.lineages if each.number == name]
            pieces: list[Piece] = [(side, "dim"), (f"{value:>{exact}}", "c")]
            read = units.binary(value)
            if read:
                pieces.append((f"({read})", "bold"))
            prefix = f"  {name if side == 'A' else '':<{_NUMBER}} "
            yield from fold([*pieces, *words(meaning(lineage))], style, prefix, label("") + _BELOW)


_NUMBER = max(len(name) for name in NUMBERS)


def _causes(a: Explanation[DiskCase], b: Explanation[DiskCase], style: Style) -> Iterator[str]:
    names = [" or ".join(finding.cause.name for finding in each.answers) for each in (a, b)]
    told = f"{names[0]} in A, {names[1]} in B" if names[0] != names[1] else f"{names[0]} in both"
    yield from labelled("cause", words(told), style)
    for side, explanation in (("A", a), ("B", b)) if style.full else ():
        yield from labelled(f"cause {side}", words(answer(explanation)), style)


def _steps(pair: Pair, style: Style) -> Iterator[str]:
    way = [_step(step) for step in pair.steps if step.kind != "qmp"]
    commands = [_step(step) for step in pair.steps if step.kind == "qmp"]
    sent = [each for each in pair.differences if each.place.part == "sent"]
    yield from _rows("way", way, style)
    yield from _rows("QMP", [*commands, *(_row(each, style) for each in sent)], style)


def _step(step: OnlyOnOneSide) -> list[Piece]:
    said: list[Piece] = [("line", "")] if step.kind == "line" else []
    said.append((step.name, "bold"))
    if step.arguments is not None:
        said.append((compact(step.arguments), "json"))
    within = f"in {step.within} " if step.within else ""
    return [*said, *words(f"{within}only in {step.side.upper()}")]


def _values(
    name: str, differences: list[Difference], style: Style, most: int = _LINES
) -> Iterator[str]:
    """Yield the differences, one a row with --full; else a limited number, grouped by place."""
    if style.full:
        yield from _rows(name, [_row(each, style) for each in differences], style)
        return
    places: dict[str, list[list[Piece]]] = {}
    fits = differences if len(differences) <= most + 1 else differences[:most]
    for each in fits:
        said: list[Piece] = [(_field(each), "cyan")]
        if each.kind not in (values.ONLY_A, values.ONLY_B):
            said += _change(each, style)
        places.setdefault(_place(each), []).append(said)
    rows = [[*words(f"{place}:"), *_joined(fields)] for place, fields in places.items()]
    if len(fits) < len(differences):
        rows.append(words(f"and {len(differences) - len(fits):,} more", "dim"))
    yield from _rows(name, rows, style)


def _joined(several: list[list[Piece]]) -> list[Piece]:
    """Join the pieces with commas."""
    joined: list[Piece] = []
    for pieces in several[:-1]:
        text, role = pieces[-1]
        joined += [*pieces[:-1], (f"{text},", role)]
    return joined + several[-1]


def _row(difference: Difference, style: Style) -> list[Piece]:
    place: list[Piece] = [*words(_place(difference)), (_field(difference), "cyan")]
    kind = difference.kind
    if kind in (values.ONLY_A, values.ONLY_B):
        side = "A" if kind == values.ONLY_A else "B"
        only = difference.a if kind == values.ONLY_A else difference.b
        return [*place, _told(difference, only, style), *words(f"only in {side}")]
    return [*place, *_change(difference, style)]


def _change(difference: Difference, style: Style) -> list[Piece]:
    sides = [_told(difference, each, style) for each in (difference.a, difference.b)]
    return [sides[0], ("->", ""), sides[1]]


def _told(difference: Difference, value: Json, style: Style) -> Piece:
    return shown(_leaf(difference), value, style if style.full else _BRIEF)


def _rows(name: str, rows: list[list[Piece]], style: Style) -> Iterator[str]:
    """Yield the rows, one below the other, up to the limit."""
    fits = rows if style.full or len(rows) <= _LINES + 1 else rows[:_LINES]
    for number, row in enumerate(fits):
        yield from fold(row, style, label("" if number else name), label("") + _BELOW)
    if len(fits) < len(rows):
        yield from fold(words(f"and {len(rows) - len(fits):,} more", "dim"), style, label(""))


def _place(difference: Difference) -> str:
    """``query-blockstats``, ``query-named-block-nodes of the parent``."""
    place = difference.place
    return f"{place.where} of the {place.entry}" if place.entry else place.where


def _field(difference: Difference) -> str:
    if difference.path != ".":
        return difference.path
    return "entries" if difference.place.part == "entries" else "all of it"


def _leaf(difference: Difference) -> str:
    return difference.path.rpartition(".")[2]


def _listed(names: list[str], style: Style) -> str:
    fits = names if style.full or len(names) <= _NAMES + 1 else names[:_NAMES]
    more = f" and {len(names) - len(fits):,} more" if len(fits) < len(names) else ""
    return ", ".join(fits) + more


# The traces as a whole


def _counters(found: Comparison, style: Style) -> Iterator[str]:
    """Yield QEMU's counters by libvirt's names for them."""
    name = "grew" if found.passed.same_daemon and not found.passed.a_is_later else "counters"
    for pair in found.pairs:
        told: dict[str, Difference] = {}
        for each in pair.of(values.COUNTER):
            entry = f".{each.place.entry}" if each.place.entry else ""
            counter = f"{entry}{each.path}".replace(".stats.", ".").lstrip(".")
            told.setdefault(COUNTERS.get(counter, counter), each)
        said = [f"{counter} {each.a} -> {each.b}" for counter, each in told.items()]
        if said:
            yield from labelled(name, [*_name(pair, style), *words(_listed(said, style))], style)
            name = ""


def _not_compared(found: Comparison, style: Style) -> Iterator[str]:
    unseen: dict[str, None] = {}
    for why_, hidden in _by_reason(found.hidden):
        names = ", ".join(each.name for each in hidden)
        unseen[f"{names} ({hidden[0].side.upper()}: {why_})"] = None
    for pair in found.pairs:
        for each in pair.of(values.UNSEEN_A, values.UNSEEN_B):
            side, lost = ("A", each.a) if each.kind == values.UNSEEN_A else ("B", each.b)
            reason = lost.get("unavailable", "it was cut") if isinstance(lost, dict) else lost
            unseen[f"{_place(each)} {_field(each)} ({side}: {plain(reason)})"] = None
    yield from _rows("unseen", [words(text) for text in unseen], style)
    yield from _rows("note", [words(note) for note in found.notes], style)
    ignored = [f"{what} ({number:,})" for what, number in sorted(found.passed.ignored.items())]
    text = ", ".join([_ALWAYS_IGNORED, *ignored])
    yield from labelled("ignored", words(text, "dim"), style)
    folders = [f"{one} -> {other}" for one, other in found.passed.folders]
    yield from _rows("", [words(text, "dim") for text in folders], style)


def _by_reason(hidden: Iterable[Hidden]) -> Iterator[tuple[str, list[Hidden]]]:
    reasons: dict[tuple[str, str], list[Hidden]] = {}
    for each in hidden:
        reasons.setdefault((each.side, each.why), []).append(each)
    for (_, why_), together in reasons.items():
        yield why_, together


def _timings(found: Comparison, style: Style) -> Iterator[str]:
    rows = []
    for each in found.timings:
        times = f"{units.duration(each.a_ns)} -> {units.duration(each.b_ns)}"
        low, high = sorted((each.a_ns, each.b_ns))
        longer = "B" if each.b_ns == high else "A"
        ratio = f"({high / max(low, 1):.1f} times as long in {longer})"
        rows.append([(each.name, "bold"), *words(f"{times} {ratio}, median")])
    yield from _rows("times", rows, style)
