"""The page for a browser, read as HTML: whole, closed to the outside, and escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages, samples
from tests.support.command import virtrace
from tests.support.paths import DATA, DOCS
from virtrace.analysis.spans import CallBuilder
from virtrace.report import html
from virtrace.report.highlight import Style, safe
from virtrace.trace.format import unavailable
from virtrace.trace.reader import HostSaid, TraceStream, read_trace

VOID = {"meta", "input", "br", "img", "link", "base", "hr"}
SHAPES = {"rect", "line", "path"}
# The page of a 200-call trace is to stay below.
BOUND = 5_000_000


class Page(HTMLParser):
    """What a page holds; an AssertionError where its elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID | SHAPES
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, attribute: str) -> list[str]:
        return [values[attribute] for _, values in self.elements if attribute in values]

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [values for _, values in self.elements if name in values.get("class", "").split()]


@pytest.fixture(scope="module")
def sample() -> Page:
    return Page(pages.page_of(pages.SAMPLE))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(pages.page_of(pages.hostile_trace(tmp_path_factory.mktemp("page") / "t.jsonl")))


@pytest.fixture(scope="module")
def lines() -> Page:
    return Page(pages.page_of(pages.WITH_LINES))


@pytest.fixture(params=["sample", "hostile", "lines"])
def page(request: pytest.FixtureRequest) -> Page:
    found: Page = request.getfixturevalue(request.param)
    return found


def test_nothing_comes_from_elsewhere_and_nothing_in_it_can_run(page: Page) -> None:
    tags = Counter(tag for tag, _ in page.elements)
    assert (tags["script"], tags["style"]) == (1, 1)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(tags)
    names = {name for _, values in page.elements for name in values}
    assert not [name for name in names if name.startswith("on") or name in ("src", "style")]
    assert all(target.startswith("#") for target in page.all("href"))
    assert "://" not in page.texts["style"][0] + page.texts["script"][0]


def test_the_policy_allows_its_own_style_and_script_only(page: Page) -> None:
    [policy] = [
        values["content"]
        for _, values in page.elements
        if values.get("http-equiv") == "Content-Security-Policy"
    ]

    def digest(tag: str) -> str:
        raw = hashlib.sha256(page.texts[tag][0].encode()).digest()
        return f"'sha256-{base64.b64encode(raw).decode()}'"

    assert [part.split() for part in policy.split("; ")] == [
        ["default-src", "'none'"],
        ["style-src", digest("style")],
        ["script-src", digest("script")],
        ["base-uri", "'none'"],
        ["form-action", "'none'"],
    ]


def test_every_link_leads_somewhere(page: Page) -> None:
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.all("href")} <= set(ids)
    assert {*page.all("data-text"), *page.all("data-story")} <= set(ids)


def test_hostile_text_is_text(hostile: Page) -> None:
    shown = safe(pages.HOSTILE, Style(unicode=True))
    whole = "".join(hostile.texts["body"])
    assert whole.count(shown) > 20
    assert shown in hostile.texts["title"][0]
    for character in "\u2028\u202e\x00\x1b\ud800\ufffe":
        assert character not in hostile.text
    assert "{{ 7*7 }}" in whole
    hostile.text.encode("utf-8")


def test_answers_errors_and_sections(sample: Page, tmp_path: Path) -> None:
    ids = sample.all("id")
    assert {"calls", "time", "chain", "summary", "qmp", "trace", "origins"} <= set(ids)
    assert "errors" not in ids
    assert len(sample.of_class("call")) == 4
    first = of_calls(sample)[0]
    for told in ("virDomainGetBlockInfo(vm1, vda)", "1073741824", "196.000 KiB", "192.016 KiB"):
        assert told in first
    trace = samples.write(tmp_path / "t.jsonl", samples.records(error="no such disk"))
    failed = Page(pages.page_of(trace))
    assert "errors" in failed.all("id")
    assert "error 8: no such disk" in of_calls(failed)[0]
    # The zeros of a call that failed are no answer.
    assert "capacity" not in of_calls(failed)[0]


def of_calls(page: Page) -> list[str]:
    """The lines of the calls, which begin with their time."""
    return [text for text in page.texts["summary"] if re.match(r"\+[0-9.]+ s", text)]


def test_the_answers_come_first(tmp_path: Path) -> None:
    """Of every explainer, and with each call."""
    for file, explained in (
        (pages.SAMPLE, "vm1 vdb Allocation is 0 bytes because, according to QEMU"),
        (DATA / "version1" / "pool-refresh.jsonl", "pool The refresh found 3 volumes in 26.1 ms."),
        (DATA / "version1" / "monitor-stall.jsonl", "vm1 QEMU had not answered"),
        (DATA / "version1" / "errors.jsonl", "error 38 (system error) A file does not exist"),
    ):
        trace = read_trace(file)
        page = Page(html.page(trace, list(CallBuilder().everything(trace.events))))
        sections = [values["id"] for tag, values in page.elements if tag == "section"]
        assert sections[0] == "answers"
        answers = page.texts["section"][0]
        assert explained in " ".join(answers.split()), answers


def test_source_lines_are_a_list_with_what_changed(lines: Page) -> None:
    first, second = [text for text in lines.texts["summary"] if text.startswith("lines ")]
    assert first == "lines 10840, 10848, 10850, 10853 … 10899 of src/qemu/qemu_driver.c"
    assert second == (
        "lines 10902, 10905, 10909, 10923 … 10845, allocation 0 -> 67108864 (64.000 MiB), "
        "physical 0 -> 4096 (4.000 KiB), capacity 0 -> 67108864 (64.000 MiB)"
    )
    # Closed, and those marked that something changed at.
    assert ("details", {}) in lines.elements
    assert len(lines.of_class("changed")) == 3
    assert (
        "info->allocation = entry->wr_highest_offset;allocation 0 -> 67108864 (64.000 MiB)"
        in lines.texts["dd"]
    )
    place = "0 -> 4096 between lines 10923 and 10937 of src/qemu/qemu_driver.c"
    assert any(text.endswith(f"; seen: {place}") for text in lines.texts["p"])


def test_an_answer_that_contradicts_qemu_is_red(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in pages.SAMPLE.read_text().splitlines()]
    exits = [line for line in lines if line["type"] == "exit" and "info" in line["values"]]
    for line in exits[:2]:
        line["values"]["info"]["capacity"] += 1
    page = Page(pages.page_of(samples.write(tmp_path / "t.jsonl", lines)))
    # In the answers, in the list of calls, and in the summary of its disk.
    assert ["red" in values["class"] for values in page.of_class("meaning")].count(True) == 3


def test_the_header_with_every_probe(sample: Page) -> None:
    header = read_trace(pages.SAMPLE).header
    shown = sample.texts["section"][-1]
    for probe in header["probes"]:
        assert probe["name"] in shown
        assert probe["level"] in shown
        assert (probe["why"] or "") in shown
    for module in header["target"]["modules"]:
        assert (module["build_id"] or "") in shown
    assert (header["tool"]["engine"]["version"] or "") in shown


def test_each_qmp_text_is_stored_once_and_exactly(tmp_path: Path) -> None:
    trace = read_trace(pages.many_calls_trace(tmp_path / "t.jsonl", 40))
    page = Page(pages.page(trace))
    stored = page.texts["pre"]
    assert len(stored) == len(set(stored))
    raw = {
        event.values["json"]["id"]: event.values["text"].strip()
        for event in trace.events
        if event.name == "qmp.reply"
    }
    answers = [values for values in page.of_class("ref") if values["data-id"] in raw]
    whole = {stored[int(values["data-text"][1:])] for values in answers}
    # Each as it was sent, but for the id of another one.
    anonymous = {re.sub(r'"libvirt-\d+"', "ID", text) for text in raw.values()}
    assert {re.sub(r'"libvirt-\d+"', "ID", text) for text in whole} >= anonymous
    assert len(stored) < len(raw)


def test_the_page_of_200_calls_of_a_busy_guest_is_small(tmp_path: Path) -> None:
    trace = read_trace(pages.many_calls_trace(tmp_path / "t.jsonl", 200))
    page = pages.page(trace)
    assert page.count('<article class="call"') == 200
    replies = {
        json.dumps(event.values["json"].get("return"))
        for event in trace.events
        if event.name == "qmp.reply"
    }
    assert len(replies) > 100
    assert len(page.encode()) < BOUND


def test_a_trace_deeper_than_pythons_stack(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    deep = 3000
    for span in range(deep):
        recorder.add("enter", "f", span=span, parent=span - 1 if span else None, call=0)
    for span in reversed(range(deep)):
        recorder.add("exit", "f", span=span, parent=span - 1 if span else None, call=0)
    lines = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    page = Page(pages.page_of(samples.write(tmp_path / "t.jsonl", lines)))
    assert {f"span-{span}" for span in range(deep)} <= set(page.all("id"))


def test_values_that_are_missing_or_odd(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    for event in samples.blockinfo(recorder):
        values = event.values
        if event.name == "qmp.reply":
            values.update(text=unavailable("page not mapped"))
            del values["json"]
        elif event.name == "qmp.send":
            values.update(text={"text": '{"execute": "query-bl', "length": 90})
            del values["json"]
        if "info" in values:
            values["info"] = {"capacity": 2**64 - 1, "allocation": unavailable("optimized out")}
        if "disk" in values:
            values["disk"] = {"bytes": "dv8=", "length": 300}
    lines = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    page = Page(pages.page_of(samples.write(tmp_path / "t.jsonl", lines)))
    body = "".join(page.texts["body"])
    for told in (
        "18446744073709551615",
        "unavailable: optimized out",
        r"b'v\xff', of 300 bytes",
        "unavailable: page not mapped",
        '{"execute": "query-bl',
        "no footer: the run was cut short",
    ):
        assert told in body


def test_a_trace_without_calls(tmp_path: Path) -> None:
    trace = samples.write(tmp_path / "t.jsonl", [samples.HEADER, samples.footer([])])
    page = Page(pages.page_of(trace))
    assert "No traced call is in this trace." in page.texts["section"][0]
    assert not {"chain", "time", "summary"} & set(page.all("id"))


def show(*words: object) -> subprocess.CompletedProcess[str]:
    return virtrace("show", *words)


def test_the_file_is_new_and_only_its_owners(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = show(pages.SAMPLE, "--html", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text(encoding="utf-8") == pages.page_of(pages.SAMPLE)
    before = out.read_bytes()
    done = show(pages.SAMPLE, "--html", out)
    assert done.returncode == 2
    assert "already exists" in done.stderr
    assert out.read_bytes() == before
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "elsewhere.html")
    assert show(pages.SAMPLE, "--html", link).returncode == 2
    assert not (tmp_path / "elsewhere.html").exists()


def test_a_cut_trace_makes_a_page_that_says_so(tmp_path: Path) -> None:
    cut = tmp_path / "t.jsonl"
    cut.write_bytes(pages.SAMPLE.read_bytes()[:-5000])
    out = tmp_path / "page.html"
    done = show(cut, "--html", out)
    assert done.returncode == 4
    problems = Page(out.read_text(encoding="utf-8")).of_class("problem")
    assert len(problems) == len(read_trace(cut).problems) > 0


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    for options in (("--json", "--html", out), ("--full", "--summary"), ("--json", "--full")):
        assert show(pages.SAMPLE, *options).returncode == 2
    assert not out.exists()


def keys(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from document
    inner = document.values() if isinstance(document, dict) else document
    for each in inner:
        if isinstance(each, (dict, list)):
            yield from keys(each)


def test_every_key_of_the_summary_is_documented() -> None:
    page = (DOCS / "trace-format.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+)`", page.partition("`virtrace show --summary --json`")[2]))
    assert set(keys(json.loads(show(pages.SAMPLE, "--summary", "--json").stdout))) <= names


def test_the_summary_as_json() -> None:
    done = show(pages.SAMPLE, "--summary", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["format"], document["version"]) == ("virtrace-summary", 1)
    assert document["calls"]["count"] == 4
    api = document["functions"][0]
    assert api["name"] == "virDomainGetBlockInfo"
    calls = list(CallBuilder().calls(read_trace(pages.SAMPLE).events))
    slowest = max(calls, key=lambda call: call.root.duration_ns or 0)
    assert (api["max_ns"], api["max_call"]) == (slowest.root.duration_ns, slowest.id)
    assert sum(bucket["count"] for bucket in api["histogram"]) == 4
    assert [disk["disk"] for disk in document["disks"]] == ["vda", "vdb", "vdc", "vdd"]
    vdd = document["disks"][3]
    assert vdd["allocation"] == {
        "lowest": 2147483648,
        "highest": 2147483648,
        "moves": [{"call": calls[3].id, "t_ns": calls[3].root.t_exit_ns, "value": 2147483648}],
        "told": 1,
        "unavailable": 0,
    }


def test_the_file_is_not_read_again_for_each_call(tmp_path: Path) -> None:
    read = []

    class Counting(TraceStream):
        def said_by_host(self) -> HostSaid:
            read.append(self.path)
            return super().said_by_host()

    with Counting(pages.many_calls_trace(tmp_path / "trace.jsonl", 20)) as trace:
        html.page(trace, [*CallBuilder().everything(trace)])
    assert 0 < len(read) <= 2
