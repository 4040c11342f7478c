"""Memory does not grow with the trace, and no answer depends on its length."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import large, samples
from virtrace.analysis.compare import traces as compared
from virtrace.analysis.explain import trace as explain
from virtrace.analysis.spans import CallBuilder
from virtrace.bundle.collect import make
from virtrace.bundle.pseudonyms import Pseudonyms
from virtrace.cli import show
from virtrace.cli.main import build_parser, main
from virtrace.errors import INCOMPLETE, UsageError
from virtrace.host.facts import HostFacts
from virtrace.report import html
from virtrace.trace.reader import Trace, TraceStream, read_trace

SMALL, LARGE = 12_000, 24_000
# What is kept of each call on purpose (its number, its durations) is well below that.
MOST_BYTES_OF_AN_EVENT = 200
# The peak of the process itself, which that of a child is not.
PEAK = """
import sys
from virtrace.cli.main import main
status = main(sys.argv[1:])
[kib] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(kib, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("large")
    return {events: large.write(folder / f"{events}.jsonl", events) for events in (SMALL, LARGE)}


def peak(*words: str) -> int:
    """In bytes."""
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stderr.split()[-1]) << 10


@pytest.mark.parametrize(
    "words",
    [
        "show FILE",
        "show PACKED",
        "show --json FILE",
        "show --summary FILE",
        "explain FILE",
        "diff FILE FILE",
        "export --to csv -o OUT FILE",
        "export --to chrome -o OUT FILE",
        "export --to perfetto -o OUT FILE",
        "export --to otlp -o OUT FILE",
    ],
)
def test_memory_does_not_grow(words: str, traces: dict[int, Path], tmp_path: Path) -> None:
    peaks = []
    for events, file in traces.items():
        packed = file.with_suffix(".gz")
        packed.write_bytes(gzip.compress(file.read_bytes(), 1))
        names = {"FILE": str(file), "PACKED": str(packed), "OUT": str(tmp_path / f"{events}.out")}
        peaks.append(peak(*(names.get(word, word) for word in words.split())))
    # A list of all that was read takes 2700 bytes an event, after the first that show keeps.
    assert peaks[1] - peaks[0] < 8 * 1024 * 1024 + MOST_BYTES_OF_AN_EVENT * (LARGE - SMALL), peaks


def test_only_open_calls_are_held(traces: dict[int, Path]) -> None:
    with TraceStream(traces[SMALL]) as trace:
        builder = CallBuilder(most_open=20)
        assert sum(1 for _ in builder.calls(trace)) == SMALL // 20


def test_a_stream_says_the_same_as_the_whole(traces: dict[int, Path]) -> None:
    whole = read_trace(traces[SMALL])
    with TraceStream(traces[SMALL]) as trace:
        for _ in range(2):
            assert list(trace) == whole.events
            assert (trace.footer, trace.problems) == (whole.footer, [])
            assert (trace.count, trace.last_ns) == (whole.count, whole.last_ns)


def test_cases_beyond_those_that_are_told_are_counted(traces: dict[int, Path]) -> None:
    trace = read_trace(traces[SMALL])
    whole = explain.explain_trace(trace, "t")
    assert len(whole) > 3
    assert (whole.more, whole.more_calls) == (0, 0)
    some = explain.explain_nodes(CallBuilder().everything(trace), trace, most=3)
    assert [each.calls for each in some] == [each.calls for each in whole[:3]]
    assert some.more == len(whole) - 3
    assert some.more_calls == sum(len(each.calls) for each in whole[3:])


def test_cases_keep_no_more_of_a_trace_than_a_part(
    traces: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with TraceStream(traces[SMALL]) as trace:
        whole = explain.explain_trace(trace, "t")
        assert len(whole) > 3
        monkeypatch.setattr(explain, "_MOST_BYTES", 1)
        some = explain.explain_trace(trace, "t")
    assert [each.calls for each in some] == [each.calls for each in whole[:1]]
    assert some.more == len(whole) - 1


def test_pairs_beyond_those_that_are_told_are_counted(
    traces: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = read_trace(traces[SMALL])
    # Guests of their own answers, each of which is a pair of its own.
    assert len(compared.compare_traces(trace, trace).pairs) > 3
    monkeypatch.setattr(compared, "MOST_PAIRS", 3)
    found = compared.compare_traces(trace, trace)
    assert len(found.pairs) == 3
    assert found.more > 0
    assert found.more_differ == 0
    assert found.equal


def test_calls_in_another_order_are_compared(traces: dict[int, Path], tmp_path: Path) -> None:
    """Far more wait for their partner than are kept in memory."""
    header, *events, footer = traces[SMALL].read_text().splitlines(keepends=True)
    calls = [events[start : start + 20] for start in range(0, len(events), 20)]
    # Those of one guest keep their order among each other; the guests come one after the other.
    calls.sort(key=lambda call: call[0].partition('"domain"')[2])
    file = tmp_path / "t.jsonl"
    file.write_text("".join([header, *(line for call in calls for line in call), footer]))
    found = compared.compare_traces(read_trace(traces[SMALL]), read_trace(file))
    assert found.equal
    assert not found.alone
    assert sum(len(pair.calls) for pair in found.pairs) == SMALL // 20
    assert all(one == other for pair in found.pairs for one, other in pair.calls)


def test_what_a_bundle_holds_anyway_is_asked_of_names_alone(
    traces: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a search through all that a trace can say, of which ids are the most."""
    asked: list[str] = []
    ask = Pseudonyms.is_ordinary

    def counted(names: Pseudonyms, original: str) -> bool:
        asked.append(original)
        return ask(names, original)

    monkeypatch.setattr(Pseudonyms, "is_ordinary", counted)
    whole = read_trace(traces[SMALL])
    counts = []
    for events in (200, 800):
        asked.clear()
        footer: Any = {**(whole.footer or {}), "events": events}
        part = Trace(whole.header, whole.events[:events], footer)
        make(part, HostFacts(qemu="", domains={}, settings={}), [], lambda _: None)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_a_page_of_a_long_trace_is_refused(
    traces: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "MOST_EVENTS", 100)
    output = tmp_path / "page.html"
    args = build_parser().parse_args(["show", "--html", str(output), str(traces[SMALL])])
    with pytest.raises(UsageError, match="more than 100 events, too many for a page"):
        args.run(args)
    assert not output.exists()


def test_a_long_trace_is_shown_as_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for what is known only at its end, which stands there."""
    records = samples.records()
    records[-2:] = []
    file = samples.write(tmp_path / "t.jsonl", records)
    printed = []
    for at_once in (show._AT_ONCE, 0):
        monkeypatch.setattr(show, "_AT_ONCE", at_once)
        assert main(["show", str(file)]) == INCOMPLETE
        printed.append(capsys.readouterr().out.split("\n\n"))
    short, long = printed
    [note] = [part for part in long if part not in short]
    assert note.startswith("a long trace, shown while it is read")
    assert sorted(part for part in long if part != note) == sorted(short)
    [waiting] = [part for part in short if part.startswith("still waiting when the trace ended")]
    assert short.index(waiting) < 3
    assert long.index(waiting) == len(long) - 2
