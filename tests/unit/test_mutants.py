"""Whatever stands in a file that virtrace reads: it is read, or refused with an error, soon.

CONTRIBUTING.md has the command for many more mutants than are tried here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.support import compiled, mutants, samples
from tests.support.mutants import READERS, SECONDS
from tests.support.paths import REPOSITORY
from virtrace.analysis.host import HostDisk
from virtrace.analysis.spans import MOST_NESTED, CallBuilder
from virtrace.cli.main import main
from virtrace.engines.uprobes.layout import HIT
from virtrace.errors import ANSWER_IS_NO, BAD_INPUT, DONE, TargetError, TraceError
from virtrace.guard.journal import JournalEntries, read_journal
from virtrace.image.process import inspect
from virtrace.plan import file as document
from virtrace.report.highlight import Style
from virtrace.report.lines import fold
from virtrace.trace.format import MAX_DEPTH
from virtrace.trace.reader import read_trace
from virtrace.trace.target import is_of_build

COUNT = 100
Note = Callable[[bytes], Optional[JournalEntries]]


def test_a_share_of_the_mutants(tmp_path: Path) -> None:
    folder = tmp_path / "mutants"
    command = [sys.executable, "-m", mutants.__name__, str(COUNT), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["failures"] == [], done.stderr
    assert report["count"] == COUNT
    assert len(report["by_kind"]) == len(mutants.KINDS)
    # Many come as far as to what is made of them.
    assert report["read"] > COUNT / 5
    assert [path.name for path in tmp_path.iterdir()] == ["mutants"]
    assert not Path("/tmp/virtrace-escaped").exists()


def test_the_command_says_what_it_takes() -> None:
    command = [sys.executable, "-m", mutants.__name__, "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {mutants.__name__} ")
    assert all(kind.__name__.lower() in done.stdout for kind in mutants.KINDS)


def printed(*words: str) -> tuple[int, str]:
    """The exit status, and both outputs."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        return main(words), out.getvalue()


# --- Traces

FORMS = (("show",), ("show", "--json"), ("show", "--full"), ("explain",),
         *(("export", "--to", form) for form in ("csv", "chrome", "otlp", "perfetto", "svg"))
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_functions_nested_without_end(tmp_path: Path, form: tuple[str, ...]) -> None:
    recorder = samples.Recorder()
    deep = 5_000
    for span in range(deep):
        recorder.add("enter", "f", span=span, parent=span - 1 if span else None, call=0)
    for span in reversed(range(deep)):
        recorder.add("exit", "f", span=span, call=0, values={"result": "0x0"})
    records = [event.to_record() for event in recorder.events]
    trace = samples.write(
        tmp_path / "t.jsonl", [samples.HEADER, *records, samples.footer(recorder.events)]
    )
    output = ["-o", str(tmp_path / "out")] if form[0] == "export" else []
    began = time.process_time()
    status, said = printed(*form, *output, str(trace))
    assert time.process_time() - began < SECONDS
    assert status == (ANSWER_IS_NO if form == ("explain",) else DONE)
    if form[0] == "show":
        assert "functions inside one another: the rest is side by side" in " ".join(said.split())
        assert len(said) < 100 * trace.stat().st_size


def with_value(folder: Path, value: Any) -> Path:
    records = samples.records()
    records[1]["values"]["odd"] = value
    return samples.write(folder / "t.jsonl", records)


@pytest.mark.parametrize("form", [*FORMS, ("diff",), ("show", "--html")], ids=" ".join)
def test_values_as_deep_as_a_line_may_be(tmp_path: Path, form: tuple[str, ...]) -> None:
    """At the bottom of functions that are nested as deep as they may be."""
    for opened, closed in (("[", "]"), ('{"a":', "}"), ('[{"unavailable":', "}]")):
        levels = (MAX_DEPTH - 2) // len(closed)
        trace = deepest(tmp_path, opened * levels + "1" + closed * levels)
        output = tmp_path / f"out-{opened[:2]}"
        if form == ("show", "--html"):
            more = [str(output)]
        elif form == ("diff",):
            more = [str(samples.write(tmp_path / "other.jsonl", samples.records()))]
        else:
            more = ["-o", str(output)] if form[0] == "export" else []
        assert printed(*form, *more, str(trace))[0] in (0, 1, 2 if form == ("explain",) else 0)
        deepest(tmp_path, opened * (levels + 2) + "1" + closed * (levels + 2))
        with pytest.raises(TraceError, match=f":51: .* more than {MAX_DEPTH} levels"):
            read_trace(trace)


def test_what_is_deepest_can_be_kept_apart_to_be_compared(tmp_path: Path) -> None:
    levels = (MAX_DEPTH - 2) // 2
    trace = deepest(tmp_path, '[{"a":' * levels + "1" + "}]" * levels)
    [call] = CallBuilder().calls(read_trace(trace))
    assert call.complete
    assert pickle.loads(pickle.dumps(call)) == call


def deepest(folder: Path, value: str) -> Path:
    recorder = samples.Recorder()
    for span in range(MOST_NESTED):
        last = span == MOST_NESTED - 1
        values = {"disk": "ODD"} if last else {}
        recorder.add(
            "enter", "f", span=span, parent=span - 1 if span else None, call=0, values=values
        )
    for span in reversed(range(MOST_NESTED)):
        recorder.add("exit", "f", span=span, call=0, values={"result": 0})
    records = [event.to_record() for event in recorder.events]
    file = samples.write(
        folder / "t.jsonl", [samples.HEADER, *records, samples.footer(recorder.events)]
    )
    file.write_text(file.read_text().replace('"ODD"', value))
    return file


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("selection", [], "'selection' is not an object"),
        ("selection", {"where": {}, "calls": None}, "'selection.seconds' is missing"),
        ("selection", {"where": {"a": 7}, "calls": None, "seconds": None}, "'selection.where.a'"),
        ("command", ["rm"], "'command' is not"),
        ("redacted", 7, "'redacted' is not"),
        ("probes", [{**samples.HEADER["probes"][0], "lacks": 7}], "'probes[0].lacks' is not"),
    ],
)
def test_an_odd_key_of_the_header_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    trace = samples.write(tmp_path / "t.jsonl", [{**samples.HEADER, key: value}])
    for words in (("replay", str(trace), "-p", "1"), ("show", str(trace))):
        status, told = printed(*words)
        assert (status, told.startswith(f"virtrace: {trace}:1: ")) == (BAD_INPUT, True)
        assert said in told


@pytest.mark.parametrize("unit", [[], "a", {"": 0}], ids=str)
def test_a_line_that_would_take_much_memory(tmp_path: Path, unit: Any) -> None:
    trace = with_value(tmp_path, [unit] * 600_000)
    with pytest.raises(TraceError, match="a line of more than 500,000 values"):
        read_trace(trace)


def test_a_line_of_megabytes_is_folded_soon() -> None:
    for text in ("x" * 1_000_000, "\u202e" * 100_000, "\u0301" * 300_000, "\u4e2d" * 300_000):
        began = time.process_time()
        lines = list(fold([(text, "")], Style(unicode=True)))
        assert time.process_time() - began < SECONDS
        assert "".join(lines).count("\u0301" if text[0] == "\u0301" else text[0]) in (len(text), 0)


def test_a_long_name_makes_no_wide_column(tmp_path: Path) -> None:
    fields = {f"f{number}": number for number in range(1000)}
    trace = with_value(tmp_path, {**fields, "x" * 100_000: 1})
    status, said = printed("show", str(trace))
    assert status == DONE
    assert len(said) < 400_000


def test_xml_with_entities_is_not_read() -> None:
    def record(xml: str) -> Any:
        return {"xml": xml}

    xml = '<disk><alias name="virtio-disk0"/></disk>'
    assert HostDisk(record(xml)).alias == "virtio-disk0"
    assert HostDisk(record(f'<!DOCTYPE disk [<!ENTITY a "b">]>{xml}')).alias is None


def test_only_the_very_build_is_the_process_of_a_trace() -> None:
    def header(*builds: str | None) -> Any:
        modules = [{"path": f"/lib/{number}", "build_id": build, "base": "0x0"}
                   for number, build in enumerate(builds)]  # fmt: skip
        return {"target": {"modules": modules}}

    process: Callable[[str], str | None] = {"0": "aa", "1": "bb"}.get
    assert is_of_build(header("aa", "bb"), process)
    assert is_of_build(header("aa", None), process)
    assert not is_of_build(header("aa", "cc"), process)
    assert not is_of_build(header("aa", "bb", "cc"), process)
    # Nothing tells what it was recorded of.
    assert not is_of_build(header(), process)
    assert not is_of_build(header(None), process)


# --- What compiled recipes write


def imported(folder: Path, data: bytes) -> tuple[int, str]:
    file, trace = folder / "records", folder / "t.jsonl"
    file.write_bytes(data)
    trace.unlink(missing_ok=True)
    return printed("import", str(file), "-o", str(trace))


@pytest.mark.parametrize("file", compiled.FILES, ids=lambda file: file.stem)
def test_output_is_read(tmp_path: Path, file: Path) -> None:
    status, said = imported(tmp_path, compiled.joined(*compiled.apart(file)))
    assert status == DONE, said
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.problems == []
    assert len(trace.events) > 5


SAID, RECORDS = compiled.apart(READERS / "qmp.records")


@pytest.mark.parametrize("key", [*SAID])
def test_output_without_a_key(tmp_path: Path, key: str) -> None:
    first = {name: value for name, value in SAID.items() if name != key}
    status, said = imported(tmp_path, compiled.joined(first, RECORDS))
    assert status == BAD_INPUT
    assert "is not what a script of `virtrace recipe compile` writes" in said
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2), ("plan", 7), ("started_ns", -1), ("started_ns", 1 << 63),
        ("epoch", float("nan")), ("epoch", 1e300), ("pid", 0), ("pid", "1"),
        ("bases", []), ("bases", {"/lib": -1}), ("bases", {"/lib": 1 << 64}),
    ],
)  # fmt: skip
def test_output_that_begins_with_wild_values(tmp_path: Path, key: str, value: Any) -> None:
    status, said = imported(tmp_path, compiled.joined({**SAID, key: value}, RECORDS))
    assert (status, "is not what a script" in said) == (BAD_INPUT, True), said


def test_output_of_other_programs(tmp_path: Path) -> None:
    """Their records would be read as what they are not."""
    status, said = imported(tmp_path, compiled.joined({**SAID, "fingerprint": "0" * 64}, RECORDS))
    assert status == BAD_INPUT
    assert "recorded by programs that this version of virtrace does not make" in said
    assert not (tmp_path / "t.jsonl").exists()


def test_output_with_a_damaged_plan(tmp_path: Path) -> None:
    damaged = SAID["plan"].replace('"is":"StaticProbeSite"', '"is":"x"')
    assert damaged != SAID["plan"]
    status, said = imported(tmp_path, compiled.joined({**SAID, "plan": damaged}, RECORDS))
    assert (status, "virtrace: the plan in it cannot be used: " in said) == (BAD_INPUT, True), said


def test_what_came_before_a_damaged_record_is_kept(tmp_path: Path) -> None:
    hits = [number for number, record in enumerate(RECORDS) if record[0] == HIT]
    records = [*RECORDS[: hits[3]], b"\xff" * 100, *RECORDS[hits[3] :]]
    status, said = imported(tmp_path, compiled.joined(SAID, records))
    assert (status, "a record is damaged: it is of no known kind" in said) == (4, True), said
    assert len(read_trace(tmp_path / "t.jsonl").events) == 3


def test_output_that_is_cut_is_told(tmp_path: Path) -> None:
    """As by a script that was killed."""
    assert imported(tmp_path, compiled.joined(SAID, RECORDS[:-1]))[0] == 4
    footer = read_trace(tmp_path / "t.jsonl").footer
    assert footer is not None
    assert footer["reason"] == "error"


def test_types_of_a_plan_are_bounded() -> None:
    array: dict[str, Any] = {"is": "Opaque", "name": "o", "size": 0}
    for _ in range(3):
        array = {"is": "Array", "count": 60_000, "element": array}
    data = json.dumps(plan_with(array)).encode()
    with pytest.raises(TraceError, match="more than 200,000 parts"):
        document.read(data)


def plan_with(ctype: Any) -> Any:
    plan = json.loads(SAID["plan"])
    pointer = {"is": "Pointer", "target": ctype, "string": False, "size": 8}
    capture = {"is": "Capture", "path": "odd", "types": {"odd": pointer}}
    plan["probes"][0]["sites"][0]["capture"] = {"odd": capture}
    return plan


# --- Packs and journals


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("build_id",), "a\ud800"),
        (("functions", "qemuDomainGetBlockInfo", "returns"), "x" * 100_000),
        (("functions", "qemuDomainGetBlockInfo", "bodies", 0, "entry"), "-0x1"),
        (("functions", "qemuDomainGetBlockInfo", "bodies", 0, "lines", "declared"), 1e308),
        (("structs", "virDomain", "size"), 1.5),
        (("structs", "virDomain", "fields", "name", "offset"), -8),
    ],
)
def test_a_pack_with_wild_values_is_refused(
    tmp_path: Path, keys: tuple[Any, ...], value: Any
) -> None:
    pack = json.loads((READERS / "driver.pack.json").read_bytes())
    inner = pack
    for key in keys[:-1]:
        inner = inner[key]
    assert keys[-1] in inner
    inner[keys[-1]] = value
    file = tmp_path / "p.pack.json"
    file.write_text(json.dumps(pack))
    status, said = printed("pack", "show", str(file))
    assert (status, "cannot be used: " in said) == (TargetError.exit_status, True)


MARKS, PLACE = [[4096, "aa"]], [4097, "41", "cc"]


@pytest.mark.parametrize(
    "lines",
    [
        [], [7], [{}], [None], [[]], [[[4096, ""]]], [[[4096, 7]]], [[[-1, "aa"]]],
        [[[10**30, "aa"]]], [MARKS, []], [MARKS, [4097, "41"]], [MARKS, [4097, "41", 7]],
        [MARKS, ["4097", "41", "cc"]], [MARKS, [4097, "", ""]], [MARKS, [4097, "41", "cccc"]],
        [MARKS, [1 << 64, "41", "cc"]], [MARKS, [True, "41", "cc"]],
    ],
)  # fmt: skip
def test_a_broken_journal_is_none(note: Note, lines: list[Any]) -> None:
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert note(data) is None
    assert note(data + b"[" * 100_000 + b"\n") is None


def test_a_journal_that_is_whole(note: Note) -> None:
    noted = note((READERS / "guard.journal").read_bytes())
    assert noted is not None
    assert (len(noted.fingerprints), len(noted.patches)) == (3, 14)


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Note:
    """What is found of this very process, where a journal of it has these bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = inspect(os.getpid())
    folder = tmp_path / "virtrace" / "guard"
    folder.mkdir(parents=True, mode=0o700)

    def found(data: bytes) -> JournalEntries | None:
        (folder / f"{process.pid}-{process.start_time}").write_bytes(data)
        return read_journal(process)

    return found
