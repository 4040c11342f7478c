"""What each explainer answers for a scenario on a real daemon, beside what the client was told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.lab.test_catalogue import recording, until
from tests.lab.tracing import as_measured, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.documented import answers, documented
from tests.support.stages import staged
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
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
    file = stage.image("vda.raw", MIB)
    os.chown(file, 0, 0)
    file.chmod(0)
    return disk_xml("file", file_source(file), "vda"), ""


def of_another_guest(stage: Stage) -> tuple[str, str]:
    return disk_xml("file", file_source(stage.lab.disk_file("vdb")), "vda"), ""


def no_qcow2(stage: Stage) -> tuple[str, str]:
    file = stage.image("vda.raw", MIB)
    return disk_xml("file", file_source(file), "vda", "type='qcow2'"), ""


def too_large(_: Stage) -> tuple[str, str]:
    return "", option("-object", "memory-backend-ram,id=much,size=1024T,prealloc=on")


def no_such_option(_: Stage) -> tuple[str, str]:
    return "", option("-no-such-option")


def ends(_: Stage) -> tuple[str, str]:
    return "", option("-version")


def plain(_: Stage) -> tuple[str, str]:
    return "", ""


STARTS: dict[str, tuple[Callable[[Stage], tuple[str, str]], str]] = {
    "missing-file": (gone, "/images/gone.raw does not exist: "),
    "no-permission": (unreadable, "the host denied access to "),
    "locked": (of_another_guest, "another process uses the image "),
    "bad-image": (no_qcow2, "is no image of the format that the definition names: "),
    "no-memory": (too_large, "the host has not enough memory: "),
    "not-supported": (no_such_option, "-no-such-option"),
    "qemu-ended": (ends, "QEMU ended by itself: "),
    "started": (plain, "It started, in "),
}


@pytest.mark.parametrize("name", STARTS)
def test_why_a_guest_does_not_start(stock_lab: Lab, engine: str, tmp_path: Path, name: str) -> None:
    prepare, words = STARTS[name]
    if name == "no-permission" and os.geteuid() != 0:
        pytest.skip("only root can make a file that the daemon may not read")
    with staged(stock_lab) as stage:
        stock_lab.define("vm2", stage.folder / "vm2.xml", *prepare(stage))
        [case], _, told = explained(
            stock_lab, engine, "start-failure", tmp_path / "t.jsonl", "start vm2"
        )
    assert case["subject"] == ["vm2"]
    assert first(case) == name, case["answer"]
    # In 7.0.0, no probe sees the whole message of an error of the system.
    whole = name != "missing-file" or stock_lab.libvirt_version >= (9, 0)
    assert (words if whole else "a file does not exist: ") in case["answer"]
    if name != "started" and whole:
        # What the client was told is quoted, and its end is in the answer.
        message = told.partition("Failed to start domain 'vm2'\nerror: ")[2]
        message = " ".join(re.split(r"\nvirtrace[: ]", message)[0].split())
        quotes = [" ".join(each["text"].split()) for each in case["causes"][0]["evidence"]]
        assert message
        assert any(quote.endswith(message) for quote in quotes), (message, quotes)
        assert message[-20:].rstrip(".") in case["answer"]
        assert [fact for fact in case["facts"] if "failed" in fact["meaning"]]


def test_a_port_that_is_taken(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    with staged(stock_lab) as stage, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        serial = f"""
    <serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}'/>
      <protocol type='raw'/><target port='0'/></serial>"""
        stock_lab.define("vm2", stage.folder / "vm2.xml", serial)
        [case], _, _ = explained(
            stock_lab, engine, "start-failure", tmp_path / "t.jsonl", "start vm2"
        )
    assert first(case) == "in-use", case["answer"]
    assert "Address already in use" in case["answer"]


def test_a_guest_that_runs_already(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    file = tmp_path / "vm1.xml"
    file.write_text(stock_lab.virsh_checked("dumpxml", "--inactive", "vm1"))
    # Of `start`, virsh itself refuses it.
    [case], _, _ = explained(
        stock_lab, engine, "start-failure", tmp_path / "t.jsonl", f"create {file}"
    )
    assert (case["subject"], first(case)) == (["a new guest"], "already-running"), case["answer"]


def test_which_errors_matter(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    asked = ["domblkinfo vm1 vdz", "domblkinfo vm1 vdy", "domstate none", "domstate vm1"]
    cases, _, told = explained(stock_lab, engine, "errors", tmp_path / "t.jsonl", *asked)
    kinds = {first(case): case for case in cases}
    assert {*kinds} == {"unknown-disk", "no-such-object"}
    disk, domain = kinds["unknown-disk"], kinds["no-such-object"]
    assert disk["subject"] == ["error 8 (invalid arg)"]
    assert domain["subject"] == ["error 42 (no domain)"]
    facts = {fact["name"]: fact for fact in disk["facts"]}
    assert (facts["errors"]["value"], facts["returned"]["value"]) == (2, 2)
    assert facts["returned"]["meaning"] == "virDomainGetBlockInfo 2"
    assert "twice, an API failed with it: " in disk["answer"]
    messages = [line.removeprefix("error: ") for line in told.splitlines()]
    assert any(message in disk["answer"] for message in messages if "vdz" in message)


NUMBERS = ("capacity", "allocation", "physical")


def test_the_disks_of_statistics(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    cases, printed, _ = explained(
        stock_lab, engine, "domstats", tmp_path / "t.jsonl", "domstats vm1 --block"
    )
    raw = as_measured(
        {(7, 0, 0): ("not-written", "mark"), (11, 3, 0): ("no-mark", "no-mark")},
        stock_lab.libvirt_version,
    )
    assert {tuple(case["subject"]): first(case) for case in cases} == {
        ("vm1", "vda"): "not-written",
        ("vm1", "vdb"): "nothing-written",
        ("vm1", "vdc"): raw[0],
        ("vm1", "vdd"): raw[1],
    }
    lines = dict(line.strip().split("=", 1) for line in printed.splitlines() if "=" in line)
    for index, case in enumerate(cases):
        facts = {fact["name"]: fact["value"] for fact in case["facts"]}
        assert facts == {name: int(lines[f"block.{index}.{name}"]) for name in NUMBERS}


def test_the_disks_of_a_guest_that_is_shut_off(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    with staged(stock_lab) as stage:
        file = stage.image("vda.raw", MIB)
        disk = disk_xml("file", file_source(file), "vda")
        stock_lab.define("vm2", stage.folder / "vm2.xml", disk)
        [case], _, _ = explained(
            stock_lab, engine, "domstats", tmp_path / "t.jsonl", "domstats vm2 --block"
        )
    assert (case["subject"], first(case)) == (["vm2", "vda"], "shut-off")


def test_the_counters_of_a_disk(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    [case, unknown], printed, told = explained(
        stock_lab,
        engine,
        "blockstats",
        tmp_path / "t.jsonl",
        *("domblkstat vm1 vda", "domblkstat vm1 vdz"),
    )
    assert (case["subject"], first(case)) == (["vm1", "vda"], "counters")
    lines = [line.split() for line in printed.splitlines() if line.startswith("vda ")]
    values = {name: int(value) for _, name, value in lines}
    facts = {fact["name"]: fact["value"] for fact in case["facts"]}
    assert facts["rd_operations"] == values["rd_req"]
    assert f"read {values['rd_req']:,} times" in case["answer"]
    assert first(unknown) == "error"
    assert unknown["answer"].partition("failed: ")[2].rstrip(".") in told


def test_nobody_waits_for_a_job(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    [case], _, _ = explained(
        stock_lab, engine, "job-lock", tmp_path / "t.jsonl", "domblkinfo vm1 vda"
    )
    assert first(case) == "no-wait", case["answer"]


@pytest.mark.parametrize("answers", [False, True])
def test_who_waits_for_a_job(stock_lab: Lab, engine: str, tmp_path: Path, answers: bool) -> None:
    """For a call that QEMU does not answer while this is recorded, or that it answers at last."""
    output = tmp_path / "t.jsonl"
    asked = "domblkinfo vm1 vda"
    with recording(stock_lab, engine, "job-lock", output, asked) as running:
        until(output, '"name":"qmp.send","span"')
        command = stock_lab.virsh_command("domblkstat", "vm1", "vda")
        waits = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(output, '"owner_api":"remoteDispatchDomainGetBlockInfo"')
        if not answers:
            running.send_signal(signal.SIGINT)
            until(output, '"type":"footer"')
    assert running.wait(SECONDS) == (0 if answers else 130)
    assert waits.wait(SECONDS) == 0
    [case] = cases_of(output)
    assert case["subject"] == ["vm1"]
    # With an answer, the trace may end before the one that waited has returned.
    assert first(case) == ("qemu-slow" if answers else "qemu-silent"), case["answer"]
    assert "1 call (DomainBlockStatsFlags) " in case["answer"]
    assert "for DomainGetBlockInfo, which wait" in case["answer"]
    assert case["answer"].endswith("for QEMU to answer query-blockstats.")


def test_what_qemu_does_not_answer(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    asked = "domblkinfo vm1 vda"
    with recording(stock_lab, engine, "monitor-stall", output, asked) as running:
        until(output, '"name":"qmp.send","span"')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    [case] = cases_of(output)
    assert (case["subject"], first(case)) == (["vm1"], "silent")
    assert case["answer"].startswith("QEMU had not answered query-blockstats when the trace ended")
    assert case["answer"].endswith("DomainGetBlockInfo waits for that.")


def test_what_qemu_answers(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    [case], _, _ = explained(stock_lab, engine, "monitor-stall", output, "domblkinfo vm1 vda")
    assert first(case) == "well"
    command = 'qemu-monitor-command vm1 \'{"execute":"no-such-command"}\''
    [case], printed, _ = explained(stock_lab, engine, "qmp", tmp_path / "q.jsonl", command)
    assert first(case) == "refused"
    assert "QEMU refused no-such-command, once: CommandNotFound: " in case["answer"]
    assert case["answer"].rpartition("CommandNotFound: ")[2].rstrip(".") in printed


def test_what_becomes_of_calls(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    asked = ("domblkinfo vm1 vda", "domstate no-such-domain")
    cases, _, told = explained(stock_lab, engine, "rpc", tmp_path / "t.jsonl", *asked)
    failed, well = [case for case in cases if first(case) != "delayed"]
    assert (failed["subject"], first(failed)) == (["DomainLookupByName"], "failed")
    assert "no-such-domain" in failed["answer"]
    assert "no-such-domain" in told
    assert first(well) == "well"
    output = tmp_path / "open.jsonl"
    with recording(stock_lab, engine, "rpc", output, asked[0]) as running:
        until(output, "remoteDispatchDomainGetBlockInfo")
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    open_, *_ = [case for case in cases_of(output) if first(case) != "delayed"]
    assert first(open_) == "running"
    assert open_["answer"].startswith("1 call of DomainGetBlockInfo had not returned")


def test_what_becomes_of_block_jobs(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    with staged(stock_lab) as stage:
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
        cases, _, told = explained(stock_lab, engine, "blockjob", tmp_path / "t.jsonl", *asked)
    assert {tuple(case["subject"]) for case in cases} == {("vm2", "vda")}
    assert [first(case) for case in cases] == [
        *("pivoted", "pivoted", "done", "aborted", "ready", "nothing-to-end")
    ]
    assert cases[-1]["answer"].partition("ended: ")[2].rstrip(".") in told
    assert cases[2]["answer"] == "The pull is done."


def test_a_commit_that_is_not_permitted(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A base that QEMU can read alone, as a profile of AppArmor would have it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that the daemon may not write")
    with staged(stock_lab) as stage:
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
            stock_lab,
            engine,
            "blockjob",
            tmp_path / "t.jsonl",
            "blockcommit vm2 vda --active --pivot --wait",
        )
    assert first(case) == "no-permission", case["answer"]
    assert f"may not open {base}" in case["answer"]
    assert "Permission denied" in told


def test_what_a_refresh_finds(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Files, one whose backing image is gone, and what is passed over; then no folder."""
    with staged(stock_lab) as stage:
        pool, gone = stage.images / "pool", stage.images / "gone"
        try:
            pool.mkdir()
            os.chown(pool, stock_lab.system.uid, stock_lab.system.gid)
            stock_lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
            (pool / "a.raw").write_bytes(bytes(512))
            (pool / "dangling.raw").symlink_to("none")
            os.mkfifo(pool / "fifo")
            unreadable = pool / "unreadable.raw"
            unreadable.write_bytes(bytes(512))
            unreadable.chmod(0)
            [found], _, _ = explained(
                stock_lab, engine, "pool-refresh", tmp_path / "a.jsonl", "pool-refresh pool"
            )
            base = stage.image("base.qcow2", MIB, "qcow2")
            stage.qemu_img(
                *("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)),
                str(pool / "top.qcow2"),
            )
            base.unlink()
            [over], _, _ = explained(
                stock_lab, engine, "pool-refresh", tmp_path / "b.jsonl", "pool-refresh pool"
            )
            pool.rename(gone)
            [missing], _, told = explained(
                stock_lab, engine, "pool-refresh", tmp_path / "c.jsonl", "pool-refresh pool"
            )
        finally:
            stock_lab.virsh("pool-destroy", "pool")
    assert first(found) == "refreshed"
    # The folder's file alone; of a daemon of root, nothing is unreadable.
    assert found["answer"].startswith("The refresh found 1 volume in ")
    assert first(over) in ("got-over", "refreshed"), over["answer"]
    assert over["answer"].startswith("The refresh found 2 volumes in ")
    assert first(missing) == "missing"
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


def test_what_memory_numbers_are(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A guest without a driver, which never got the 48 MiB that it should have."""
    with staged(stock_lab) as stage:
        file = stage.folder / "vm2.xml"
        file.write_text(MEMORY.format(emulator=stock_lab.system.emulator))
        stock_lab.virsh_checked("define", str(file))
        stock_lab.virsh_checked("start", "vm2")
        asked = ("dommemstat vm2", "dommemstat vm1", "dominfo vm2")
        cases, printed, _ = explained(stock_lab, engine, "memory", tmp_path / "t.jsonl", *asked)
        statistics, told, _ = explained(
            stock_lab, engine, "domstats", tmp_path / "s.jsonl", "domstats --balloon"
        )
    cases = [case for case in cases if case["explainer"] == "memory"]
    assert [(case["subject"], first(case)) for case in cases] == [
        (["vm2"], "nothing-reported"),
        (["vm1"], "no-balloon"),
        (["vm2"], "all-given"),
    ]
    assert documented("memory.md") <= answers(cases)
    assert "actual 65536\n" in printed
    for case in (cases[0], cases[2]):
        assert case["facts"][0]["value"] == 65536 * 1024
        assert "64.000 MiB" in case["answer"]
    # 16 MiB of guest, and QEMU itself.
    found = {case["subject"][0]: case for case in statistics if case["explainer"] == "memory"}
    assert first(found["vm1"]) == "rss-above-maximum"
    [rss] = [fact["value"] for fact in found["vm1"]["facts"] if fact["name"] == "rss"]
    assert f"balloon.rss={rss // 1024}\n" in told
    assert first(found["vm2"]) == "nothing-reported"


def test_qemu_that_ends_in_the_call(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Killed while libvirt waits for its answer: the error is raised on another thread."""
    output = tmp_path / "t.jsonl"
    with staged(stock_lab) as stage:
        image = stage.image("vda.raw", MIB)
        stage.start(disk_xml("file", file_source(image), "vda"))
        [qemu] = [
            pid
            for pid in stock_lab.processes
            if b"guest=vm2," in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(qemu, signal.SIGSTOP)
        line = [*VIRTRACE, "record", "blockinfo", "-p", str(stock_lab.pid), "--engine", engine]
        command = stock_lab.virsh_command("domblkinfo", "vm2", "vda")
        running = subprocess.Popen(
            [*line, "-o", str(output), "--", *command], stdout=subprocess.DEVNULL
        )
        try:
            until(output, '"name":"qmp.send","span"')
        finally:
            os.kill(qemu, signal.SIGKILL)
        assert running.wait(SECONDS) == 0
    [case] = cases_of(output)
    assert (case["subject"], first(case)) == (["vm2", "vda"], "qemu-gone"), case["answer"]
    assert "QEMU did not answer query-blockstats" in case["answer"]


OFF = "until virsh domstate vm2 | grep -q 'shut off'; do {}; done"
COMMAND = "virsh qemu-monitor-command vm2 "
# What the guest's system does, by QEMU's own hand: ACPI's register for the power, and the port of
# the panic device. The register takes words from the monitor of 5.2 and 7.2, and bytes from that of
# 11.1.
POWER_OFF = f"{COMMAND} --hmp 'o/w 0x604 0x2000'; {COMMAND} --hmp 'o/b 0x605 0x20'"
PANIC = f"{COMMAND} --hmp 'o/b 0x505 1'"
QUIT = f'{COMMAND} \'{{"execute": "quit"}}\''
WHO = {
    "by-call": ("virsh destroy vm2", "It was ended by DomainDestroy, which process "),
    "during-call": (
        "virsh suspend vm2; virsh resume vm2",
        "It was paused while DomainSuspend ran, which process ",
    ),
    "by-signal": ("kill -TERM $QEMU; " + OFF.format(":"), "by a signal: SIGTERM, "),
    "without-a-word": ("kill -KILL $QEMU; " + OFF.format(":"), "QEMU ended without a word"),
    "after-command": (f"{QUIT}; " + OFF.format(":"), " by DomainMonitorCommand."),
    # Until the firmware has set the register up, nothing happens.
    "by-guest": (OFF.format(POWER_OFF), "no client had asked it to in the trace."),
    "guest-was-asked": (
        "virsh shutdown vm2; " + OFF.format(POWER_OFF),
        "The system in the guest shut itself down, ",
    ),
    "panic": (f"{PANIC}; " + OFF.format(":"), "the system in the guest reported a panic."),
}


@pytest.mark.parametrize("name", WHO)
def test_who_ended_a_guest(stock_lab: Lab, engine: str, tmp_path: Path, name: str) -> None:
    command, words = WHO[name]
    output = tmp_path / "t.jsonl"
    with staged(stock_lab) as stage:
        more = "<features><acpi/></features><on_crash>destroy</on_crash>"
        stock_lab.define("vm2", stage.folder / "vm2.xml", "<panic model='isa'/>", more)
        stock_lab.virsh_checked("start", "vm2")
        [qemu] = [
            pid for pid in stock_lab.processes if b"guest=vm2," in processes.command_line(pid)
        ]
        done = virtrace(
            *("record", "guest-end", "-p", str(stock_lab.pid), "--engine", engine),
            *("-o", str(output), "--", "sh", "-c", command),
            env={**os.environ, "QEMU": str(qemu), "LIBVIRT_DEFAULT_URI": stock_lab.uri},
        )
        assert done.returncode == 0, done.stderr
    whole_trace(output)
    [case] = cases_of(output)
    if name == "after-command" and first(case) == "by-qmp":
        # QEMU says SHUTDOWN before it ends, and libvirt may or may not still read it.
        name, words = "by-qmp", "QEMU received the QMP command quit."
    assert (case["subject"], first(case)) == (["vm2"], name), case["answer"]
    assert words in case["answer"]
    steps = [fact["name"] for fact in case["facts"]]
    assert ("QEMU: SHUTDOWN (guest-shutdown)" in steps) == (name in ("by-guest", "guest-was-asked"))
    assert ("QEMU: SHUTDOWN (host-qmp-quit)" in steps) == (name == "by-qmp")
    assert ("QEMU: GUEST_PANICKED" in steps) == (name == "panic")
    assert ("went on" in steps) == (name == "during-call")
    if name in ("by-call", "during-call", "guest-was-asked"):
        [call] = case["calls"]
        shown = virtrace("show", "--json", output).stdout
        [made] = [each for each in json.loads(shown)["calls"] if each["call"] == call]
        procedure = {
            "by-call": "remoteDispatchDomainDestroy",
            "during-call": "remoteDispatchDomainSuspend",
            "guest-was-asked": "remoteDispatchDomainShutdown",
        }[name]
        assert procedure in json.dumps(made)
