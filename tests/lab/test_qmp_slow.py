"""What QEMU's main loop did while QMP was slow, on all releases."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.lab.test_explainers import cases_of
from tests.lab.test_qemu import RELEASES, lab_of
from tests.support.command import virtrace
from tests.support.frozen import FROZEN_SECONDS, Frozen, freezable
from tests.support.hanging import qemu_of
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from virtrace.analysis.explain.mainloops import SLOW_NS, LoopCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.errors import DONE
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, backend, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.report.explanation import fill_text
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

FROZEN_NS = int(FROZEN_SECONDS * 1e9)


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    with staged(lab) as stage:
        yield stage


@pytest.fixture(scope="module")
def frozen(stage: Stage) -> Iterator[Frozen]:
    """A guest with a disk on the file system, and a second monitor."""
    with freezable(stage) as frozen:
        frozen.run(f"truncate -s {MIB} vda.raw; chown {stage.lab.system.uid} vda.raw")
        disk = frozen.folder / "vda.raw"
        socket = f"unix:{stage.images}/second,server=on,wait=off"
        values = "".join(f"<qemu:arg value={quoteattr(one)}/>" for one in ("-qmp", socket))
        space = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
        more = f"<qemu:commandline {space}>{values}</qemu:commandline>"
        stage.start(disk_xml("file", file_source(disk), TARGET), more)
        yield frozen


def record(lab: Lab, output: Path, *command: str) -> Trace:
    options = ("-p", lab.pid, "--domain", GUEST_NAME, "-o", output)
    done = virtrace("record", "qmp-slow", *options, "--", *command)
    assert done.returncode == DONE, done.stdout + done.stderr
    trace = read_trace(output)
    assert trace.problems == []
    assert trace.footer is not None
    assert trace.footer["dropped"] == 0
    return trace


def named(trace: Trace, name: str) -> list[Event]:
    return [event for event in trace.events if event.name == name]


def explained(output: Path, trace: Trace, about: str) -> Explanation[LoopCase]:
    """What is said of a command, which was done or waited for itself; a busy host has more."""
    found = list(explain_trace(trace, "trace"))
    assert len(cases_of(output)) == len(found)
    (one,) = (each for each in found if (each.case.own or each.case.waiting[0].command) == about)
    return one


def answer(explanation: Explanation[LoopCase]) -> tuple[str, str]:
    """The first cause, and what it says, without how long."""
    cause = explanation.findings[0].cause
    said = fill_text(cause.says.replace("{busy}", "long"), explanation.case)
    return cause.name, said


def assert_told(lab: Lab, output: Path, cause: str, scenario: str) -> None:
    """Note the scenario for docs/scenarios.md."""
    case, *_ = (one for one in cases_of(output) if one["causes"][0]["name"] == cause)
    told = {scenario: (" ".join(case["subject"]), case["causes"][0]["name"])}
    assert_answers(output, [case], told, ".".join(map(str, lab.libvirt_version)))


def test_a_command_waits_for_requests(
    lab: Lab, stage: Stage, frozen: Frozen, tmp_path: Path
) -> None:
    output, qemu = tmp_path / "t.jsonl", qemu_of(lab, GUEST_NAME)
    monitor = shlex.join(lab.virsh_command("qemu-monitor-command", GUEST_NAME, "--hmp"))
    write = f"{monitor} 'qemu-io -d {backend(0)} \"aio_write 0 4096\"'"
    suspend = shlex.join(lab.virsh_command("suspend", GUEST_NAME))
    trace = record(lab, output, *frozen.meanwhile(qemu, write, suspend))
    lab.virsh_checked("resume", GUEST_NAME)
    found = explained(output, trace, "stop")
    file = frozen.folder / "vda.raw"
    assert answer(found) == (
        "requests",
        "QEMU's main loop was busy for long for the command stop: it waited until requests to "
        f"disks were done, while another thread was in a write to {file}; no other command waited "
        "meanwhile.",
    )
    (wait,) = named(trace, "loop.wait")
    stack = str(wait.values["stack"])
    assert "aio_poll" in stack
    assert "qmp_marshal_stop" in stack
    (handled,) = named(trace, "qmp.handled")
    assert handled.values["command"] == "stop"
    (call,) = named(trace, "call.pwrite")
    assert (call.values["offset"], call.values["bytes"], call.values["result"]) == (0, 4096, 4096)
    assert call.tid != wait.tid
    assert_took(call, wait, handled)
    assert_told(
        lab, output, "requests", "a guest is paused while a write waits for its file system"
    )


def assert_took(*events: Event) -> None:
    for event in events:
        took = event.values["took_ns"]
        assert isinstance(took, int)
        assert took > FROZEN_NS / 2


def test_a_command_waits_for_another_one(
    lab: Lab, stage: Stage, frozen: Frozen, tmp_path: Path
) -> None:
    """The other one came from another monitor."""
    output, qemu = tmp_path / "t.jsonl", qemu_of(lab, GUEST_NAME)
    file = frozen.folder / "memory"
    saves = {"val": 0, "size": 4096, "filename": str(file)}
    asks = [{"execute": "qmp_capabilities"}, {"execute": "pmemsave", "arguments": saves}]
    place = f"/proc/{lab.pid}/root{stage.images}/second"
    talk = (
        "import json, socket; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({place!r}); f = s.makefile(); f.readline(); "
        f"[(s.sendall(json.dumps(a).encode()), f.readline()) for a in {asks!r}]"
    )
    save = f"python3 -c {shlex.quote(talk)}"
    info = shlex.join(lab.virsh_command("domblkstat", GUEST_NAME, TARGET))
    trace = record(lab, output, *frozen.meanwhile(qemu, save, info))
    found = explained(output, trace, "pmemsave")
    for_ = "for the command pmemsave"
    if lab.release == "bullseye":
        # There the C library itself opens it, and not by the function that QEMU calls.
        assert answer(found) == (
            "own",
            f"QEMU's main loop was busy for long {for_}, in none of the calls that are traced; "
            "query-blockstats waited meanwhile.",
        )
        assert_told(lab, output, "own", "a command waits while another one opens a file")
        return
    assert answer(found) == (
        "file",
        f"QEMU's main loop was busy for long in opening {file} {for_}; query-blockstats waited "
        "meanwhile.",
    )
    (call,) = named(trace, "call.open")
    assert call.values["path"] == str(file)
    stack = str(call.values["stack"])
    assert "qmp_marshal_pmemsave" in stack
    assert "main_loop_wait" in stack
    assert_took(call, *named(trace, "loop.dispatch"))
    assert_told(lab, output, "file", "a command waits while another one opens a file")


def test_a_command_that_does_not_hold_the_main_loop(
    lab: Lab, stage: Stage, frozen: Frozen, tmp_path: Path
) -> None:
    output, qemu = tmp_path / "t.jsonl", qemu_of(lab, GUEST_NAME)
    resize = lab.virsh_command("blockresize", GUEST_NAME, TARGET, f"{2 * MIB}B")
    trace = record(lab, output, *frozen.meanwhile(qemu, shlex.join(resize)))
    found = explained(output, trace, "block_resize")
    assert answer(found) == (
        "command",
        "The command block_resize itself took long; QEMU's main loop was not busy meanwhile.",
    )
    assert_took(*named(trace, "qmp.handled"), *named(trace, "call.ftruncate"))
    assert_told(lab, output, "command", "a command takes long beside the main loop")


def test_nothing_is_slow(lab: Lab, frozen: Frozen, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    trace = record(lab, output, *lab.virsh_command("domblkstat", GUEST_NAME, TARGET))
    kinds = {event.name for event in trace.events} - {"file.open", "qmp.send", "qmp.reply"}
    sent, *_, answered = (event for event in trace.events if event.name.startswith("qmp."))
    if not kinds and answered.t_ns - sent.t_ns < SLOW_NS:
        assert_told(lab, output, "well", "no command is slow")
    listed = {event.values["file"] for event in named(trace, "file.open")}
    assert str(frozen.folder / "vda.raw") in listed
    assert json.dumps(trace.header["qemu"]["probes"]).count("call.") == 12
