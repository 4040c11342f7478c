"""Every explainer: its causes have conditions and words, and the documents name it."""

from __future__ import annotations

import gzip
import json
import re
from errno import EIO, ENOENT
from pathlib import Path
from string import Formatter
from typing import Any, cast

import pytest

from tests.support import samples
from tests.support.command import virtrace
from tests.support.documented import answers as real_answers
from tests.support.documented import documented
from tests.support.paths import DATA, DOCS
from virtrace.analysis.explain.model import Explainer
from virtrace.analysis.explain.registry import TRACES, all_explainers
from virtrace.analysis.explain.trace import Explained, explain_trace
from virtrace.report.explanation import answer
from virtrace.trace import roles
from virtrace.trace.format import SwitchedOff
from virtrace.trace.reader import Trace

OLD = DATA / "version1"
EACH = pytest.mark.parametrize("explainer", all_explainers(), ids=lambda each: each.name)


@EACH
def test_every_cause_has_a_condition_and_words(explainer: Explainer[Any]) -> None:
    causes = explainer.causes.causes
    names = [cause.name for cause in causes]
    assert names[-1] == "unknown"
    assert sorted(explainer.causes.conditions) == sorted(names)
    for cause in causes:
        assert {*cause.either, *cause.excludes} <= set(names)
        # One sentence.
        assert not re.search(r"[.] [A-Z]", cause.says), cause.name
        assert cause.says.endswith(".")
        assert "{" not in "".join(shows for _, shows in cause.do)


@EACH
def test_every_placeholder_is_explained(explainer: Explainer[Any]) -> None:
    head = explainer.causes.file.read_text(encoding="utf-8").partition("\n\n")[0]
    for cause in explainer.causes.causes:
        for text in (cause.says, cause.means, *(command for command, _ in cause.do)):
            names = {name for _, name, _, _ in Formatter().parse(text) if name}
            assert all(f"{{{name}}}" in head for name in names), (cause.name, names)


@EACH
def test_it_is_documented(explainer: Explainer[Any]) -> None:
    page = (DOCS / "explain.md").read_text(encoding="utf-8")
    assert f"| `{explainer.name}` |" in page
    for cause in explainer.causes.causes:
        assert f"`{cause.name}`" in page, cause.name


def test_roles_that_explainers_read_exist() -> None:
    known = {*roles.OF_SPANS, *roles.OF_POINTS}
    for traces in TRACES.values():
        assert all(name in known for name in traces if "." in name)


@pytest.mark.parametrize("trace", sorted(OLD.glob("*.jsonl")), ids=lambda each: each.stem)
def test_what_a_trace_needs_is_imported_whatever_wrote_its_header(
    trace: Path, tmp_path: Path
) -> None:
    """The command imports it before it reads the trace, and while it can open files."""
    told = virtrace("explain", "--json", trace)
    header, rest = trace.read_text(encoding="utf-8").split("\n", 1)
    again = tmp_path / "again.jsonl"
    # Every name of a probe with an escape.
    escaped = re.sub(r'(?<="name":")[a-z]', lambda one: f"\\u{ord(one[0]):04x}", header)
    assert escaped != header
    for other in (escaped, json.dumps(json.loads(header))):
        again.write_text(f"{other}\n{rest}", encoding="utf-8")
        assert virtrace("explain", "--json", again).stdout == told.stdout


def test_no_name_can_become_an_option() -> None:
    """A name in a command follows `--`, or is the value of an option."""
    commands = [
        command
        for explainer in all_explainers()
        for cause in explainer.causes.causes
        for command, _ in cause.do
        if "{" in command
    ]
    assert len(commands) > 20
    for command in commands:
        words = command.split()
        # Where each of the programs begins: `virtrace record` starts another one.
        programs = [0, *(at for at, word in enumerate(words) if word == "virsh")]
        for at, word in enumerate(words):
            if word.startswith("{") and word != "{format}":
                begin = max(start for start in programs if start < at)
                takes_it = words[at - 1] in ("-d", "-p")
                assert "--" in words[begin:at] or takes_it, command


def explained(recorder: samples.Recorder, **roles_: str) -> Explained[Any]:
    """What a trace with these events is answered with. roles_: of its probes, by name."""
    kinds = {each.name: "point" if each.type == "point" else "span" for each in recorder.events}
    like = samples.HEADER["probes"][0]
    probes = [
        {**like, "name": name, "kind": kind, "role": roles_.get(name.replace(".", "_"))}
        for name, kind in kinds.items()
    ]
    header: Any = {**samples.HEADER, "probes": probes}
    return explain_trace(Trace(header, recorder.events), "t")


def answers(found: Explained[Any]) -> list[tuple[str, str]]:
    """The first cause of each case, and the sentence."""
    return [(each.findings[0].cause.name, answer(each)) for each in found]


def cases_of(file: Path) -> list[dict[str, Any]]:
    """By the command, which reads in a process without rights."""
    done = virtrace("explain", "--json", file)
    assert (done.returncode, done.stderr) == (0, "")
    text = virtrace("explain", file)
    assert (text.returncode, text.stderr) == (0, "")
    cases: list[dict[str, Any]] = json.loads(done.stdout)["cases"]
    for case in cases:
        assert case["answer"] in " ".join(text.stdout.split())
    return cases


def test_why_guests_of_a_recorded_trace_do_not_start() -> None:
    no_file, by_qemu, started = cases_of(OLD / "start-failure.jsonl")
    assert [case["subject"] for case in (no_file, by_qemu, started)] == [["vm2"], ["vm3"], ["vm4"]]
    assert no_file["answer"].startswith("It does not start because /var/tmp/")
    assert "gone.raw does not exist: " in no_file["answer"]
    assert "-no-such-option: invalid option" in by_qemu["answer"]
    assert started["answer"] == "It started, in 673 ms."
    steps = {fact["name"]: fact for fact in by_qemu["facts"]}
    assert steps["runs QEMU and connects to it"]["meaning"] == "qemuProcessLaunch failed"


def start(recorder: samples.Recorder, *messages: str, cleanup: str = "", apart: str = "") -> None:
    """A start that fails with these errors, one in the cleanup, and one of another thread."""
    call = recorder.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    recorder.add("enter", "virDomainCreate", values={"domain": "vm1"}, **place)

    def error(message: str, **where: Any) -> None:
        recorder.add("point", "error", values={"code": 1, "message": message}, **where)

    for message in messages:
        error(message, call=call, parent=call)
    if apart:
        error(apart, tid=99)
    if cleanup:
        inner = recorder.new_span()
        recorder.add("enter", "qemuProcessStop", span=inner, parent=call, call=call)
        error(cleanup, call=call, parent=inner)
        recorder.add("exit", "qemuProcessStop", span=inner, parent=call, call=call)
    recorder.add("exit", "virDomainCreate", values={"result": -1}, **place)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"messages": ["Cannot access '/a b': Permission denied"]}, "no-permission"),
        ({"messages": ["process exited while connecting to monitor: x: Could not open '/a': "
                       "Permission denied"]}, "no-permission"),
        ({"messages": ["process exited while connecting to monitor: x"]}, "qemu-ended"),
        ({"messages": ['Failed to get "write" lock']}, "locked"),
        ({"messages": ["cannot set up guest memory 'pc.ram': Cannot allocate memory"]},
         "no-memory"),
        ({"messages": ["Could not access KVM kernel module: Permission denied"]}, "no-kvm"),
        ({"messages": ["network 'default' is not active"]}, "no-network"),
        ({"messages": ["Timed out during operation: cannot acquire state change lock (held by "
                       "monitor=remoteDispatchDomainCreate)"]}, "timeout"),
        ({"messages": ["something new"]}, "error"),
        ({"messages": []}, "unknown"),
        # What libvirt got over before, and what its cleanup met, is not why.
        ({"messages": ["No such file or directory", "something new"]}, "error"),
        ({"messages": ["something new"], "cleanup": "Permission denied"}, "error"),
        ({"messages": ["something new"], "apart": "Permission denied"}, "error"),
        # That QEMU has ended may be raised on another thread alone, after what libvirt got over.
        ({"messages": ["No such file or directory"], "apart": "qemu unexpectedly closed the "
          "monitor: x: cannot set up guest memory 'much': Cannot allocate memory"}, "no-memory"),
        ({"messages": [], "apart": "Failed to lock: Permission denied"}, "no-permission"),
    ],
)  # fmt: skip
def test_why_a_guest_does_not_start(errors: dict[str, Any], expected: str) -> None:
    recorder = samples.Recorder()
    start(recorder, *errors.pop("messages"), **errors)
    [(cause, sentence)] = answers(explained(recorder))
    assert cause == expected
    assert "None" not in sentence
    assert "FILE" not in sentence


def test_errors_of_a_recorded_trace() -> None:
    disk, other, no_file = cases_of(OLD / "errors.jsonl")
    assert [case["causes"][0]["name"] for case in (disk, other, no_file)] == [
        *("unknown-disk", "unknown-disk", "missing-file")
    ]
    facts = {fact["name"]: (fact["value"], fact["meaning"]) for fact in no_file["facts"]}
    assert facts["errors"] == (1, "")
    assert facts["returned"] == (1, "virDomainCreate")
    assert facts["raised in"][0] == "virStorageSourceReportBrokenChain"


def test_errors_are_summed_by_kind() -> None:
    recorder = samples.Recorder()

    def error(message: str, tid: int, *, api: str | None = None) -> None:
        recorder.add("point", "error", tid=tid, values={"code": 1, "message": message})
        if api is not None:
            recorder.add("point", "api.failed", tid=tid, values={"api": api})

    for number in range(7):
        error(f"no reply of '/var/disk{number}' in {number} s", 7)
    # The one right before is what the API failed with; another thread's is not.
    error("broken", 8)
    error("other", 9, api="virDomainSuspend")
    error("broken", 8, api="virDomainResume")
    found = explained(recorder, error=roles.ERROR, api_failed=roles.API_FAILED)
    sums = [(each.case.message, each.case.count, each.case.returned) for each in found]
    assert sums == [
        ("broken", 2, 1),
        ("other", 1, 1),
        ("no reply of '/var/disk0' in 0 s", 7, 0),
    ]
    assert [sentence for _, sentence in answers(found)] == [
        "broken: once, an API failed with it, and once, no API failed with it.",
        "other: once, an API failed with it.",
        "no reply of '/var/disk0' in 0 s (for example): 7 times, no API failed with it.",
    ]


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("End of file while reading data: Input/output error", "client-gone"),
        ("internal error: End of file from qemu monitor", "monitor-broken"),
        ("Unable to read from monitor: Connection reset by peer", "monitor-broken"),
    ],
)
def test_whose_connection_ended(message: str, cause: str) -> None:
    recorder = samples.Recorder()
    recorder.add("point", "error", values={"code": 38, "message": message})
    recorder.add("point", "api.failed", values={"api": "virDomainSuspend"})
    [(name, _)] = answers(explained(recorder, error=roles.ERROR, api_failed=roles.API_FAILED))
    assert name == cause


@pytest.mark.parametrize(
    ("function", "number", "expected"),
    [
        ("virNetSocketReadWire", EIO, ("client-gone", "system error: Input/output error")),
        ("virStorageFile", ENOENT, ("missing-file", "system error: No such file or directory")),
    ],
)
def test_an_error_of_the_system_without_a_message(
    function: str, number: int, expected: tuple[str, str]
) -> None:
    """Of libvirt 7.0.0: where it was raised is seen, and its number."""
    recorder = samples.Recorder()
    place = {"errno": number, "function": function}
    recorder.add("point", "error.system", values=place)
    unread = {"code": 38, "message": {"unavailable": "a template"}}
    recorder.add("point", "error", values=unread)
    recorder.add("point", "api.failed", values={"api": "virDomainSuspend"})
    kinds = {"error": roles.ERROR, "error_system": roles.ERROR_PLACE}
    [(name, sentence)] = answers(explained(recorder, api_failed=roles.API_FAILED, **kinds))
    assert name == expected[0]
    assert sentence.endswith(f"{expected[1]}.")


@pytest.mark.parametrize("is_off", [False, True])
def test_errors_are_summed_by_domain_and_client(is_off: bool) -> None:
    recorder = samples.Recorder()

    def call(process: int, *domains: str, tid: int = 7) -> None:
        identity = {"process-id": process, "user-name": "root"}
        recorder.add("point", "rpc.client", tid=tid, values={"identity": identity})
        for name in domains:
            recorder.add("point", "rpc.domain", tid=tid, values={"name": name})
        recorder.add("point", "error", tid=tid, values={"code": 1, "message": "broken"})

    call(5, "vm1")
    call(5, "vm1", "vm1", tid=8)
    call(6, "vm1", "vm2")
    call(6)
    # On a thread that serves no client.
    recorder.add("point", "error", tid=9, values={"code": 1, "message": "broken"})
    names = {"error": roles.ERROR, "api.failed": roles.API_FAILED}
    names |= {"rpc.client": roles.RPC_CLIENT, "rpc.domain": roles.RPC_DOMAIN}
    like = samples.HEADER["probes"][0]
    probes = [{**like, "name": name, "kind": "point", "role": role} for name, role in names.items()]
    header: Any = {**samples.HEADER, "probes": probes}
    trace = Trace(header, recorder.events)
    if is_off:
        off = {"type": "switched-off", "t_ns": 9, "name": "rpc.client", "kind": "point", "why": "x"}
        trace.switched_off.append(cast("SwitchedOff", off))
    [found] = explain_trace(trace, "t")
    facts = {fact.name: fact.value for fact in found.case.facts}
    assert facts["errors"] == 5
    told = {name: facts.get(name) for name in ("domains", "clients")}
    clients = "process 5 of user root 2, process 6 of user root 2"
    assert told == dict.fromkeys(told) if is_off else {"domains": "vm1 2", "clients": clients}


def test_any_number_of_kinds_of_errors_is_summed_in_bounded_memory() -> None:
    recorder = samples.Recorder()
    for number in range(400):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        values = {"code": 1, "message": f"kind {name}"}
        recorder.add("point", "error", tid=number, values=values)
    recorder.add("point", "api.failed", values={"api": "virDomainSuspend"})
    found = explained(recorder, error=roles.ERROR, api_failed=roles.API_FAILED)
    assert len(found) == 301
    assert sum(each.case.count for each in found) == 400


def test_disks_and_counters_of_recorded_traces() -> None:
    found = cases_of(OLD / "domstats.jsonl.gz")
    assert found
    assert all(case["causes"][0]["name"] not in ("contradiction", "unknown") for case in found)
    counters = cases_of(OLD / "blockstats.jsonl.gz")
    assert {case["causes"][0]["name"] for case in counters} == {"counters"}


def changed(file: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A trace in which a text is another one, once."""
    text = gzip.decompress(file.read_bytes()).decode()
    at = text.rindex(old)
    copy = tmp_path / "t.jsonl"
    copy.write_text(text[:at] + new + text[at + len(old) :])
    return copy


def test_numbers_that_qemu_did_not_say_are_a_contradiction(tmp_path: Path) -> None:
    file = changed(
        OLD / "domstats.jsonl.gz", tmp_path, '"block.3.physical":', '"block.3.physical":1'
    )
    done = virtrace("explain", file)
    assert done.returncode == 1
    assert "physical should be " in done.stdout
    file = changed(OLD / "blockstats.jsonl.gz", tmp_path, '"rd_bytes":', '"rd_bytes":1')
    done = virtrace("explain", file)
    assert done.returncode == 1
    assert "libvirt returned another" in done.stdout


def test_who_waits_in_recorded_traces() -> None:
    [case] = cases_of(OLD / "job-lock.jsonl")
    assert case["answer"] == (
        "1 call (DomainBlockStatsFlags) still waits, up to 44.9 ms, for DomainGetBlockInfo, which "
        "waits for QEMU to answer query-blockstats."
    )
    [case] = cases_of(OLD / "monitor-stall.jsonl")
    assert (case["subject"], case["causes"][0]["name"]) == (["vm1"], "silent")
    [case] = cases_of(OLD / "qmp.jsonl")
    assert case["causes"][0]["name"] == "well"
    failed, well = cases_of(OLD / "rpc.jsonl")
    assert (failed["causes"][0]["name"], well["causes"][0]["name"]) == ("failed", "well")


def job(recorder: samples.Recorder, tid: int, result: int | None, **owner: Any) -> None:
    """A call that asks for a job. result: None if it does not return."""
    span = recorder.new_span()
    place: dict[str, Any] = {"span": span, "call": span, "tid": tid, "role": roles.LOCK}
    values = {"obj": "0x1", "job": 1, "owner": 0, **owner}
    recorder.add("enter", "virDomainObjBeginJobInternal", values=values, **place)
    if result is not None:
        recorder.add("exit", "virDomainObjBeginJobInternal", values={"result": result}, **place)


@pytest.mark.parametrize(
    ("result", "owner", "cause", "words"),
    [
        (0, {}, "no-wait", "1 job began without waiting"),
        (0, {"owner": 7, "owner_api": "remoteDispatchDomainSave"}, "holder-unknown",
         "1 call (virDomainObjBeginJobInternal) waited, up to "),
        (-1, {"owner": 7, "owner_api": "remoteDispatchDomainSave"}, "holder-unknown",
         "gave up waiting, up to "),
        (None, {"owner": 7, "owner_api": "x"}, "holder-unknown", "still waits, up to "),
        (-1, {"async_owner": 0, "async_owner_api": "remoteDispatchDomainMigratePrepare3Params"},
         "holder-without-thread", "for DomainMigratePrepare3Params, which has left the guest"),
        # An owner of its own thread is no other.
        (0, {"owner": 9, "owner_api": "x"}, "no-wait", ""),
    ],
)  # fmt: skip
def test_whom_a_call_waits_for(
    result: int | None, owner: dict[str, Any], cause: str, words: str
) -> None:
    recorder = samples.Recorder()
    job(recorder, 9, result, **owner)
    [(name, sentence)] = answers(explained(recorder, virDomainObjBeginJobInternal=roles.LOCK))
    assert (name, words in sentence) == (cause, True), sentence


def test_a_reply_that_came_late_or_was_an_error() -> None:
    recorder = samples.Recorder()
    for number, seconds, error in ((1, 0, False), (2, 3, False), (3, 0, True)):
        sent, received = samples.qmp("query-status", number, {})
        if error:
            document = {"id": received["json"]["id"], "error": {"class": "X", "desc": "no"}}
            received = {**received, "json": document, "text": json.dumps(document)}
        recorder.add("point", "qmp.send", values=sent)
        recorder.add("point", "qmp.reply", values=received)
        reply = recorder.events[-1]
        recorder.events[-1] = reply._replace(t_ns=reply.t_ns + seconds * 10**9)
    found = explained(recorder, qmp_send=roles.QMP_COMMAND, qmp_reply=roles.QMP_REPLY)
    late, refused = answers(found)
    assert late[0] == "late"
    assert late[1].startswith(
        "QEMU answered query-status late, once; libvirt itself waited up to 3"
    )
    assert refused == ("refused", "QEMU refused query-status, once: X: no.")


def test_calls_that_no_thread_took_up() -> None:
    recorder = samples.Recorder()
    for serial in range(3):
        values = {"client": "0x1", "program": 1, "procedure": 5, "serial": serial, "type": 0}
        recorder.add("point", "rpc.received", values=values)
    values = {"client": "0x2", "program": 1, "procedure": 5, "serial": 1}
    recorder.add("enter", "dispatch", span=1, call=1, tid=3, values=values)
    found = explained(recorder, dispatch=roles.RPC_CALL, rpc_received=roles.RPC_RECEIVED)
    assert [name for name, _ in answers(found)] == ["unserved", "running"]
    assert answers(found)[0][1].startswith("3 calls of clients waited up to ")


def test_block_jobs_and_a_refresh_of_recorded_traces() -> None:
    jobs = cases_of(OLD / "blockjob.jsonl.gz")
    assert [case["causes"][0]["name"] for case in jobs] == [
        *("pivoted", "pivoted", "done", "aborted", "nothing-to-end")
    ]
    [pool] = cases_of(OLD / "pool-refresh.jsonl")
    assert pool["answer"] == "The refresh found 3 volumes in 26.1 ms."
    assert pool["facts"][0]["meaning"] == "(2 file, 1 dir)"


def test_a_block_job_that_fails_or_has_not_ended() -> None:
    recorder = samples.Recorder()

    def event(name: str, **data: Any) -> None:
        values = {"mon": samples.MON, "json": {"event": name, "data": data}, "text": "{}"}
        recorder.add("point", "qmp.event", tid=99, values=values)

    def commit(number: int) -> None:
        span = recorder.new_span()
        place: dict[str, Any] = {"span": span, "call": span}
        values = {"domain": "vm1", "disk": "vda", "flags": 4}
        recorder.add("enter", "virDomainBlockCommit", values=values, **place)
        sent, received = samples.qmp("block-commit", number, {}, **{"job-id": "job"})
        recorder.add("point", "qmp.send", values=sent, parent=span, call=span)
        event("JOB_STATUS_CHANGE", id="job", status="created")
        recorder.add("point", "qmp.reply", values=received, parent=span, call=span)
        recorder.add("exit", "virDomainBlockCommit", values={"result": 0}, **place)
        event("JOB_STATUS_CHANGE", id="job", status="running")

    commit(1)
    event("BLOCK_JOB_COMPLETED", device="job", error="No space left on device")
    commit(2)
    event("JOB_STATUS_CHANGE", id="job", status="ready")
    commit(3)
    assert answers(explained(recorder)) == [
        ("failed", "The commit began, and failed: No space left on device."),
        (
            "ready",
            "The commit has copied everything and waits; it goes on copying what the guest writes "
            "until it is pivoted to or aborted.",
        ),
        ("running", "The commit still ran when the trace ended."),
    ]


def memory(recorder: samples.Recorder, **reported: int) -> None:
    """A call for a guest's memory, with what QEMU has of it."""
    span = recorder.new_span()
    place: dict[str, Any] = {"span": span, "call": span}
    recorder.add("enter", "virDomainMemoryStats", values={"domain": "vm1"}, **place)
    stats = {name.replace("_", "-"): value for name, value in reported.items()}
    for sent, received in (
        samples.qmp("query-balloon", 1, {"actual": 64 << 20}),
        samples.qmp("qom-get", 2, {"stats": stats, "last-update": stats.pop("last-update")}),
    ):
        recorder.add("point", "qmp.send", values=sent, parent=span, call=span)
        recorder.add("point", "qmp.reply", values=received, parent=span, call=span)
    recorder.add("exit", "virDomainMemoryStats", values={"result": 3}, **place)


def test_memory_that_a_guest_reports() -> None:
    recorder = samples.Recorder()
    total, free = 60 << 20, 10 << 20
    memory(recorder, last_update=5, stat_total_memory=total, stat_free_memory=free)
    memory(recorder, last_update=5, stat_total_memory=total, stat_free_memory=(1 << 64) - 1)
    memory(recorder, last_update=0, stat_total_memory=(1 << 64) - 1)
    assert answers(explained(recorder)) == [
        (
            "reported",
            "Of the 60.000 MiB that the guest sees, 10.000 MiB are unused, as its own driver "
            "reported.",
        ),
        ("given", "The 64.000 MiB are what the guest was given, not what it uses."),
        (
            "nothing-reported",
            "What the guest uses is not known, because it never reported it; the 64.000 MiB are "
            "what it was given.",
        ),
    ]


def test_counts_are_not_shown_as_bytes() -> None:
    """4096 operations, or KiB, are no 4.000 KiB."""
    for name in ("blockstats.jsonl.gz", "dominfo.jsonl"):
        for case in cases_of(OLD / name):
            for evidence in case["causes"][0]["evidence"]:
                assert evidence["value"] is None


class Guest:
    """A monitor's thread, on which QEMU speaks and libvirt says what became of the guest."""

    def __init__(self) -> None:
        self.recorder = samples.Recorder()

    def qemu(self, event: str, **data: Any) -> None:
        document = {"event": event, "data": data}
        values = {"mon": "0x1", "text": json.dumps(document), "json": document}
        self.recorder.add("point", "qmp.event", tid=5, values=values)

    def libvirt(self, type_: int, detail: int, tid: int = 5, **place: Any) -> None:
        values = {"domain": "vm1", "type": type_, "detail": detail}
        self.recorder.add("point", "guest.lifecycle", tid=tid, values=values, **place)

    def call(self, procedure: str, domain: str = "vm1") -> None:
        span = self.recorder.new_span()
        inside = {"call": span, "parent": span, "tid": 7}
        self.recorder.add("enter", "dispatch", span=span, call=span, tid=7)
        name = {"name": f"remoteDispatch{procedure}"}
        self.recorder.add("point", "rpc.procedure", values=name, **inside)
        self.recorder.add("point", "rpc.domain", values={"name": domain}, **inside)
        self.recorder.add("exit", "dispatch", span=span, call=span, tid=7)

    def answers(self) -> list[tuple[str, str]]:
        read = {"qmp_event": roles.QMP_EVENT, "guest_lifecycle": roles.GUEST_LIFECYCLE}
        return answers(explained(self.recorder, **read))


def test_why_a_guest_was_paused_by_an_error() -> None:
    guest = Guest()
    guest.qemu("BLOCK_IO_ERROR", device="drive-virtio-disk0", reason="No space left on device")
    guest.libvirt(3, 2)
    guest.libvirt(4, 0)
    guest.qemu("WATCHDOG", action="pause")
    guest.libvirt(3, 3)
    assert guest.answers() == [
        (
            "io-error",
            "It was paused because of an I/O error of drive-virtio-disk0: No space left on device.",
        ),
        (
            "watchdog",
            "It was paused by its watchdog: the system in the guest had stopped to answer.",
        ),
    ]


def test_the_reason_is_of_the_first_shutdown_and_of_its_own_guest() -> None:
    guest = Guest()
    guest.call("DomainShutdown", domain="another")
    guest.call("DomainGetState")
    guest.qemu("SHUTDOWN", guest=True, reason="guest-shutdown")
    guest.libvirt(6, 1)
    guest.qemu("SHUTDOWN", guest=False, reason="host-signal")
    guest.libvirt(5, 0, tid=9)
    # The next life of the same guest has nothing of the first.
    guest.libvirt(2, 0)
    guest.libvirt(5, 5, tid=9)
    guest.libvirt(2, 0)
    guest.qemu("SHUTDOWN", guest=False, reason="host-qmp-quit")
    guest.libvirt(6, 2)
    guest.libvirt(5, 0, tid=9)
    guest.libvirt(2, 0)
    guest.libvirt(5, 0, tid=9)
    assert [name for name, _ in guest.answers()] == [
        *("by-guest", "without-a-word", "by-qmp", "unknown")
    ]


def test_who_paused_a_guest_is_known_only_if_a_call_did() -> None:
    guest = Guest()
    guest.call("DomainSuspend")
    guest.qemu("STOP")
    guest.libvirt(3, 0)
    assert [name for name, _ in guest.answers()] == ["paused-by-qemu"]


def test_hostile_events_of_a_guest() -> None:
    guest = Guest()
    for number in range(2000):
        guest.recorder.add("point", "qmp.event", values={"mon": f"0x{number}", "json": 7}, tid=5)
        values: dict[str, Any] = {"domain": f"vm{number}", "type": 5, "detail": "x"}
        guest.recorder.add("point", "guest.lifecycle", values=values, tid=5)
    for values in ({}, {"domain": 7, "type": 5}, {"domain": "vm1", "type": [], "detail": {}}):
        guest.recorder.add("point", "guest.lifecycle", values=values, tid=5)
    assert {name for name, _ in guest.answers()} == {"unknown"}


def test_answers_of_the_pages_are_those_of_recorded_traces() -> None:
    disks = documented("disk-numbers.md")
    assert len(disks) == 2
    assert disks <= real_answers(cases_of(DATA / "sample-blockinfo.jsonl")) | real_answers(
        cases_of(OLD / "domstats.jsonl.gz")
    )
    [slow] = documented("slow.md")
    assert {slow} <= real_answers(cases_of(OLD / "job-lock.jsonl"))


def test_numbers_of_a_system_daemon() -> None:
    """With a cgroup, a bridge and an interface without a device."""
    found = cases_of(DATA / "numbers" / "cgroup-9.0.0.jsonl")
    said = {(each["explainer"], each["causes"][0]["name"]): each for each in found}
    assert {*said} == {
        *(("cpu", "of-cgroup"), ("cpu", "no-per-cpu"), ("memory", "all-given")),
        *(("cpu", "of-process"), ("network", "no-device"), ("network", "guest-view")),
    }
    file = "/sys/fs/cgroup/unified/machine/qemu-1-pv.libvirt-qemu/cpu.stat"
    for fact in said["cpu", "of-cgroup"]["facts"]:
        assert fact["meaning"].endswith(f", from {file}")
    [fact] = said["cpu", "of-process"]["facts"]
    assert re.search(r", from /proc/[0-9]+/stat$", fact["meaning"])
