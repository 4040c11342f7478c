"""Many hosts as text for a terminal: those that differ first, then groups and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from virtrace.fleet.compare import Difference, Fleet, Group, Odd, Spread, counted, parts
from virtrace.fleet.facts import SHAPE
from virtrace.report import units
from virtrace.report.highlight import Style
from virtrace.report.lines import fold
from virtrace.report.pieces import Piece, listed, words
from virtrace.wording import count

# What is shown of each; `--json` has all.
_MOST_ODD, _MOST_FILES, _MOST_GROUPS, _MOST_LEFT_OUT, _MOST_PARTS = 20, 20, 12, 20, 8


def fleet_lines(fleet: Fleet, style: Style) -> Iterator[str]:
    """Yield the answer: who differs and in what, then all groups and numbers."""
    yield from fold([(headline(fleet), "bold")], style)
    for odd in fleet.odd[:_MOST_ODD]:
        yield ""
        yield from _odd(odd, style)
    if len(fleet.odd) > _MOST_ODD:
        yield from fold(words(f"and {len(fleet.odd) - _MOST_ODD:,} more such groups"), style)
    for title, files in (
        ("answer nothing", fleet.silent),
        ("incomplete", fleet.incomplete),
        ("left out", fleet.left_out),
    ):
        if files:
            yield ""
            yield from _files(title, files, style)
    for trait, groups in fleet.traits.items():
        if not trait.startswith(SHAPE):
            yield from _groups(trait, groups, style)
    if fleet.spreads:
        yield ""
        yield from fold([("numbers", "cyan")], style)
        for spread in fleet.spreads:
            yield from fold(spread_pieces(spread), style, "  ", "    ")


def headline(fleet: Fleet) -> str:
    """Return the answer in a sentence."""
    of = f"{count(sum(fleet.kinds.values()), 'file')} ({counted(fleet.kinds)})"
    left_out = f"; {count(len(fleet.left_out), 'file')} could not be read" if fleet.left_out else ""
    odd = sum(len(each.files) for each in fleet.odd)
    if not odd:
        return f"{of}: none differs from the others{left_out}."
    verb = "differs" if odd == 1 else "differ"
    return f"{odd:,} of {of} {verb} from the others{left_out}."


def _groups(trait: str, groups: Sequence[Group], style: Style) -> Iterator[str]:
    """Yield the groups of a trait, that of the most files first."""
    yield ""
    yield from fold([(trait, "cyan")], style)
    for group in groups[::-1][:_MOST_GROUPS]:
        says = words(f"such as {group.says}", "dim") if group.says else []
        number = f"  {len(group.files):>7,} "
        yield from fold([(group.value, ""), *says], style, number, " " * len(number))
    if len(groups) > _MOST_GROUPS:
        yield f"  and {len(groups) - _MOST_GROUPS:,} more"


def _odd(odd: Odd, style: Style) -> Iterator[str]:
    yield from fold(_names(odd.files), style)
    for each in odd.differs:
        yield from _difference(each, "", style)
    for each, others in odd.also:
        yield from _difference(each, beside(others), style)


def beside(others: int) -> str:
    """Say how many others have what all of these have."""
    return f"as {count(others, 'other')}" if others else "as no other"


def _names(files: Sequence[str]) -> list[Piece]:
    names: list[Piece] = [(text, "bold") for text, _ in listed(files[:_MOST_FILES])]
    if len(files) > _MOST_FILES:
        names.append((f"and {len(files) - _MOST_FILES:,} more", ""))
    return [*names, (f"({count(len(files), 'file')})", "dim")] if len(files) > 1 else names


def _difference(each: Difference, note: str, style: Style) -> Iterator[str]:
    yield from fold(difference_pieces(each, note), style, "  ", "    ")
    if each.says is not None:
        yield from fold(words(each.says), style, "    ", "    ")


def difference_pieces(each: Difference, note: str) -> list[Piece]:
    """Say what some have, what most have, and the note."""
    if each.trait.startswith(SHAPE):
        pieces = words(_shape(each), "yellow")
    else:
        usual = words(f"(most: {each.usual})", "dim") if each.usual else []
        pieces = [*words(f"{each.trait}: {each.value}", "yellow"), *usual]
    return [*pieces, *(words(f"({note})", "dim") if note else [])]


def _shape(each: Difference) -> str:
    """Say in what an answer of QEMU differs from the usual one."""
    lacks, has = parts(each.value, each.usual or "")
    told = [
        f"{verb} {', '.join(names[:_MOST_PARTS])}{' and more' if len(names) > _MOST_PARTS else ''}"
        for verb, names in (("lacks", lacks), ("has also", has))
        if names
    ]
    return f"{each.trait} {'; '.join(told)}"


def _files(title: str, files: Sequence[tuple[str, str]], style: Style) -> Iterator[str]:
    yield from fold([(f"{title}: {count(len(files), 'file')}", "cyan")], style)
    for name, why in files[:_MOST_LEFT_OUT]:
        yield from fold([(f"{name}:", "bold"), *words(why)], style, "  ", "    ")
    if len(files) > _MOST_LEFT_OUT:
        yield f"  and {len(files) - _MOST_LEFT_OUT:,} more"


def spread_pieces(spread: Spread) -> list[Piece]:
    """Say from where to where the numbers reach."""
    least, median, most = (
        _value(spread.unit, value) for value in (spread.least, spread.median, spread.most)
    )
    if spread.least == spread.most:
        return [(f"{spread.name}:", "bold"), *words(f"{least}, {count(spread.count, 'time')}")]
    return [
        (f"{spread.name}:", "bold"),
        *words(f"{least} ({spread.least_in}) to {most} ({spread.most_in}), median {median},"),
        *words(f"{count(spread.count, 'number')}", "dim"),
    ]


def _value(unit: str, value: int) -> str:
    if unit == "ns":
        return units.duration(max(value, 0))
    return units.binary(value) or f"{value} bytes" if unit == "bytes" else f"{value:,}"
