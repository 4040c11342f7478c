from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from tests.support.paths import DATA
from virtrace import printing
from virtrace.analysis.spans import Call, CallBuilder, Tally
from virtrace.report import highlight, text, units
from virtrace.report.highlight import Style, cells, safe, shorten, style_for
from virtrace.trace.format import Event, unavailable
from virtrace.trace.reader import read_trace

WITH_LINES = DATA / "explain" / "discarded-with-lines-9.0.0.jsonl"
PLAIN = Style(width=100, unicode=True)
SOURCE = str(Path(text.__file__).parents[2])


def call_of(events: list[Event]) -> Call:
    builder = CallBuilder()
    calls = [call for event in events if (call := builder.feed(event))] + builder.finish()
    assert len(calls) == 1
    return calls[0]


def tree(style: Style = PLAIN, **how: Any) -> list[str]:
    return list(text.call_tree(call_of(samples.blockinfo(samples.Recorder(), **how)), style))


def with_values(kind: str, name: str, values: dict[str, Any]) -> Call:
    """The sample call, with other values at one event."""
    events = samples.blockinfo(samples.Recorder())
    return call_of(
        [
            event._replace(values={**event.values, **values})
            if (event.type, event.name) == (kind, name)
            else event
            for event in events
        ]
    )


# Units


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("capacity", 2147483648, "2147483648 (2.000 GiB)"),
        ("rd_bytes", 17435136, "17435136 (16.627 MiB)"),
        ("physical", 1023, "1023"),
        ("physical", 1024, "1024 (1.000 KiB)"),
        ("allocation", 1024**3 - 1, "1073741823 (1.000 GiB)"),
        ("capacity", 2**64 - 1, "18446744073709551615 (16.000 EiB)"),
        ("capacity", 2**64, "18446744073709551616"),
        ("capacity", -1, "-1"),
        ("wr_highest_offset", 0, "0"),
        ("rd_total_times", 527027278, "527027278 (527 ms)"),
        ("rd_req", 2147483648, "2147483648"),
    ],
)
def test_quantity(field: str, value: int, expected: str) -> None:
    assert units.quantity(field, value) == expected


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.0 us"),
        (99_949, "99.9 us"),
        (99_950, "100 us"),
        (999_499, "999 us"),
        (999_500, "1.0 ms"),
        (3_210_000, "3.2 ms"),
        (59_960_000_000, "60.0 s"),
        (125_000_000_000, "2 min 5 s"),
    ],
)
def test_duration(ns: int, expected: str) -> None:
    assert units.duration(ns) == expected


def test_integers_of_any_size_are_no_trouble() -> None:
    assert units.seconds(12_345_678_901) == "12.345 s"
    assert units.seconds(10**4000).endswith(".000 s")
    assert units.duration(10**4000).endswith(" s")
    assert units.quantity("capacity", 10**4000) == "1" + "0" * 4000


# Call tree


def test_answer_comes_first_exact_and_readable() -> None:
    assert tree()[:4] == [
        "+0.001 s virDomainGetBlockInfo(vm1, vda) = 0 in 2.3 ms",
        "  capacity   2147483648 (2.000 GiB)",
        "  allocation   32870912 (31.348 MiB)",
        "  physical      1507328 (1.438 MiB)",
    ]


def test_answer_is_one_line_where_that_fits() -> None:
    assert tree(Style(width=160, unicode=True))[0] == (
        "+0.001 s virDomainGetBlockInfo(vm1, vda) = 0 in 2.3 ms  capacity 2147483648 (2.000 GiB)"
        "  allocation 32870912 (31.348 MiB)  physical 1507328 (1.438 MiB)"
    )


def test_tree() -> None:
    lines = tree()[4:]
    assert lines[:6] == [
        'virDomainGetBlockInfo(domain="vm1", disk="vda", flags=0) = 0 in 2.3 ms',
        '└─ qemuDomainGetBlockInfo(domain="vm1", disk="vda", flags=0) = 0 in 1.9 ms',
        '   ├─ qemuDomainBlocksStatsGather(disk="vda", capacity=true) = 0 in 1.5 ms',
        "   │  ├─ qemuMonitorGetAllBlockStatsInfo(mon=0x7f2c5800b6a0) = 3 in 1.1 ms",
        "   │  │  └─ qemuMonitorJSONQueryBlockstats(mon=0x7f2c5800b6a0) = 0x7f2c48004b20 in 639 us",
        '   │  │     └─ QMP query-blockstats libvirt-12 {"query-nodes": true} '
        "-> 304 bytes in 213 us",
    ]
    assert lines[6].startswith('   │  │           {"return": [{"device": "", ')
    assert lines[6].endswith("…")
    assert cells(lines[6]) == PLAIN.width
    assert lines[7:10] == [
        "   │  └─ stats",
        "   │        rd_req                         712",
        "   │        rd_bytes                  17435136 (16.627 MiB)",
    ]
    assert "   │        wr_highest_offset_valid       true" in lines
    assert lines[-2:] == ["   └─ info as in the answer above", ""]


def test_a_backtrace_has_a_line_for_each_frame() -> None:
    frames = ["virCondWait+0x6 (libvirt.so.0.9000.0)", "libvirtd+0x3be29", unavailable("no table")]
    call = with_values("enter", "qemuDomainBlocksStatsGather", {"owner_backtrace": frames})
    lines = list(text.call_tree(call, PLAIN))
    first = next(n for n, line in enumerate(lines) if "owner_backtrace" in line)
    assert "owner_backtrace=" not in lines[first]
    assert [line.strip("│├─ ") for line in lines[first : first + 4]] == [
        "owner_backtrace on entry",
        "#0  virCondWait+0x6 (libvirt.so.0.9000.0)",
        "#1  libvirtd+0x3be29",
        "unavailable: no table",
    ]


def test_every_field_of_the_struct_is_there() -> None:
    shown = "\n".join(tree())
    for field, value in samples.STATS.items():
        assert re.search(rf" {field} +{str(value).lower()}\b", shown)


def test_info_that_differs_from_the_answer_is_shown() -> None:
    other = {**samples.INFO, "physical": 4096}
    lines = text.call_tree(with_values("exit", "qemuDomainGetBlockInfo", {"info": other}), PLAIN)
    shown = "\n".join(lines)
    assert "as in the answer" not in shown
    assert "4096 (4.000 KiB)" in shown


def test_failure_begins_with_the_error() -> None:
    lines = tree(error="invalid argument: invalid path zz not assigned to domain", disk="zz")
    assert lines[:2] == [
        "error 8: invalid argument: invalid path zz not assigned to domain",
        "+0.001 s virDomainGetBlockInfo(vm1, zz) = -1 in 852 us",
    ]
    shown = " ".join(line.strip("│├─ ") for line in lines)
    assert "(raised in qemuDomainGetBlockInfo, ../../src/qemu/qemu_driver.c:9500)" in shown


def test_several_errors_are_not_passed_over_in_silence() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder, error="last")
    first = events[2]._replace(values={"code": 1, "message": "first"})
    lines = list(text.call_tree(call_of([*events[:2], first, *events[2:]]), PLAIN))
    assert lines[:2] == ["error 8: last", "  the last of 2 errors; all are below"]
    assert "│  ├─ error 1: first" in lines


def test_failure_without_an_error_says_so() -> None:
    lines = text.call_tree(with_values("exit", "virDomainGetBlockInfo", {"result": -1}), PLAIN)
    assert next(lines) == "failed, and no error was seen"


def test_failure_by_an_error_of_another_thread_names_it() -> None:
    """As QEMU's monitor has its own thread, which notices first that QEMU has ended."""
    recorder = samples.Recorder()

    def apart(message: str) -> None:
        values = {"code": 1, "message": message}
        recorder.add("point", "error", tid=99, values=values)

    apart("before")
    place = {"span": 1, "call": 1}
    recorder.add("enter", "virDomainCreate", values={"domain": "vm1"}, **place)
    apart("process exited while connecting to monitor")
    apart("later")
    recorder.add("exit", "virDomainCreate", values={"result": -1}, **place)
    apart("after")
    calls = [each for each in CallBuilder().everything(recorder.events) if isinstance(each, Call)]
    [call] = calls
    assert [event.values["message"] for event in call.meanwhile] == [
        "process exited while connecting to monitor",
        "later",
    ]
    lines = list(text.call_tree(call, Style(width=200)))
    assert lines[0] == ("error 1: later (on another thread meanwhile)")


def test_incomplete_call_says_what_is_missing() -> None:
    events = samples.blockinfo(samples.Recorder())[:-1]
    lines = list(text.call_tree(call_of(events), PLAIN))
    assert lines[:2] == [
        "+0.001 s virDomainGetBlockInfo(vm1, vda) return not seen",
        "  incomplete: the return of virDomainGetBlockInfo was not seen",
    ]


def test_unavailable_is_told_with_its_reason_and_never_as_a_number() -> None:
    gone = unavailable("the page is not mapped")
    call = with_values(
        "exit", "virDomainGetBlockInfo", {"info": {**samples.INFO, "physical": gone}}
    )
    assert "  physical   unavailable: the page is not mapped" in text.call_tree(call, PLAIN)
    call = with_values("exit", "virDomainGetBlockInfo", {"info": gone})
    assert next(text.call_tree(call, PLAIN)) == (
        "+0.001 s virDomainGetBlockInfo(vm1, vda) = 0 info=unavailable: the page is not mapped "
        "in 2.3 ms"
    )
    call = with_values("enter", "virDomainGetBlockInfo", {"disk": unavailable("optimized out")})
    lines = list(text.call_tree(call, PLAIN))
    assert "(vm1, unavailable: optimized out) = 0" in lines[0]
    assert 'domain="vm1", disk=unavailable: optimized out, flags=0)' in lines[4]


def test_reply_that_was_not_seen() -> None:
    events = samples.blockinfo(samples.Recorder())
    call = call_of([event for event in events if event.name != "qmp.reply"])
    assert any(line.endswith("-> no reply was seen") for line in text.call_tree(call, PLAIN))


def test_reply_to_a_command_that_was_not_seen() -> None:
    events = samples.blockinfo(samples.Recorder())
    call = call_of([event for event in events if event.name != "qmp.send"])
    assert any(
        line.endswith("QMP reply of 304 bytes to a command that was not seen")
        for line in text.call_tree(call, PLAIN)
    )


def test_reply_that_is_an_error() -> None:
    document = {"id": "libvirt-12", "error": {"class": "GenericError", "desc": "no such node"}}
    call = with_values("point", "qmp.reply", {"json": document})
    assert any(
        line.endswith("-> error GenericError: no such node in 213 us")
        for line in text.call_tree(call, Style(width=140))
    )


@pytest.mark.parametrize(
    ("captured", "shown"),
    [
        ({"text": '{"return": [', "length": 10_485_760}, "-> 10,485,760 bytes"),
        (unavailable("the page is not mapped"), "-> unavailable: the page is not mapped"),
        ({"bytes": base64.b64encode(b"\xff\xfe").decode()}, "-> 2 bytes"),
    ],
)
def test_reply_that_was_not_captured_whole(captured: Any, shown: str) -> None:
    call = with_values("point", "qmp.reply", {"text": captured})
    assert any(shown in line for line in text.call_tree(call, Style(width=140)))


def test_full_shows_the_whole_reply() -> None:
    lines = tree(Style(width=100, unicode=True, full=True))
    shown = "\n".join(line.lstrip("│ ") for line in lines)
    assert '"wr_highest_offset": 32870912\n},\n"node-name": "libvirt-1-storage"\n' in shown
    assert "…" not in shown


def test_text_that_is_not_utf8_shows_its_bytes() -> None:
    raw = {"bytes": base64.b64encode(b"vm\xff").decode()}
    lines = text.call_tree(with_values("enter", "virDomainGetBlockInfo", {"domain": raw}), PLAIN)
    assert r"(b'vm\xff', vda)" in next(lines)


def test_long_strings_are_cut_unless_all_is_wanted() -> None:
    call = with_values("enter", "qemuDomainBlocksStatsGather", {"disk": "x" * 5000})
    assert len("".join(text.call_tree(call, PLAIN))) < 5000
    full = "".join(text.call_tree(call, Style(width=100, full=True)))
    assert full.count("x") > 5000


# Source lines


def with_lines(*, text: bool) -> Call:
    """A call recorded in the lab, its lines with their text or without."""
    events = read_trace(WITH_LINES).events
    for event in events:
        if event.type == "line" and not text:
            del event.values["text"]
    return call_of(events)


def test_lines_with_their_text_and_what_changed() -> None:
    lines = list(text.call_tree(with_lines(text=True), PLAIN))
    first = lines.index("   ├─ src/qemu/qemu_driver.c")
    assert lines[first + 1 : first + 3] == ["   │  10840 {", "   │  10848 virCheckFlags(0, -1);"]
    # What it called stands between the lines where it did.
    call = "if (qemuDomainBlocksStatsGather(vm, path, true, &entry) < 0)"
    gathers = lines.index(f"   │  10899 {call}") + 1
    assert lines[gathers].startswith("   ├─ qemuDomainBlocksStatsGather(")
    second = lines.index("   ├─ 10902 if (!entry->wr_highest_offset_valid) {")
    assert lines[second + 2 : second + 9] == [
        "   │  10909 info->allocation = entry->wr_highest_offset;",
        "   │        allocation 0 -> 67108864 (64.000 MiB)",
        "   │  10923 if (entry->physical == 0 || info->allocation == 0 ||",
        "   │        physical 0 -> 4096 (4.000 KiB)",
        "   │  10937 info->capacity = entry->capacity;",
        "   │        capacity 0 -> 67108864 (64.000 MiB)",
        "   │  10939 ret = 0;",
    ]
    assert lines[-2:] == ["   └─ info as in the answer above", ""]
    # The file is named once, and what was known from the start is no change.
    assert sum("qemu_driver.c" in line for line in lines) == 1
    assert not any("capacity 0" in line and "->" not in line for line in lines[4:])


def test_lines_without_text_stand_together() -> None:
    call = with_lines(text=False)
    lines = list(text.call_tree(call, Style(width=80)))
    numbers = "10840, 10848, 10850, 10853, 10855, 10858, 10861, 10867 ... 10899"
    assert f"   |  lines {numbers}" in lines
    second = lines.index("   |- lines 10902, 10905")
    assert lines[second + 1 :] == [
        "   |  line 10909 allocation 0 -> 67108864 (64.000 MiB)",
        "   |  line 10923 physical 0 -> 4096 (4.000 KiB)",
        "   |  line 10937 capacity 0 -> 67108864 (64.000 MiB)",
        "   |  lines 10939, 10942, 10944, 10945, 10845",
        "   `- info as in the answer above",
        "",
    ]
    full = " ".join(line.strip("| ") for line in text.call_tree(call, Style(80, full=True)))
    assert numbers.replace(" ...", ", 10873, 10880, 10887,") in full


def test_every_change_of_a_line_has_a_row() -> None:
    events = read_trace(WITH_LINES.with_name("stopped-qcow2-with-lines-9.0.0.jsonl")).events
    for event in events:
        event.values.pop("text", None)
    lines = list(text.call_tree(call_of(events), PLAIN))
    at = lines.index("   │  line 10892 capacity 0 -> 1073741824 (1.000 GiB)")
    assert lines[at + 1] == "   │             allocation 0 -> 1314816 (1.254 MiB)"


def test_what_can_no_longer_be_read_is_said() -> None:
    events = read_trace(WITH_LINES).events
    for event in events:
        if event.values.get("line") == 10905:
            event.values["changed"] = {"physical": unavailable("optimized out")}
    lines = list(text.call_tree(call_of(events), PLAIN))
    at = lines.index("   ├─ 10902 if (!entry->wr_highest_offset_valid) {")
    assert lines[at + 1] == "   │        physical unavailable: optimized out"


def test_long_lines_are_cut_unless_all_is_wanted() -> None:
    call = with_lines(text=True)
    row = next(line for line in text.call_tree(call, Style(80)) if "10867" in line)
    assert cells(row) == 80
    assert row.endswith("...")
    full = " ".join(line.strip("| ") for line in text.call_tree(call, Style(80, full=True)))
    assert "== VIR_STORAGE_TYPE_VHOST_USER) { 10873 if (" in full


# Width


HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202e\u2066\x7f\x00"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("unicode", [False, True])
def test_nothing_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    style = Style(width=width, unicode=unicode)
    long_names = {"domain": "测试虚拟机" * 20, "disk": "/srv/" + "x" * 300}
    for lines in (
        tree(style),
        tree(style, error="内部错误: " + "很长的消息 " * 30),
        tree(style, **long_names),
        text.call_tree(with_lines(text=True), style),
        text.call_tree(with_lines(text=False), style),
        text.banner(samples.HEADER, style, output="out/trace.jsonl"),
        text.heading(samples.HEADER, style),
        text.summary(samples.footer([]), style, engine_name="gdb", tally=Tally(), output="o.jsonl"),
    ):
        for line in lines:
            assert cells(line) <= width, line


def test_deep_recursion_stays_on_the_screen() -> None:
    recorder = samples.Recorder()
    depth = 3000
    events = [
        recorder.add("enter", "f", span=n, parent=n - 1 if n else None, call=0)
        for n in range(depth)
    ]
    events += [
        recorder.add("exit", "f", span=n, parent=n - 1 if n else None, call=0, values={"result": n})
        for n in reversed(range(depth))
    ]
    lines = list(text.call_tree(call_of(events), Style(width=80)))
    assert sum("f()" in line for line in lines) == depth + 1
    assert max(map(cells, lines)) <= 80


# What could steer the terminal


def _all_text() -> Iterator[str]:
    """Every place where text of the trace comes to the terminal, with hostile text in it."""
    event_values: list[tuple[str, str, dict[str, Any]]] = [
        ("enter", "virDomainGetBlockInfo", {"domain": HOSTILE, HOSTILE: HOSTILE}),
        ("enter", "qemuDomainBlocksStatsGather", {"disk": unavailable(HOSTILE)}),
        ("enter", "qemuDomainBlocksStatsGather", {"disk": {"text": HOSTILE, "length": 99}}),
        ("enter", "qemuDomainBlocksStatsGather", {"disk": {"bytes": HOSTILE}}),
        ("exit", "qemuDomainBlocksStatsGather", {"stats": {HOSTILE: {HOSTILE: HOSTILE}}}),
        ("exit", "virDomainGetBlockInfo", {"info": {HOSTILE: [HOSTILE]}, "result": HOSTILE}),
        ("point", "qmp.send", {"json": {"execute": HOSTILE, "arguments": {HOSTILE: HOSTILE}}}),
        ("point", "qmp.reply", {"text": HOSTILE, "json": {"id": "libvirt-12", HOSTILE: HOSTILE}}),
        (
            "point",
            "qmp.reply",
            {"json": {"id": "libvirt-12", "error": {"class": HOSTILE, "desc": HOSTILE}}},
        ),
    ]
    hostile_header: Any = {
        **samples.HEADER,
        "started": HOSTILE,
        "target": {
            "pid": 1,
            "exe": HOSTILE,
            "program": {"name": HOSTILE, "version": HOSTILE},
            "modules": [],
        },
        "host": {"machine": HOSTILE, "kernel": HOSTILE, "system": HOSTILE},
        "recipe": {"name": HOSTILE, "try": HOSTILE},
        "probes": [
            {
                "name": HOSTILE,
                "kind": "span",
                "module": HOSTILE,
                "offset": HOSTILE,
                "level": level,
                "why": HOSTILE,
            }
            for level in ("missing", HOSTILE)
        ],
    }
    hostile_footer = samples.footer([], reason=HOSTILE, hits={HOSTILE: 1, HOSTILE * 2: 0})
    for full in (False, True):
        style = Style(width=80, unicode=True, full=full)
        for kind, name, values in event_values:
            yield from text.call_tree(with_values(kind, name, values), style)
        yield from tree(style, error=HOSTILE)
        yield from text.banner(hostile_header, style, output=HOSTILE)
        yield from text.banner(hostile_header, style, output="o", command=HOSTILE)
        yield from text.heading(hostile_header, style)
        yield from text.summary(
            hostile_footer,
            style,
            engine_name="gdb",
            tally=Tally(),
            output=HOSTILE,
            next_step=HOSTILE,
        )
        recorder = samples.Recorder()
        events = samples.blockinfo(recorder)
        other = recorder.add("point", HOSTILE, parent=2, call=1, values={HOSTILE: HOSTILE})
        told = {"file": HOSTILE, "line": HOSTILE, "text": HOSTILE, "changed": {}}
        for changed in ({}, {HOSTILE: {"from": HOSTILE, "to": HOSTILE}}, HOSTILE):
            values = {**told, "changed": changed}
            line = recorder.add("line", events[0].name, parent=1, call=1, values=values)
            events.insert(-1, line)
        lost = recorder.add("lost", "x", span=1, call=1, values={"why": HOSTILE})
        yield from text.call_tree(call_of([*events[:-1], other, lost]), style)


def test_control_characters_never_reach_the_terminal() -> None:
    lines = list(_all_text())
    assert len(lines) > 100
    for line in lines:
        assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs")], repr(line)
    assert any(r"\u001b" in line for line in lines)


def test_json_stays_json_when_it_is_made_safe() -> None:
    document = json.dumps({"name": HOSTILE + "测试"}, ensure_ascii=False)
    for unicode in (False, True):
        made_safe = safe(document, Style(unicode=unicode))
        assert json.loads(made_safe) == {"name": HOSTILE + "测试"}
        assert unicode or made_safe.isascii()


def test_lone_surrogates_can_be_printed() -> None:
    safe("vm\ud800", PLAIN).encode()


def test_width_of_wide_and_combining_characters() -> None:
    assert cells("测试") == 4
    assert cells("e\u0301") == 1
    assert cells(shorten("测试虚拟机", 6, PLAIN)) <= 6
    assert shorten("abcdef", 6, PLAIN) == "abcdef"
    assert shorten("abcdefg", 6, PLAIN) == "abcde…"
    assert shorten("abcdefg", 6, Style()) == "abc..."


def test_ascii_only_where_the_encoding_carries_no_more() -> None:
    assert "".join(tree(Style(width=80), domain="测试")).isascii()


# Colour


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.TextIOWrapper]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    with io.TextIOWrapper(os.fdopen(slave, "wb"), encoding="utf-8") as stream:
        yield stream
    os.close(master)


def test_colour_on_a_terminal(terminal: io.TextIOWrapper) -> None:
    style = style_for(terminal)
    assert style.color
    assert style.unicode
    painted = tree(Style(width=100, unicode=True, color=True))
    coloured = [printing.line(line, controls=True, unicode=True) for line in painted]
    assert "\x1b[" in coloured[0]
    # The same text, and nothing but colour besides.
    assert [re.sub("\x1b\\[[0-9;]*m", "", line) for line in coloured] == tree()
    assert all(cells(line) <= 100 for line in painted)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_plain_where_the_environment_says_so(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not style_for(terminal).color


def test_empty_no_color_asks_for_nothing(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert style_for(terminal).color


def test_plain_where_there_is_no_terminal() -> None:
    assert not style_for(io.StringIO()).color
    assert not style_for(None).color


@pytest.mark.parametrize(
    ("encoding", "unicode"), [("utf-8", True), ("ascii", False), ("gbk", False)]
)
def test_unicode_only_where_every_character_can_be_written(encoding: str, unicode: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert style_for(stream).unicode is unicode


def test_width_of_a_terminal_and_of_a_pipe(
    terminal: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = struct.pack("HHHH", 50, 133, 0, 0)
    fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, size)
    assert style_for(terminal).width == 133
    monkeypatch.delenv("COLUMNS", raising=False)
    assert style_for(io.StringIO()).width == highlight.DEFAULT_WIDTH
    monkeypatch.setenv("COLUMNS", "120")
    assert style_for(io.StringIO()).width == 120


def test_plain_where_pygments_is_missing() -> None:
    """In a Python of its own that cannot find Pygments, as inside some GDBs."""
    code = (
        "import os, pty, sys\n"
        "sys.modules['pygments'] = None\n"
        "from virtrace.report.highlight import style_for\n"
        "master, slave = pty.openpty()\n"
        "print(style_for(os.fdopen(slave, 'w')).color)\n"
    )
    environment = {"PYTHONPATH": SOURCE, "TERM": "xterm", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# Banner and summary


def test_banner() -> None:
    assert list(text.banner(samples.HEADER, Style(width=80), output="out/t.jsonl")) == [
        "virtrace 0.1.0: recipe blockinfo on libvirt 9.0.0 (/usr/sbin/libvirtd, pid 1234)",
        "  libvirt.so.0 build-id ab03f1c2e4d5",
        "    virDomainGetBlockInfo symbol   +0x2f1a60",
        "    error                 symbol   +0x18f1a0",
        "  libvirt_driver_qemu.so has no build-id",
        "    qemuMonitorBlockStatsUpdateCapacityBlockdev dwarf    +0x11f0c0 (also inlined",
        "      into qemuMonitorFoo, not seen there)",
        "    qmp.send                                    usdt     +0x10c2b1",
        "    qmp.reply                                   usdt     +0x10c0d4",
        "    not found: static function, and there is no debug info for",
        "      libvirt_driver_qemu.so",
        "      qemuDomainGetBlockInfo, qemuDomainBlocksStatsGather",
        "    not found: this build of libvirt_driver_qemu.so does not export it",
        "      qemuMonitorBlockStatsUpdateCapacity",
        "  run now  virsh domblkinfo DOMAIN DISK",
        "           in another terminal",
        "  to end   Ctrl-C",
        "  trace    out/t.jsonl",
        "",
    ]


def test_banner_names_the_command_that_virtrace_runs() -> None:
    lines = list(text.banner(samples.HEADER, PLAIN, output="o", command="virsh list"))
    assert "  running  virsh list" in lines
    assert not any("run now" in line for line in lines)


def test_summary() -> None:
    tally = Tally(calls=3, failed=1, incomplete=1, outside=2)
    footer: Any = {**samples.footer([]), "events": 1234, "dropped": 5, "hits": {"a": 3, "b": 0}}
    shown = text.summary(
        footer, Style(width=80), engine_name="gdb", tally=tally, output="my trace.jsonl"
    )
    assert list(shown) == [
        "3 calls, 1 failed, 1 incomplete, 1,234 events, 5 dropped,",
        "  2 events outside of any call",
        "  ended    interrupted; detached from the process",
        "  stopped  12.3 ms in all, 1.2 ms at the longest, GDB's own share not counted",
        "  hits     a 3",
        "  no hits  b (not found, or never reached)",
        "  trace    my trace.jsonl",
        "  next     virtrace show 'my trace.jsonl'",
    ]


def test_summary_warns_of_what_is_left_in_the_process() -> None:
    footer = samples.footer([], detached=False, reason="error")
    shown = "\n".join(text.summary(footer, PLAIN, engine_name="gdb", tally=Tally(), output="t"))
    assert "NOT DETACHED" in shown
    gone = samples.footer([], detached=False, reason="target-exit")
    shown = "\n".join(text.summary(gone, PLAIN, engine_name="gdb", tally=Tally(), output="t"))
    assert "NOT DETACHED" not in shown


def test_summary_of_a_run_that_was_cut_short() -> None:
    lines = list(text.summary(None, PLAIN, engine_name="gdb", tally=Tally(calls=1), output="t"))
    assert lines[0] == "1 call, the run was cut short"
