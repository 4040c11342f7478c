"""Compare two traces call by call."""

from __future__ import annotations

import hashlib
from tempfile import TemporaryFile
from typing import IO

from virtrace.analysis.compare import whole
from virtrace.analysis.compare.model import Alone, Comparison, Pair
from virtrace.analysis.compare.pairing import answers_apart, asked, calls_of, outlines, paired
from virtrace.analysis.compare.spill import CallsByPlace, trace_changed
from virtrace.analysis.compare.values import COUNTER
from virtrace.analysis.compare.walk import CallComparer
from virtrace.analysis.summary import Summary
from virtrace.trace.reader import ReadableTrace

# Each pair is kept with its calls; nobody reads more pairs than this.
MOST_PAIRS = 200


def compare_traces(
    a: ReadableTrace, b: ReadableTrace, spill: IO[bytes] | None = None
) -> Comparison:
    """Compare two traces; each is read twice: to pair the calls, and to compare the pairs.

    spill: a file for calls that do not fit into memory; None: a temporary one.
    Raises: TraceError: a trace changed meanwhile.
    """
    seen, values = whole.seen_by_both(a, b), whole.values_of(a, b)
    comparer = CallComparer(a, b, seen, values)
    outlines_a, outlines_b = outlines(a), outlines(b)
    # By the place of A's call: the place of B's call, and the number of the pair.
    partners: dict[int, tuple[int, int]] = {}
    # By the place of the call.
    alone_a: dict[int, Alone | None] = {}
    alone_b: dict[int, Alone | None] = {}
    for number, (of_a, of_b) in enumerate(paired(outlines_a.calls, outlines_b.calls)):
        if of_a is not None and of_b is not None:
            partners[of_a.place] = of_b.place, number
        elif of_a is not None:
            alone_a[of_a.place] = None
        elif of_b is not None:
            alone_b[of_b.place] = None
    # By difference: the lowest number of a pair with it, and that pair.
    pairs: dict[bytes, tuple[int, Pair]] = {}
    more = more_differ = 0
    summaries = Summary(), Summary()
    with spill or TemporaryFile(prefix="virtrace-") as file:
        calls_b = CallsByPlace(b, alone_b, file)
        for place, call_a in enumerate(calls_of(a)):
            if place not in partners:
                alone_a[place] = Alone("a", call_a.alone())
                continue
            partner, number = partners[place]
            call_b = calls_b.call(partner)
            summaries[0].add(call_a)
            summaries[1].add(call_b)
            pair = comparer.pair(call_a, call_b)
            key = _key(pair)
            if key not in pairs and len(pairs) >= MOST_PAIRS:
                more += 1
                more_differ += not pair.equal
                continue
            first, kept = pairs.setdefault(key, (number, pair))
            calls = kept.calls
            if number < first:
                pairs[key] = number, pair
                pair.calls = calls
            calls.append((call_a.id, call_b.id))
        calls_b.finish()
    alone = [*alone_a.values(), *alone_b.values()]
    if None in alone:
        raise trace_changed()
    return Comparison(
        a=a,
        b=b,
        pairs=tuple(pair for _, pair in sorted(pairs.values(), key=lambda entry: entry[0])),
        alone=tuple(filter(None, alone)),
        hidden=tuple(whole.hidden(a, b, seen, (outlines_a.names, outlines_b.names))),
        notes=tuple(dict.fromkeys([*whole.settings(a, b), *comparer.notes])),
        timings=tuple(whole.timings(*summaries, seen)),
        passed=values,
        answers=tuple(answers_apart(outlines_a.explained, outlines_b.explained)),
        more=more,
        more_differ=more_differ,
    )


def _key(pair: Pair) -> bytes:
    """Return a digest of what distinguishes a pair from others, without the values of counters."""
    differences = [
        repr((at.kind, at.place.where, at.place.part, at.place.entry, at.path))
        + ("" if at.kind == COUNTER else repr((at.a, at.b)))
        for at in pair.differences
    ]
    returned = None if pair.explained is None else (pair.a.root.returned, pair.b.root.returned)
    key = repr((asked(pair.a), returned, pair.steps, differences))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
