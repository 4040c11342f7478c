"""Many calls at once, as text for a terminal: the answer first, disks, where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virtrace import wording
from virtrace.analysis import spent
from virtrace.analysis.summary import Bucket, DiskAnswers, Movement, Statistics, Summary, histograms
from virtrace.report import units
from virtrace.report.highlight import Style, cells, safe
from virtrace.report.lines import fold
from virtrace.report.pieces import Piece, plain, with_commas, words

# From empty to full.
_BARS = "·▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#%@"
# The width of each, in columns.
_COLUMNS = {"count": 6, "errors": 6, "median": 7, "p90": 7, "p99": 7, "max": 7}
_AWAITED = {spent.WORKER: "a worker", spent.LOCK: "a lock or job", spent.QEMU: "QEMU"}
_SHORT = {spent.WORKER: "worker", spent.LOCK: "lock", spent.QEMU: "QEMU", spent.REST: "rest"}
_WIDTHS = {"calls": 5, "share": 5, **dict.fromkeys(_SHORT.values(), 6)}
_TIMES = ("median", "p90", "p99", "max")
_MOST_ROWS = 10


def summary_lines(summary: Summary, time: spent.TimeSpent, style: Style) -> Iterator[str]:
    """Yield the summary, with an empty line at the end."""
    yield from fold(headline(summary), style)
    yield ""
    for disk in summary.disks.values():
        yield from _disk(disk, style)
        yield ""
    yield from _time(time, style)
    yield from _table("function", summary.functions.values(), style)
    yield from _table("QMP command", summary.commands.values(), style)


def headline(summary: Summary) -> list[Piece]:
    """Say how many calls there were, how many failed, and how long they took."""
    if not summary.calls.count:
        return [("no calls", "bold")]
    calls = summary.calls
    pieces = [
        (wording.count(calls.count, "call"), "bold"),
        (f"{calls.errors:,} failed", "red") if calls.errors else ("none failed", ""),
    ]
    if summary.incomplete:
        pieces.append((f"{summary.incomplete:,} incomplete", "yellow"))
    median, slowest = calls.percentile_ns(50), calls.slowest
    if median is not None and calls.count == 1:
        pieces.append((f"in {units.duration(median)}", ""))
    elif median is not None and calls.max_ns is not None and slowest is not None:
        pieces.append((f"median {units.duration(median)}", ""))
        began = units.seconds(slowest.root.t_enter_ns)
        pieces.append((f"slowest {units.duration(calls.max_ns)} (the call at +{began})", ""))
    return with_commas(pieces)


def disk_name(disk: DiskAnswers) -> str:
    """Return guest and disk, as the callers named them: ``vm1 vda``."""
    return " ".join(plain(name) for name in (disk.domain, disk.disk) if name is not None)


def span(rulers: list[list[Bucket]]) -> str:
    """Return the range of histograms with the same buckets; empty if they have none."""
    if not rulers or not rulers[0]:
        return ""
    return f"{units.duration(rulers[0][0].from_ns)} to {units.duration(rulers[0][-1].to_ns)}"


def movement(number: str, movement: Movement) -> list[Piece]:
    """Return the first value; if it changed, also the last, and the range in between."""
    values = movement.values
    pieces: list[Piece] = []
    if values:
        pieces.append((units.quantity(number, values[0]), "c"))
    if len(values) == 1 and movement.told > 1:
        pieces.append(("throughout", "dim"))
    if len(values) > 1:
        pieces += [("->", ""), (units.quantity(number, values[-1]), "c")]
        notes = [f"{values[-1] - values[0]:+,}", wording.count(len(values) - 1, "change")]
        if min(values) < min(values[0], values[-1]):
            notes.append(f"lowest {units.quantity(number, min(values))}")
        if max(values) > max(values[0], values[-1]):
            notes.append(f"highest {units.quantity(number, max(values))}")
        pieces += words(", ".join(notes), "bold")
    if movement.unavailable:
        pieces += words(f"unavailable in {wording.count(movement.unavailable, 'call')}", "yellow")
    return pieces


def _disk(disk: DiskAnswers, style: Style) -> Iterator[str]:
    pieces: list[Piece] = [(disk_name(disk), "bold"), (wording.count(disk.calls, "call"), "")]
    if disk.failed:
        pieces.append((f"{disk.failed:,} failed", "red"))
    yield from fold(with_commas(pieces), style)
    width = max(map(len, disk.numbers))
    for number, moved in disk.numbers.items():
        if told := movement(number, moved):
            yield from fold([(f"{number:<{width}}", "cyan"), *told], style, "  ", "    ")


def _table(title: str, rows: Iterable[Statistics], style: Style) -> Iterator[str]:
    """Yield one line for each row, or two if the names leave no room beside them."""
    rows = list(rows)
    if not rows:
        return
    rulers = histograms(rows)
    names = max(cells(safe(name, style)) for name in (title, *(row.name for row in rows)))
    used = names + sum(width + 1 for width in _COLUMNS.values()) + 2
    beside = used + max(len(span(rulers)), len(rulers[0])) <= style.width
    width = names if beside else len(title)
    heads = [(f"{name:>{width}}", "dim") for name, width in _COLUMNS.items()]
    yield from fold([(f"{title:<{width}}", "dim"), *heads, (f" {span(rulers)}", "dim")], style)
    for row, ruler in zip(rows, rulers):
        told = [*_cells(row), (" " + _bars(ruler, style), "")]
        if beside:
            yield from fold([(_padded(row.name, width, style), "cyan"), *told], style)
        else:
            yield from fold([(row.name, "cyan")], style)
            yield from fold([(" " * width, ""), *told], style)
        if row.unfinished:
            why = f"{row.unfinished:,} of them not seen to end; the times are of the others"
            yield from fold(words(why, "yellow"), style, "  ", "  ")
    yield ""


def time_tables(time: spent.TimeSpent) -> Iterator[tuple[list[str], list[list[str]], int]]:
    """Yield tables of where the time went: heads, rows, and how many rows more there are.

    The first is by what was awaited; the others by API, domain and client, most time first. None if
    the trace does not tell.
    """
    if time.unknown is not None or not time.calls.count:
        return
    kinds = [kind for kind in spent.KINDS if kind in (*time.told, spent.REST)]
    total = time.calls.total_ns
    waits = []
    for kind in kinds:
        name = f"waiting for {_AWAITED[kind]}" if kind in _AWAITED else "the rest"
        ns, row = time.calls.ns[kind], time.kinds[kind]
        shares = [units.duration(ns), _percent(ns, total), f"{row.count:,}"]
        waits.append([name, *shares, *_times(row)])
    yield ["where the time went", "total", "share", "calls", *_TIMES], waits, 0
    heads = ["calls", "total", *(_SHORT[kind] for kind in kinds), *_TIMES]
    for title, rows in (("API", time.apis), ("domain", time.domains), ("client", time.clients)):
        most = sorted(rows.values(), key=lambda row: -row.total_ns)
        cells = [
            [
                *(row.name, f"{row.count:,}", units.duration(row.total_ns)),
                *(_percent(row.ns[kind], row.total_ns) for kind in kinds),
                *_times(row),
            ]
            for row in most[:_MOST_ROWS]
        ]
        if cells:
            yield [title, *heads], cells, len(most) - len(cells)


def time_means(time: spent.TimeSpent) -> list[str]:
    """Say what the rest of the time is, and which calls are not in the times."""
    if time.unknown is not None or not (time.calls.count or time.left_out):
        return []
    missing = [awaited for kind, awaited in _AWAITED.items() if kind not in time.told]
    waits = ", ".join(["the host", *missing])
    means = f"The rest is libvirt's own work, and waits that were not traced: for {waits}."
    left_out = wording.count(time.left_out, "call")
    why = f"Left out: {left_out} of which the end, or a reply, was not seen."
    return [means, *([why] if time.left_out else [])]


def _percent(part: int, whole: int) -> str:
    """Return a share: ``12 %``; what is little but not nothing as ``<1 %``."""
    if not part or not whole:
        return "-"
    share = round(100 * part / whole)
    return f"{share} %" if share else "<1 %"


def _times(row: Statistics) -> list[str]:
    return ["-" if ns is None else units.duration(ns) for ns in row.times().values()]


def _time(time: spent.TimeSpent, style: Style) -> Iterator[str]:
    for heads, rows, more in time_tables(time):
        yield from _cells_table(heads, rows, style)
        if more:
            yield from fold(words(f"{more:,} more in --json", "dim"), style, "  ", "  ")
        yield ""
    for line in time_means(time):
        yield from fold(words(line, "dim"), style)
    if time_means(time):
        yield ""


def _cells_table(heads: list[str], rows: list[list[str]], style: Style) -> Iterator[str]:
    """Yield a table whose first column has names; those stand above if there is no room."""
    widths = [
        max(_WIDTHS.get(head, 7), *(len(row[place]) for row in rows))
        for place, head in enumerate(heads[1:], 1)
    ]
    names = max(cells(safe(row[0], style)) for row in (heads, *rows))
    beside = names + sum(widths) + len(widths) <= style.width
    first = names if beside else len(heads[0])

    def line(told: list[str], role: str, others: str) -> Iterator[str]:
        texts = [(f"{text:>{width}}", others) for text, width in zip(told[1:], widths)]
        yield from fold([(_padded(told[0], first, style), role), *texts], style)

    yield from line(heads, "dim", "dim")
    for row in rows:
        if beside:
            yield from line(row, "cyan", "")
        else:
            yield from fold([(row[0], "cyan")], style)
            yield from line(["", *row[1:]], "", "")


def _padded(name: str, width: int, style: Style) -> str:
    return name + " " * (width - cells(safe(name, style)))


def _cells(row: Statistics) -> Iterator[Piece]:
    texts = [f"{row.count:,}", f"{row.errors:,}" if row.errors else "-"]
    texts += ["-" if ns is None else units.duration(ns) for ns in row.times().values()]
    for text, (name, width) in zip(texts, _COLUMNS.items()):
        yield f"{text:>{width}}", "red" if name == "errors" and row.errors else ""


def _bars(ruler: list[Bucket], style: Style) -> str:
    """Draw a histogram in one line; a bucket that is not empty is always visible."""
    marks = _BARS if style.unicode else _ASCII_BARS
    most = max((bucket.count for bucket in ruler), default=1) or 1
    return "".join(marks[-(-bucket.count * (len(marks) - 1) // most)] for bucket in ruler)
