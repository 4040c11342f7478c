"""A guest that writes to its memory leaves for another host, on all releases."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_explainers import cases_of
from tests.lab.test_qemu import RELEASES, lab_of
from tests.support.command import virtrace
from tests.support.dirtying import PAGE, PAGES, kernel
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from virtrace.errors import DONE, Unavailable
from virtrace.image.model import Module
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, domain_xml, file_source
from virtrace.lab.stage import GUEST_NAME, Stage
from virtrace.targets.qemu.migration import ram_layout
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

# What may be sent in a second, in MiB: the guest writes to 8 MiB, over and over.
SLOWEST, SLOW, FAST = 4, 8, 1000
HELD_BACK = 20


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


@pytest.fixture(scope="module")
def there(lab: Lab) -> Iterator[Lab]:
    """The same libvirt on another host, as far as it can tell."""
    other = Lab(Path(f"{lab.folder}-there"), release=lab.release, hostname="elsewhere")
    try:
        other.up()
        yield other
    finally:
        other.down()


@pytest.fixture
def stage(lab: Lab, there: Lab) -> Iterator[Stage]:
    """A guest that writes to its memory."""
    with staged(lab) as stage:
        files = {stage.images / "kernel": kernel(), stage.images / "cd": bytes(MIB)}
        for one in (lab, there):
            for file, content in files.items():
                outside = Path(f"/proc/{one.pid}/root{file}")
                outside.parent.mkdir(parents=True, exist_ok=True)
                outside.write_bytes(content)
                os.chown(outside, lab.system.uid, lab.system.gid)
        boots, drive = files
        disk = (
            f"<disk type='file' device='cdrom'>{file_source(drive)}"
            "<target dev='hda' bus='ide'/><readonly/></disk>"
        )
        xml = domain_xml(GUEST_NAME, lab.system.emulator, False, disk)
        definition = stage.folder / "vm2.xml"
        definition.write_text(xml.replace("<boot dev='hd'/>", f"<kernel>{boots}</kernel>"))
        stage.virsh("define", str(definition))
        stage.virsh("start", GUEST_NAME)
        yield stage
        there.virsh("destroy", GUEST_NAME)


def migrates(lab: Lab, there: Lab, bandwidth: int, *options: str) -> str:
    asked = ("migrate", GUEST_NAME, there.uri, "--live", "--bandwidth", str(bandwidth), *options)
    here = ("--migrateuri", "tcp://127.0.0.1", "--listen-address", "127.0.0.1")
    return shlex.join(lab.virsh_command(*asked, *here))


def record(lab: Lab, output: Path, *lines: str) -> Trace:
    """Record while a shell does something."""
    script = "; ".join([f'ask() {{ {shlex.join(lab.virsh_command())} "$@"; }}', *lines])
    options = ("-p", lab.pid, "--domain", GUEST_NAME, "-o", output)
    done = virtrace("record", "migration-source", *options, "--", "sh", "-c", script)
    assert done.returncode == DONE, done.stdout + done.stderr
    trace = read_trace(output)
    assert trace.problems == []
    return trace


def until(pattern: str) -> str:
    """Wait until virsh says something of the migration, unless it has ended."""
    asked = f"ask domjobinfo {GUEST_NAME} | grep -Eq '{pattern}'"
    return f"until {asked}; do kill -0 $client || exit 1; sleep 0.1; done"


def named(trace: Trace, name: str) -> list[Event]:
    return [event for event in trace.events if event.name == name]


def assert_as_qemu_answers(trace: Trace, bandwidth: int) -> None:
    """Compare what was read with what QEMU answered to query-migrate."""
    answers = [
        (event, event.values["json"]["return"])
        for event in named(trace, "qmp.reply")
        if "ram" in (event.values["json"].get("return") or {})
    ]
    assert answers
    ours = [event for event in trace.events if event.name in ("migration.pass", "migration.state")]
    asked = {event.values["json"].get("id"): event for event in named(trace, "qmp.send")}
    misses = []
    for reply, told in answers:
        ram = told["ram"]
        assert ram["page-size"] == PAGE
        sent_ns = asked[reply.values["json"]["id"]].t_ns
        if any(sent_ns < event.t_ns < reply.t_ns for event in ours):
            continue
        before = [event for event in ours if event.t_ns < sent_ns]
        last, passes = before[-1].values, [one for one in before if one.name == "migration.pass"]
        following = [one.values for one in ours if one.t_ns > reply.t_ns][:1]
        # QEMU counts a pass, and what is left for it, before it tells of it.
        if ram["dirty-sync-count"] in [one["passes"] for one in following]:
            continue
        assert last["passes"] == ram["dirty-sync-count"]
        if told["status"] == "active" and passes:
            assert passes[-1].values["dirty_rate"] == ram["dirty-pages-rate"]
            sent = ram["normal"] - last["sent"] + ram["duplicate"] - last["zero"]
            left = (last["left"] - sent, *(one["left"] for one in following))
            misses.append(min(abs(each - ram["remaining"] // PAGE) for each in left))
        elif told["status"] in ("completed", "cancelled"):
            assert (last["sent"], last["zero"]) == (ram["normal"], ram["duplicate"])
    # QEMU counts a page as sent, and as no longer left, one after the other, while it answers.
    burst = bandwidth * MIB // PAGE
    assert all(miss <= burst for miss in misses)
    assert len([miss for miss in misses if miss]) <= len(misses) // 2


def of_passes(output: Path) -> list[Any]:
    return [case for case in cases_of(output) if case["explainer"] == "passes"]


def assert_told(lab: Lab, output: Path, scenario: str, cause: str) -> Any:
    """Note the scenario for docs/scenarios.md, and return the case."""
    (case,) = of_passes(output)
    release = ".".join(map(str, lab.libvirt_version))
    assert_answers(output, [case], {scenario: (GUEST_NAME, cause)}, release)
    return case


def assert_counted(trace: Trace) -> None:
    """The passes of a guest that writes to 2048 pages, and never to others."""
    passes = [event.values for event in named(trace, "migration.pass")]
    # QEMU 11.1 tells of the second one first.
    first = passes[0]["pass"]
    assert first in (1, 2)
    assert [each["pass"] for each in passes] == [*range(first, first + len(passes))]
    assert [each["passes"] for each in passes] == [each["pass"] for each in passes]
    # The first one sends all of the memory.
    assert {each["left"] for each in passes if each["pass"] != 1} == {PAGES}


def test_a_migration_that_does_not_end(stage: Stage, there: Lab, tmp_path: Path) -> None:
    """QEMU holds the guest back, but not by enough."""
    lab, output, said = stage.lab, tmp_path / "t.jsonl", tmp_path / "said"
    most = {"execute": "migrate-set-parameters", "arguments": {"max-cpu-throttle": HELD_BACK}}
    assert "return" in lab.qmp(most, GUEST_NAME)
    held = ("--auto-converge", "--auto-converge-initial", str(HELD_BACK))
    trace = record(
        lab,
        output,
        f"{migrates(lab, there, SLOWEST, *held)} >{said} 2>&1 & client=$!",
        until("^Auto converge throttle:"),
        until("^Iteration: +(9|1[0-9])"),
    )
    assert said.read_text() == ""
    lab.virsh_checked("domjobabort", GUEST_NAME)
    assert_as_qemu_answers(trace, SLOWEST)
    assert_counted(trace)
    # It is held back as much after each pass, and that is no change.
    assert [event.values for event in named(trace, "migration.throttle")] == [
        {"percent": HELD_BACK}
    ]
    case = assert_told(
        lab, output, "a guest that writes faster than is sent, and is held", "endless"
    )
    assert f"though the guest is held back {HELD_BACK} % of the time" in case["answer"]
    facts = {fact["name"]: fact["value"] for fact in case["facts"]}
    assert facts["max-bandwidth"] == SLOWEST * MIB


def test_a_migration_that_is_given_up(stage: Stage, there: Lab, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    trace = record(
        lab,
        output,
        f"{migrates(lab, there, SLOW)} & client=$!",
        until("^Iteration: +[5-9]"),
        f"ask domjobabort {GUEST_NAME}",
        "wait $client; true",
    )
    assert_as_qemu_answers(trace, SLOW)
    assert_counted(trace)
    assert named(trace, "migration.throttle") == []
    case = assert_told(lab, output, "a guest that writes faster than is sent; given up", "given-up")
    commands = [step["command"] for step in case["causes"][0]["do"]]
    # 8 MiB within the 300 ms that the guest may stand still.
    assert f"virsh migrate-setspeed -- {GUEST_NAME} 27" in commands


def test_a_migration_that_ends(stage: Stage, there: Lab, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    trace = record(lab, output, migrates(lab, there, FAST))
    assert there.virsh_checked("domstate", GUEST_NAME).strip() == "running"
    assert_as_qemu_answers(trace, FAST)
    assert_told(lab, output, "a guest that leaves", "completed")
    figures = lab.virsh_checked("domjobinfo", GUEST_NAME, "--completed")
    words = dict(line.split(":", 1) for line in figures.splitlines() if ":" in line)
    final = named(trace, "migration.state")[-1].values
    assert int(words["Normal pages"]) == final["sent"]
    assert int(words["Constant pages"]) == final["zero"]
    assert int(words["Iteration"]) == final["passes"]


def module(file: Path) -> Module:
    return Module(str(file), file, 1 << 40, 2 << 40, 0, False)


def test_a_build_that_answers_with_other_numbers(tmp_path: Path) -> None:
    """A number that query-migrate does not report from there is none."""
    stock, changed = Path("/usr/bin/qemu-system-x86_64"), tmp_path / "changed"
    layout = ram_layout(module(stock))
    elf = module(stock).elf
    start = elf.exported_function("qmp_query_migrate")
    assert start is not None
    (answers,) = elf.called_by(start, "ram_bytes_total")
    # mov NORMAL(%rip),%rax; mov %rax,0x28(%rdx), as the build of these tests has it.
    code, counter = elf.content(answers, 1 << 10), layout.counters["normal"]
    assert code is not None
    at = next(
        at
        for at in range(len(code))
        if code[at : at + 3] == b"\x48\x8b\x05"
        and answers + at + 7 + int.from_bytes(code[at + 3 : at + 7], "little") == counter
    )
    stores = code[at : at + 11]
    assert stores.endswith(b"\x48\x89\x42\x28")
    content = stock.read_bytes()
    assert content.count(stores) == 1
    changed.write_bytes(content.replace(stores, stores[:-1] + b"\x20"))
    with pytest.raises(Unavailable, match="does not show where QEMU counts a migration"):
        ram_layout(module(changed))
