"""What each explainer answers for a scenario on a real daemon, beside what the client was told."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.lab.test_catalogue import recording, until
from tests.lab.tracing import as_measured, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.documented import answers, assert_shown, documented
from tests.support.hanging import (
    calling,
    qemu_of,
    set_workers,
    stalled_migration,
    wait_for,
    waiting,
)
from tests.support.networking import network_daemon
from tests.support.releases import on_each_release
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from tests.support.waiting import wait_until
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, domain_xml, file_source
from virtrace.lab.stage import Stage
from virtrace.report.explanation_document import explanation_schema

Case = dict[str, Any]
VALIDATOR = jsonschema_rs.Draft202012Validator(explanation_schema())


def explained(
    lab: Lab, engine: str, recipe: str, output: Path, *virsh: str
) -> tuple[list[Case], str, str]:
    """What is said of a trace while virsh ran, and what virsh printed, as output and as errors."""
    options = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
    done = virtrace("record", recipe, *options, "--", *lab.virsh_command("; ".join(virsh)))
    assert done.returncode == 0, done.stderr
    whole_trace(output)
    return cases_of(output), done.stdout, done.stderr


def cases_of(output: Path) -> list[Case]:
    told = virtrace("explain", "--json", output)
    assert told.returncode == 0, told.stderr
    document = json.loads(told.stdout)
    VALIDATOR.validate(document)
    shown = virtrace("explain", output).stdout
    assert max(map(len, shown.splitlines()[:-1])) <= 80 or "$ " in shown
    cases: list[Case] = document["cases"]
    for case in cases:
        assert case["answer"] in " ".join(shown.split())
    return cases


def first(case: Case) -> str:
    name: str = case["causes"][0]["name"]
    return name


def option(*words: str) -> str:
    """Arguments for QEMU itself."""
    words_ = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    return (
        "\n  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"{words_}</qemu:commandline>"
    )


def gone(stage: Stage) -> tuple[str, str]:
    return disk_xml("file", file_source(stage.images / "gone.raw"), "vda"), ""


def unreadable(stage: Stage) -> tuple[str, str]:
    file = stage.image("unreadable.raw", MIB)
    os.chown(file, 0, 0)
    file.chmod(0)
    return disk_xml("file", file_source(file), "vda"), ""


def of_another_guest(stage: Stage) -> tuple[str, str]:
    return disk_xml("file", file_source(stage.lab.disk_file("vdb")), "vda"), ""


def no_qcow2(stage: Stage) -> tuple[str, str]:
    file = stage.image("raw.raw", MIB)
    return disk_xml("file", file_source(file), "vda", "type='qcow2'"), ""


MUCH_MEMORY = option("-object", "memory-backend-ram,id=much,size=1024T,prealloc=on")
NO_SUCH_OPTION = option("-no-such-option")


def too_large(_: Stage) -> tuple[str, str]:
    return "", MUCH_MEMORY


def no_such_option(_: Stage) -> tuple[str, str]:
    return "", NO_SUCH_OPTION


def ends(_: Stage) -> tuple[str, str]:
    return "", option("-version")


def plain(_: Stage) -> tuple[str, str]:
    return "", ""


STARTS: dict[str, tuple[str, Callable[[Stage], tuple[str, str]], str]] = {
    "missing-file": (
        "the file of a disk does not exist",
        *(gone, "/images/gone.raw does not exist: "),
    ),
    "no-permission": (
        "the file of a disk is root's, with mode 0000",
        *(unreadable, "the host denied access to "),
    ),
    "locked": (
        "another guest that runs has the same disk",
        *(of_another_guest, "another process uses the image "),
    ),
    "bad-image": (
        "a raw image is defined as qcow2",
        *(no_qcow2, "is no image of the format that the definition names: "),
    ),
    "no-memory": (
        "QEMU is to reserve 1024 TiB of memory",
        *(too_large, "the host has not enough memory: "),
    ),
    "not-supported": (
        "the definition has an option that QEMU does not have",
        *(no_such_option, "-no-such-option"),
    ),
    "qemu-ended": (
        "QEMU ends at once (option -version)",
        *(ends, "QEMU ended by itself: "),
    ),
    "started": ("nothing is wrong", plain, "It started, in "),
}


SERIAL = """
    <serial type='tcp'><source mode='bind' host='127.0.0.1' service='{}'/>
      <protocol type='raw'/><target port='0'/></serial>"""


@on_each_release
def test_why_guests_do_not_start(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Each guest has the name of the cause; the last one runs already."""
    output = tmp_path / "t.jsonl"
    running = tmp_path / "vm1.xml"
    running.write_text(any_lab.virsh_checked("dumpxml", "--inactive", "vm1"))
    with staged(any_lab) as stage, ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        prepared = {name: prepare(stage) for name, (_, prepare, _) in STARTS.items()}
        prepared["in-use"] = (SERIAL.format(server.getsockname()[1]), "")
        if os.geteuid() != 0:
            # Only root can make a file that the daemon may not read.
            del prepared["no-permission"]
        for name, definition in prepared.items():
            any_lab.define(name, stage.folder / f"{name}.xml", *definition)
            stack.callback(any_lab.virsh, "undefine", name)
        stack.callback(any_lab.virsh, "destroy", "started")
        starts = [f"start {name}" for name in prepared]
        # Of `start`, virsh itself refuses a guest that runs.
        asked = (*starts, f"create {running}")
        cases, _, told = explained(any_lab, engine, "start-failure", output, *asked)
    scenarios = {STARTS[name][0]: (name, name) for name in prepared if name in STARTS}
    scenarios["the port of a serial line is taken"] = ("in-use", "in-use")
    scenarios["a guest that runs is created"] = ("a new guest", "already-running")
    assert_answers(output, cases, scenarios)
    if any_lab.release is None:
        assert_shown("explain.md", "start.jsonl", output, vm2="missing-file")
    by_name = dict(zip(prepared, cases))
    assert "Address already in use" in by_name["in-use"]["answer"]
    for name, case in by_name.items():
        # In 7.0.0, no probe sees the whole message of an error of the system.
        whole = name != "missing-file" or any_lab.libvirt_version >= (9, 0)
        if name in STARTS:
            assert (STARTS[name][2] if whole else "a file does not exist: ") in case["answer"]
        if name != "started" and whole:
            assert_told(case, name, told)


# Mounts of libvirt's old controllers: without, it gets over that it cannot read those of the other
# kind, which are hidden.
NO_CONTROLLERS = """\
for each in /sys/fs/cgroup/*; do
    [ "$each" = /sys/fs/cgroup/unified ] || umount "$each" 2>/dev/null || :
done"""


@pytest.mark.host
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a daemon of root")
def test_why_guests_of_a_daemon_of_root_do_not_start(tmp_path: Path) -> None:
    """QEMU's last words count, whichever thread they reach, and no error that libvirt got over."""
    output = tmp_path / "t.jsonl"
    options = {"no-memory": MUCH_MEMORY, "not-supported": NO_SUCH_OPTION}
    with network_daemon(NO_CONTROLLERS) as daemon:
        # QEMU's own output goes through it.
        daemon.run("virtlogd", "--daemon")
        for name, more in options.items():
            file = f"/run/{name}.xml"
            xml = domain_xml(name, "/usr/bin/qemu-system-x86_64", False, "", more)
            daemon.file(file).write_text(xml)
            daemon.virsh("define", file)
        asked = daemon.virsh_command("; ".join(f"start {name}" for name in options))
        target = ("-p", str(daemon.pid), "--engine", "uprobes", "-o", str(output))
        done = virtrace("record", "start-failure", *target, "--", *asked)
        assert done.returncode == 0, done.stderr
    cases = cases_of(output)
    assert [(case["subject"], first(case)) for case in cases] == [
        ([name], name) for name in options
    ]
    for name, case in zip(options, cases):
        assert_told(case, name, done.stderr)
        assert "cgroup" in case["causes"][0]["evidence"][0]["text"]


def assert_told(case: Case, name: str, told: str) -> None:
    """What the client was told is quoted, and its end is in the answer."""
    message = told.partition(f"Failed to start domain '{name}'\nerror: ")[2]
    message = " ".join(re.split(r"\n(?:virtrace[: ]|error: Failed|\n)", message)[0].split())
    quotes = [" ".join(each["text"].split()) for each in case["causes"][0]["evidence"]]
    assert message
    assert any(quote.endswith(message) for quote in quotes), (message, quotes)
    assert message[-20:].rstrip(".") in case["answer"]
    assert [fact for fact in case["facts"] if "failed" in fact["meaning"]]


@on_each_release
def test_which_errors_matter(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    asked = ["domblkinfo vm1 vdz", "domblkinfo vm1 vdy", "domstate none", "domstate vm1"]
    output = tmp_path / "t.jsonl"
    cases, _, told = explained(any_lab, engine, "errors", output, *asked)
    scenarios = {
        "two disks are asked for that the guest does not have": (
            "error 8 (invalid arg)",
            "unknown-disk",
        ),
        "a guest is asked for that does not exist": ("error 42 (no domain)", "no-such-object"),
    }
    assert_answers(output, cases, scenarios)
    disk, domain = cases
    user = pwd.getpwuid(os.getuid()).pw_name
    if any_lab.release is None:
        assert_shown("explain.md", "errors.jsonl", output, root=user)
    facts = {fact["name"]: fact for fact in disk["facts"]}
    assert (facts["errors"]["value"], facts["returned"]["value"]) == (2, 2)
    assert facts["returned"]["meaning"] == "virDomainGetBlockInfo 2"
    assert facts["domains"]["value"] == "vm1 2"
    assert re.fullmatch(rf"process \d+ of user {user} 2", facts["clients"]["value"])
    assert "domains" not in {fact["name"] for fact in domain["facts"]}
    # Of calls without an error, who called is not in the trace.
    assert "DomainGetState" not in output.read_text()
    assert "twice, an API failed with it: " in disk["answer"]
    messages = [line.removeprefix("error: ") for line in told.splitlines()]
    assert any(message in disk["answer"] for message in messages if "vdz" in message)


NUMBERS = ("capacity", "allocation", "physical")


@on_each_release
def test_the_disks_of_statistics(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    cases, printed, _ = explained(
        any_lab, engine, "domstats", tmp_path / "t.jsonl", "domstats vm1 --block"
    )
    raw = as_measured(
        {(7, 0, 0): ("not-written", "mark"), (11, 3, 0): ("no-mark", "no-mark")},
        any_lab.libvirt_version,
    )
    scenarios = {
        "a disk with a backing image, not written since the guest started": (
            "vm1 vda",
            "not-written",
        ),
        "a sparse image, never written": ("vm1 vdb", "nothing-written"),
        "a fully allocated image, not written since the guest started": ("vm1 vdc", raw[0]),
        "a sparse image, written in its last sector": ("vm1 vdd", raw[1]),
    }
    of_disks = [case for case in cases if case["explainer"] == "statistics"]
    assert_answers(tmp_path / "t.jsonl", of_disks, scenarios)
    if any_lab.release is None:
        assert_shown("explain.md", "stats.jsonl", tmp_path / "t.jsonl")
    lines = dict(line.strip().split("=", 1) for line in printed.splitlines() if "=" in line)
    for index, case in enumerate(cases):
        facts = {fact["name"]: fact["value"] for fact in case["facts"]}
        assert facts == {name: int(lines[f"block.{index}.{name}"]) for name in NUMBERS}


@on_each_release
def test_the_disks_of_a_guest_that_is_shut_off(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    with staged(any_lab) as stage:
        file = stage.image("vda.raw", MIB)
        disk = disk_xml("file", file_source(file), "vda")
        any_lab.define("vm2", stage.folder / "vm2.xml", disk)
        [case], _, _ = explained(
            any_lab, engine, "domstats", tmp_path / "t.jsonl", "domstats vm2 --block"
        )
    scenario = {"a disk of a guest that is shut off": ("vm2 vda", "shut-off")}
    assert_answers(tmp_path / "t.jsonl", [case], scenario)


@on_each_release
def test_the_counters_of_a_disk(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    cases, printed, told = explained(
        any_lab,
        engine,
        "blockstats",
        tmp_path / "t.jsonl",
        *("domblkstat vm1 vda", "domblkstat vm1 vdz"),
    )
    with staged(any_lab) as stage:
        any_lab.define("vm2", stage.folder / "vm2.xml", "")
        off = tmp_path / "off.jsonl"
        [shut_off], _, _ = explained(any_lab, engine, "blockstats", off, "domblkstat vm2 vda")
    scenario = {"the counters of a disk of a guest that is shut off": ("vm2 vda", "error")}
    assert_answers(off, [shut_off], scenario)
    scenarios = {
        "the counters of a disk": ("vm1 vda", "counters"),
        "the counters of a disk that the guest does not have": ("vm1 vdz", "error"),
    }
    assert_answers(tmp_path / "t.jsonl", cases, scenarios)
    case, unknown = cases
    lines = [line.split() for line in printed.splitlines() if line.startswith("vda ")]
    values = {name: int(value) for _, name, value in lines}
    facts = {fact["name"]: fact["value"] for fact in case["facts"]}
    assert facts["rd_operations"] == values["rd_req"]
    assert f"read {values['rd_req']:,} times" in case["answer"]
    assert unknown["answer"].partition("failed: ")[2].rstrip(".") in told


@on_each_release
def test_who_waits_for_a_job_without_a_thread(
    any_lab: Lab, elsewhere: Lab, engine: str, tmp_path: Path
) -> None:
    """On the host where a guest arrives, as long as it does."""
    output = tmp_path / "t.jsonl"
    line = [*VIRTRACE, "record", "job-lock", "-p", str(any_lab.pid), "--engine", engine]
    with stalled_migration(elsewhere, any_lab, "vm3") as (_, let_fail):
        running = subprocess.Popen(
            [*line, "-o", str(output), "--", *any_lab.virsh_command("suspend", "vm3")],
            stdout=subprocess.DEVNULL,
        )
        until(output, '"async_owner_api":"remoteDispatchDomainMigratePrepare3Params"')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
        let_fail()
    assert running.wait(SECONDS) == 130
    [case] = cases_of(output)
    scenario = {"a guest arrives by migration, which stalls": ("vm3", "holder-without-thread")}
    assert_answers(output, [case], scenario)
    assert " for DomainMigratePrepare3Params, which has left the guest locked " in case["answer"]


# A call that holds the job, another one that waits for it, and what the trace says of that.
ASKED, WAITS = "domblkinfo vm1 vda", "domblkstat vm1 vda"
HELD = '"owner_api":"remoteDispatchDomainGetBlockInfo"'


@on_each_release
@pytest.mark.parametrize("recipe", ["job-lock", "slow"])
def test_nobody_waits_for_a_job(any_lab: Lab, engine: str, tmp_path: Path, recipe: str) -> None:
    cases, _, _ = explained(any_lab, engine, recipe, tmp_path / "t.jsonl", "domblkinfo vm1 vda")
    [case] = [case for case in cases if case["explainer"] == "jobs"]
    scenario = {"nobody waits for a job": ("jobs", "no-wait")}
    assert_answers(tmp_path / "t.jsonl", [case], scenario)


@on_each_release
@pytest.mark.parametrize(
    ("recipe", "answers"), [("job-lock", False), ("job-lock", True), ("slow", True)]
)
def test_who_waits_for_a_job(
    any_lab: Lab, engine: str, tmp_path: Path, recipe: str, answers: bool
) -> None:
    """For a call that QEMU does not answer while this is recorded, or that it answers at last."""
    output = tmp_path / "t.jsonl"
    with recording(any_lab, engine, recipe, output, ASKED) as running:
        until(output, '"name":"qmp.send","span"')
        command = any_lab.virsh_command(*WAITS.split())
        waits = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(output, HELD)
        if not answers:
            running.send_signal(signal.SIGINT)
            until(output, '"type":"footer"')
    assert running.wait(SECONDS) == (0 if answers else 130)
    assert waits.wait(SECONDS) == 0
    # With an answer, the trace may end before the one that waited has returned.
    scenario, cause = (
        ("QEMU answers the holder of the job at last", "qemu-slow")
        if answers
        else ("QEMU does not answer the holder of the job", "qemu-silent")
    )
    case = assert_waits(output, scenario, cause)
    assert case["answer"].endswith("for QEMU to answer query-blockstats.")
    if any_lab.release is None and not answers:
        assert_shown("explain.md", "job-lock.jsonl", output)


@on_each_release
@pytest.mark.parametrize("recipe", ["job-lock", "slow"])
def test_who_waits_for_a_call_from_before_the_trace(
    any_lab: Lab, engine: str, tmp_path: Path, recipe: str
) -> None:
    output = tmp_path / "t.jsonl"
    with any_lab.stalled(), calling(any_lab, ASKED.split()):
        wait_for(any_lab, "qemu-stopped")
        with recording(any_lab, engine, recipe, output, WAITS) as running:
            until(output, HELD)
            running.send_signal(signal.SIGINT)
            until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    scenario = "the holder's call began before the trace"
    assert_waits(output, scenario, "holder-unknown")


def assert_waits(output: Path, scenario: str, cause: str) -> Case:
    [case] = [case for case in cases_of(output) if case["explainer"] == "jobs"]
    assert_answers(output, [case], {scenario: ("vm1", cause)})
    assert "1 call (DomainBlockStatsFlags) " in case["answer"]
    assert "for DomainGetBlockInfo, wh" in case["answer"]
    return case


@on_each_release
def test_what_qemu_does_not_answer(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    with recording(any_lab, engine, "monitor-stall", output, ASKED) as running:
        until(output, '"name":"qmp.send","span"')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    [case] = cases_of(output)
    assert_answers(output, [case], {"QEMU does not answer": ("vm1", "silent")})
    assert case["answer"].startswith("QEMU had not answered query-blockstats when the trace ended")
    assert case["answer"].endswith("DomainGetBlockInfo waits for that.")


@on_each_release
def test_what_qemu_answers_late(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    with recording(any_lab, engine, "qmp", output, ASKED) as running:
        until(output, '"name":"qmp.send","span"')
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1, "it is late")
    assert running.wait(SECONDS) == 0
    late, *_ = cases_of(output)
    # Which guest's monitor that is, the recipe does not know.
    (mon,) = late["subject"]
    assert_answers(output, [late], {"QEMU answers after more than 1 s": (mon, "late")})
    assert late["answer"].startswith("QEMU answered query-blockstats late, once; ")


@on_each_release
def test_what_qemu_answers(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    [case], _, _ = explained(any_lab, engine, "monitor-stall", output, "domblkinfo vm1 vda")
    assert_answers(output, [case], {"QEMU answers": ("QEMU", "well")})
    [case], _, _ = explained(any_lab, engine, "qmp", tmp_path / "w.jsonl", ASKED)
    assert_answers(tmp_path / "w.jsonl", [case], {"QEMU answers": ("QEMU", "well")})
    command = 'qemu-monitor-command vm1 \'{"execute":"no-such-command"}\''
    [case], printed, _ = explained(any_lab, engine, "qmp", tmp_path / "q.jsonl", command)
    (mon,) = case["subject"]
    scenario = {"a command that QEMU does not have": (mon, "refused")}
    assert_answers(tmp_path / "q.jsonl", [case], scenario)
    assert "QEMU refused no-such-command, once: CommandNotFound: " in case["answer"]
    assert case["answer"].rpartition("CommandNotFound: ")[2].rstrip(".") in printed


@on_each_release
def test_what_becomes_of_calls(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    asked = ("domblkinfo vm1 vda", "domstate no-such-domain")
    cases, _, told = explained(any_lab, engine, "rpc", tmp_path / "t.jsonl", *asked)
    failed, well = [case for case in cases if first(case) != "delayed"]
    scenarios = {
        "a guest is looked for that does not exist": ("DomainLookupByName", "failed"),
        "other calls in the same trace": ("clients", "well"),
    }
    assert_answers(tmp_path / "t.jsonl", [failed, well], scenarios)
    assert "no-such-domain" in failed["answer"]
    assert "no-such-domain" in told
    output = tmp_path / "open.jsonl"
    with recording(any_lab, engine, "rpc", output, asked[0]) as running:
        until(output, "remoteDispatchDomainGetBlockInfo")
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    open_, *_ = [case for case in cases_of(output) if first(case) != "delayed"]
    scenario = {"QEMU does not answer a call": ("DomainGetBlockInfo", "running")}
    assert_answers(output, [open_], scenario)
    assert open_["answer"].startswith("1 call of DomainGetBlockInfo had not returned")


class Unserved:
    """Whether a call that a trace has was received and, for a second, not taken up.

    Which one that is depends on the version: to open a connection can take a thread, too.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.since: dict[tuple[str, int], float] = {}

    def stays(self) -> bool:
        waiting: set[tuple[str, int]] = set()
        if not self.output.exists():
            return False
        for line in self.output.read_bytes().splitlines(keepends=True)[1:]:
            if line.endswith(b"\n") and b'"rpc.received"' in line:
                waiting.add(self.call(line))
            elif line.endswith(b"\n") and b'"enter","' in line:
                waiting.discard(self.call(line))
        now = time.monotonic()
        self.since = {each: self.since.get(each, now) for each in waiting}
        return any(now - since > 1 for since in self.since.values())

    @staticmethod
    def call(line: bytes) -> tuple[str, int]:
        values = json.loads(line)["values"]
        return values.get("client", ""), values.get("serial", 0)


@on_each_release
def test_calls_that_no_thread_takes_up(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    set_workers(any_lab, 4)
    try:
        with any_lab.stalled(), waiting(any_lab, *[ASKED.split()] * 4):
            with recording(any_lab, engine, "rpc", output, ASKED) as running:
                wait_until(Unserved(output).stays, "a call waits for a thread")
                running.send_signal(signal.SIGINT)
                until(output, '"type":"footer"')
            os.kill(qemu_of(any_lab), signal.SIGCONT)
    finally:
        set_workers(any_lab, 20)
    assert running.wait(SECONDS) == 130
    cases = [case for case in cases_of(output) if first(case) == "unserved"]
    scenario = {"all threads of the daemon wait for a guest": ("clients", "unserved")}
    assert_answers(output, cases, scenario)


@on_each_release
def test_what_becomes_of_block_jobs(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    with staged(any_lab) as stage:
        snapshot = "snapshot-create-as vm2 --disk-only --no-metadata --diskspec vda,file="
        copies = [stage.images / f"copy{number}.qcow2" for number in range(3)]
        copy = "blockcopy vm2 vda {} --transient-job --wait"
        asked = (
            f"{snapshot}{stage.images / 'first.qcow2'}",
            "blockcommit vm2 vda --active --pivot --wait",
            copy.format(copies[0]) + " --pivot",
            f"{snapshot}{stage.images / 'second.qcow2'}",
            "blockpull vm2 vda --wait",
            copy.format(copies[1]),
            *["blockjob vm2 vda --abort"] * 2,
            copy.format(copies[2]),
        )
        image = stage.image("vda.qcow2", MIB, "qcow2")
        stage.start(disk_xml("file", file_source(image), "vda", "type='qcow2'"))
        cases, _, told = explained(any_lab, engine, "blockjob", tmp_path / "t.jsonl", *asked)
    scenarios = {
        "a commit, pivoted to": "pivoted",
        "a copy, pivoted to": "pivoted",
        "a pull": "done",
        "a copy, aborted": "aborted",
        "a copy that nobody ends": "ready",
        "an end of a job where there is none": "nothing-to-end",
    }
    expected = {scenario: ("vm2 vda", cause) for scenario, cause in scenarios.items()}
    assert_answers(tmp_path / "t.jsonl", cases, expected)
    if any_lab.release is None:
        assert_shown("explain.md", "blockjob.jsonl", tmp_path / "t.jsonl")
    assert cases[-1]["answer"].partition("ended: ")[2].rstrip(".") in told
    assert cases[2]["answer"] == "The pull is done."


@on_each_release
def test_a_commit_that_is_not_permitted(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A base that QEMU can read alone, as a profile of AppArmor would have it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that the daemon may not write")
    with staged(any_lab) as stage:
        base = stage.image("vda.qcow2", MIB, "qcow2")
        stage.start(disk_xml("file", file_source(base), "vda", "type='qcow2'"))
        top = stage.images / "top.qcow2"
        stage.virsh(
            *("snapshot-create-as", "vm2", "--disk-only", "--no-metadata"),
            *("--diskspec", f"vda,file={top}"),
        )
        os.chown(base, 0, 0)
        base.chmod(0o444)
        [case], _, told = explained(
            any_lab,
            engine,
            "blockjob",
            tmp_path / "t.jsonl",
            "blockcommit vm2 vda --active --pivot --wait",
        )
    scenario = {"a commit into an image that QEMU may only read": ("vm2 vda", "no-permission")}
    assert_answers(tmp_path / "t.jsonl", [case], scenario)
    assert f"may not open {base}" in case["answer"]
    assert "Permission denied" in told


PASSED_LINK = "a link that leads nowhere, or to a file that the daemon may not read"


@on_each_release
def test_what_a_refresh_finds(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Files, one whose backing image is gone, and what is passed over; then no folder."""
    with staged(any_lab) as stage:
        pool, gone = stage.images / "pool", stage.images / "gone"
        try:
            pool.mkdir()
            os.chown(pool, any_lab.system.uid, any_lab.system.gid)
            any_lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
            (pool / "a.raw").write_bytes(bytes(512))
            (pool / "dangling.raw").symlink_to("none")
            os.mkfifo(pool / "fifo")
            unreadable = pool / "unreadable.raw"
            unreadable.write_bytes(bytes(512))
            unreadable.chmod(0)
            [found], _, _ = explained(
                any_lab, engine, "pool-refresh", tmp_path / "a.jsonl", "pool-refresh pool"
            )
            base = stage.image("base.qcow2", MIB, "qcow2")
            stage.qemu_img(
                *("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)),
                str(pool / "top.qcow2"),
            )
            base.unlink()
            [over], _, _ = explained(
                any_lab, engine, "pool-refresh", tmp_path / "b.jsonl", "pool-refresh pool"
            )
            pool.rename(gone)
            [missing], _, told = explained(
                any_lab, engine, "pool-refresh", tmp_path / "c.jsonl", "pool-refresh pool"
            )
            any_lab.virsh_checked("pool-define-as", "off", "dir", "--target", str(gone))
            [inactive], _, _ = explained(
                any_lab, engine, "pool-refresh", tmp_path / "d.jsonl", "pool-refresh off"
            )
        finally:
            any_lab.virsh("pool-destroy", "pool")
            any_lab.virsh("pool-undefine", "off")
    assert_answers(tmp_path / "d.jsonl", [inactive], {"an inactive pool": ("off", "inactive")})
    scenarios = {
        "a folder with files, and what libvirt passes over": "refreshed",
        "also an image whose backing image is gone": first(over),
        "the folder is gone": "missing",
    }
    for name, case, (scenario, cause) in zip("abc", (found, over, missing), scenarios.items()):
        assert_answers(tmp_path / f"{name}.jsonl", [case], {scenario: ("pool", cause)})
    assert found["answer"].startswith("The refresh found 1 volume in ")
    assert ", and passed over 3 files: " in found["answer"]
    assert over["answer"].startswith("The refresh found 2 volumes in ")
    why = {fact["name"]: fact["value"] for fact in found["facts"] if "passed over" in fact["name"]}
    assert why == {
        "passed over dangling.raw": PASSED_LINK,
        "passed over fifo": "a FIFO",
        "passed over unreadable.raw": "a file that the daemon may not read",
    }
    assert missing["answer"].startswith(f"The refresh failed because {pool} does not exist: ")
    assert missing["answer"].partition("exist: ")[2].rstrip(".") in told


MEMORY = """
<domain type='qemu'>
  <name>vm2</name>
  <memory unit='MiB'>64</memory>
  <currentMemory unit='MiB'>48</currentMemory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='virtio'><stats period='2'/></memballoon>
  </devices>
</domain>
"""


@on_each_release
def test_what_memory_numbers_are(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A guest without a driver, which never got the 48 MiB that it should have."""
    with staged(any_lab) as stage:
        file = stage.folder / "vm2.xml"
        file.write_text(MEMORY.format(emulator=any_lab.system.emulator))
        any_lab.virsh_checked("define", str(file))
        any_lab.virsh_checked("start", "vm2")
        asked = ("dommemstat vm2", "dommemstat vm1", "dominfo vm2")
        cases, printed, _ = explained(any_lab, engine, "memory", tmp_path / "t.jsonl", *asked)
        statistics, told, _ = explained(
            any_lab, engine, "domstats", tmp_path / "s.jsonl", "domstats --balloon"
        )
        asked = ("dominfo vm2", "destroy vm2", "dominfo vm2")
        infos, _, _ = explained(any_lab, engine, "dominfo", tmp_path / "d.jsonl", *asked)
    cases = [case for case in cases if case["explainer"] == "memory"]
    scenarios = {
        "statistics of a guest whose balloon has no driver": ("vm2", "nothing-reported"),
        "statistics of a guest without a balloon": ("vm1", "no-balloon"),
        "used memory of a guest that never gave back what it should": ("vm2", "all-given"),
    }
    assert_answers(tmp_path / "t.jsonl", cases, scenarios)
    assert documented("memory.md") <= answers(cases)
    if any_lab.release is None:
        assert_shown("explain.md", "memory.jsonl", tmp_path / "t.jsonl")
    assert "actual 65536\n" in printed
    for case in (cases[0], cases[2]):
        assert case["facts"][0]["value"] == 65536 * 1024
        assert "64.000 MiB" in case["answer"]
    # 16 MiB of guest, and QEMU itself.
    found = {case["subject"][0]: case for case in statistics if case["explainer"] == "memory"}
    scenarios = {
        "memory of a guest of 16 MiB": ("vm1", "rss-above-maximum"),
        "memory of a guest whose balloon has no driver": ("vm2", "nothing-reported"),
    }
    assert_answers(tmp_path / "s.jsonl", [found["vm1"], found["vm2"]], scenarios)
    scenarios = {
        "used memory of a guest that never gave back what it should": ("vm2", "all-given"),
        "the CPU time of a guest": ("vm2", "of-process"),
        "used memory of a guest that is shut off": ("vm2", "given"),
        "the CPU time of a guest that is shut off": ("vm2", "shut-off"),
    }
    assert_answers(tmp_path / "d.jsonl", infos, scenarios)
    [rss] = [fact["value"] for fact in found["vm1"]["facts"] if fact["name"] == "rss"]
    assert f"balloon.rss={rss // 1024}\n" in told


@on_each_release
def test_qemu_that_ends_in_the_call(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Killed while libvirt waits for its answer: the error is raised on another thread."""
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage:
        image = stage.image("vda.raw", MIB)
        stage.start(disk_xml("file", file_source(image), "vda"))
        [qemu] = [
            pid
            for pid in any_lab.processes
            if b"guest=vm2," in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(qemu, signal.SIGSTOP)
        line = [*VIRTRACE, "record", "blockinfo", "-p", str(any_lab.pid), "--engine", engine]
        command = any_lab.virsh_command("domblkinfo", "vm2", "vda")
        running = subprocess.Popen(
            [*line, "-o", str(output), "--", *command], stdout=subprocess.DEVNULL
        )
        try:
            until(output, '"name":"qmp.send","span"')
        finally:
            os.kill(qemu, signal.SIGKILL)
        assert running.wait(SECONDS) == 0
    [case] = cases_of(output)
    scenario = {"QEMU is killed while libvirt waits for its answer": ("vm2 vda", "qemu-gone")}
    assert_answers(output, [case], scenario)
    assert "QEMU did not answer query-blockstats" in case["answer"]


OFF = "until virsh domstate {name} | grep -q 'shut off'; do :; done"
COMMAND = "virsh qemu-monitor-command {name} --hmp"
# What the guest's system does, by QEMU's own hand: ACPI's register for the power, and the port of
# the panic device. The register takes words from the monitor of 5.2 and 7.2, and bytes from that of
# 11.1. Until the firmware has set it up, nothing happens.
OUT = f"{COMMAND} 'o/w 0x604 0x2000'; {COMMAND} 'o/b 0x605 0x20'"
POWER_OFF = OFF.replace(":;", f"{OUT};")
PANIC = f"{COMMAND} 'o/b 0x505 1'"
QUIT = f"{COMMAND} quit"
# A guest of each name: what is made, by which commands, and words of the answer. {qemu} is the pid.
WHO = {
    "by-call": (
        "a client destroys it",
        *("virsh destroy {name}", "It was ended by DomainDestroy, which process "),
    ),
    "during-call": (
        "a client suspends it",
        *("virsh suspend {name}", "It was paused while DomainSuspend ran, which process "),
    ),
    "by-signal": (
        "QEMU gets SIGTERM",
        *(f"kill -TERM {{qemu}}; {OFF}", "by a signal: SIGTERM, "),
    ),
    "without-a-word": (
        "QEMU gets SIGKILL",
        *(f"kill -KILL {{qemu}}; {OFF}", "QEMU ended without a word"),
    ),
    "after-command": (
        "a client sends QEMU the command quit",
        *(f"{QUIT}; {OFF}", " by DomainMonitorCommand."),
    ),
    "by-guest": ("the guest powers off", POWER_OFF, "no client had asked it to in the trace."),
    "guest-was-asked": (
        "the guest powers off, after a client asked it to",
        f"virsh shutdown {{name}}; {POWER_OFF}",
        "The system in the guest shut itself down, ",
    ),
    "panic": (
        "the guest reports a panic",
        *(f"{PANIC}; {OFF}", "the system in the guest reported a panic."),
    ),
}
# The procedure of the client's call that an answer leads to.
PROCEDURES = {
    "by-call": "remoteDispatchDomainDestroy",
    "during-call": "remoteDispatchDomainSuspend",
    "guest-was-asked": "remoteDispatchDomainShutdown",
}


@on_each_release
def test_who_ended_guests(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Each guest has the name of the cause."""
    output = tmp_path / "t.jsonl"
    commands = []
    with staged(any_lab) as stage, ExitStack() as stack:
        for name, (_, command, _) in WHO.items():
            more = "<features><acpi/></features><on_crash>destroy</on_crash>"
            file = stage.folder / f"{name}.xml"
            any_lab.define(name, file, "<panic model='isa'/>", more)
            stack.callback(any_lab.virsh, "undefine", name)
            any_lab.virsh_checked("start", name)
            stack.callback(any_lab.virsh, "destroy", name)
            commands.append(command.format(name=name, qemu=qemu_of(any_lab, name)))
        done = virtrace(
            *("record", "guest-end", "-p", str(any_lab.pid), "--engine", engine),
            *("-o", str(output), "--", "sh", "-c", "; ".join(commands)),
            env={**os.environ, "LIBVIRT_DEFAULT_URI": any_lab.uri},
        )
        assert done.returncode == 0, done.stderr
    whole_trace(output)
    cases = cases_of(output)
    assert len(cases) == len(WHO)
    if any_lab.release is None:
        assert_shown("explain.md", "end.jsonl", output, vm9="by-signal")
    shown = json.loads(virtrace("show", "--json", output).stdout)
    calls = {each["call"]: each for each in shown["calls"]}
    for (name, (scenario, _, words)), case in zip(WHO.items(), cases):
        cause = name
        if (name, first(case)) == ("after-command", "by-qmp"):
            # QEMU says SHUTDOWN before it ends, and libvirt may or may not still read it.
            cause, words = "by-qmp", "QEMU received the QMP command quit."
            scenario = "a client sends QEMU the command quit, and libvirt reads its last event"
        assert_answers(output, [case], {scenario: (name, cause)})
        assert words in case["answer"]
        steps = [fact["name"] for fact in case["facts"]]
        is_shut_down = cause in ("by-guest", "guest-was-asked")
        assert ("QEMU: SHUTDOWN (guest-shutdown)" in steps) == is_shut_down
        assert ("QEMU: SHUTDOWN (host-qmp-quit)" in steps) == (cause == "by-qmp")
        assert ("QEMU: GUEST_PANICKED" in steps) == (cause == "panic")
        if name in PROCEDURES:
            [call] = case["calls"]
            assert PROCEDURES[name] in json.dumps(calls[call])
