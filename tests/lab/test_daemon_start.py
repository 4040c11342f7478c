"""A daemon is traced from its start, on every release, and what is said of that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_catalogue import until
from tests.lab.test_explainers import Case, cases_of
from tests.lab.tracing import whole_trace
from tests.support.command import SECONDS, VIRTRACE
from tests.support.hanging import relaunch
from tests.support.intact import assert_untraced_and_intact
from tests.support.mounts import mounted
from tests.support.paths import REPOSITORY
from tests.support.releases import RELEASES
from tests.support.scenarios import assert_answers
from tests.support.waiting import wait_for_end, wait_until
from virtrace.errors import INCOMPLETE, INTERRUPTED
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import Trace

# In their order, by folder; and their modules.
DRIVERS = {
    **{name: name for name in ("network", "interface")},
    "secrets": "secret",
    **{name: name for name in ("storage", "nodedev", "qemu")},
}
MODULES = "*/libvirt/connection-driver/*.so"


class OwnLab(Lab):
    """Its daemon is a copy, so that those of other tests are other programs."""

    def program(self) -> str:
        return str(self.folder / "own" / "sbin" / "libvirtd")

    def launch(self) -> None:
        copy = Path(self.program())
        if not copy.exists():
            copy.parent.mkdir(parents=True)
            shutil.copy(self.system.outside(self.system.libvirtd), copy)
            # Where its libraries are looked for.
            (copy.parent.parent / "lib").symlink_to(self.system.outside("/usr/lib"))
        super().launch()


@pytest.fixture(params=RELEASES)
def own_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("only root can use the kernel's probes")
    release = None if request.param == "stock_lab" else request.param
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    lab = OwnLab(folder, release=release)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


def held(lab: Lab) -> Path:
    """While this exists, a daemon that is begun with `holding` stands at its beginning."""
    return lab.folder / "held"


def holding(lab: Lab) -> tuple[str, str]:
    """The words before a daemon's that let `held` hold it."""
    library = lab.folder / "held_start.so"
    if not library.exists():
        source = REPOSITORY / "tests" / "support" / "held_start.c"
        define = f'-DHELD="{held(lab)}"'
        subprocess.run(["gcc", "-shared", "-fPIC", define, source, "-o", library], check=True)
    return "env", f"LD_PRELOAD={library}"


@contextmanager
def recorded(lab: Lab, output: Path, *, ends: bool = False) -> Iterator[None]:
    """Record the next start of the daemon by the kernel's probes. ends: whether it ends itself.

    However busy this machine is, the daemon goes on when the probes are there.
    """
    held(lab).touch()

    def let_go() -> None:
        until(output, '"type":"header"')
        held(lab).unlink()

    options = ("--process", lab.program(), "-o", str(output))
    with subprocess.Popen(
        [*VIRTRACE, "record", "daemon-start", *options], stdout=subprocess.PIPE, text=True
    ) as running:
        output_of = running.stdout
        assert output_of is not None
        wait_until(lambda: "waiting for" in output_of.readline(), "it waits")
        # Nothing else reads what it prints.
        drain = threading.Thread(target=output_of.read, daemon=True)
        drain.start()
        releaser = threading.Thread(target=let_go)
        releaser.start()
        yield
        releaser.join()
        if not ends:
            running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == (INCOMPLETE if ends else INTERRUPTED)
        drain.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a daemon a hook script")
def test_gdb_records_a_start_that_a_hook_holds(tmp_path: Path) -> None:
    """At the start of the hook script, all modules are loaded, and no driver has begun."""
    output = tmp_path / "t.jsonl"
    with bring_up() as lab:
        place = Path("/etc/libvirt")
        runs, held = lab.folder / "run" / "hook-runs", lab.folder / "run" / "held"
        held.touch()
        waits = f"echo >{runs}; while [ -e {held} ]; do :; done"
        script = f'#!/bin/sh\n[ "$2" != start ] || {{ {waits}; }}\n'
        with mounted(lab.pid, place, "-t", "tmpfs", "-o", "mode=755", "tmpfs"):
            folder = Path(f"/proc/{lab.pid}/root") / place.relative_to("/") / "hooks"
            folder.mkdir()
            (folder / "daemon").write_text(script)
            (folder / "daemon").chmod(0o755)
            restart = threading.Thread(target=relaunch, args=(lab,))
            restart.start()
            wait_until(runs.exists, "the hook script runs")
            options = ("-p", str(lab.pid), "--engine", "gdb", "-o", str(output))
            with subprocess.Popen(
                [*VIRTRACE, "record", "daemon-start", *options], stdout=subprocess.DEVNULL
            ) as running:
                until(output, '"type":"header"')
                held.unlink()
                restart.join()
                lab.virsh_checked("dommemstat", "vm1")
                running.send_signal(signal.SIGINT)
                assert running.wait(SECONDS) == INTERRUPTED
    case, causes, _ = explained(output)
    assert causes == ["serves"], case["answer"]
    shown = facts(case)
    assert [name for name in shown if name.startswith("driver ")] == [
        f"driver {name}" for name in DRIVERS
    ]
    assert "connects to vm1" in shown


def explained(output: Path) -> tuple[Case, list[str], Trace]:
    """The case, its causes, and the trace."""
    [case] = [case for case in cases_of(output) if case["explainer"] == "daemons"]
    return case, [cause["name"] for cause in case["causes"]], whole_trace(output)


def assert_answer(output: Path, case: Case, scenario: str, cause: str) -> None:
    """The first cause of one start, kept for the page of scenarios."""
    assert_answers(output, [case], {scenario: (" ".join(case["subject"]), cause)})


def facts(case: Case) -> dict[str, Case]:
    return {fact["name"].strip(): fact for fact in case["facts"]}


def test_a_start_is_recorded_from_its_beginning(own_lab: Lab, tmp_path: Path) -> None:
    lab = own_lab
    capabilities = lab.folder / "cache" / "libvirt" / "qemu" / "cache" / "capabilities"
    shutil.rmtree(capabilities)
    cold, warm = tmp_path / "cold.jsonl", tmp_path / "warm.jsonl"
    with recorded(lab, cold):
        relaunch(lab, *holding(lab))
        # It waits until the daemon is connected to the guest again.
        lab.virsh_checked("dommemstat", "vm1")
    case, causes, trace = explained(cold)
    assert trace.header["target"]["pid"] == lab.pid
    assert causes == ["probed"], case["answer"]
    assert_answer(cold, case, "a daemon that has to find out what QEMU can do", "probed")
    assert lab.system.emulator in case["answer"]
    assert any(capabilities.iterdir())
    shown = facts(case)
    drivers = [name.removeprefix("driver ") for name in shown if name.startswith("driver ")]
    there = {file.stem for file in Path(lab.system.outside("/usr/lib")).glob(MODULES)}
    assert drivers == [
        name for name, module in DRIVERS.items() if f"libvirt_driver_{module}" in there
    ]
    # Each driver has the lock that it was seen to take.
    for each in trace.events:
        if each.name == "start.driver":
            lock = Path(each.values["folder"]) / f"{each.values['name']}.pid"
            assert lock.stat().st_uid == lab.system.uid
    assert "asks" in shown["driver qemu"]["meaning"]
    assert shown["serves them"]["value"] >= sum(shown[f"driver {one}"]["value"] for one in drivers)
    assert "connects to vm1" in shown
    [first] = [each for each in trace.events if each.name == "start.ready"]
    [state] = [each for each in trace.events if each.name == "virStateInitialize"][:1]
    assert state.type == "enter"
    assert first.t_ns < shown["serves them"]["value"]

    with lab.stalled(), recorded(lab, warm):
        relaunch(lab, *holding(lab))
        until(warm, '"init-vm1"')
        until(warm, "qmp_capabilities")
        lab.virsh_checked("uri")
    case, causes, _ = explained(warm)
    assert causes == ["guest-silent", "serves"], case["answer"]
    assert_answer(warm, case, "a guest whose QEMU is stopped", "guest-silent")
    assert "vm1 has not answered qmp_capabilities" in case["answer"]
    assert_untraced_and_intact(lab.pid)


def test_why_it_does_not_serve(own_lab: Lab, tmp_path: Path) -> None:
    """A guest that ended while no daemon ran; and a setting that no driver can read."""
    lab, failing = own_lab, tmp_path / "failing.jsonl"
    settings = lab.folder / "config" / "libvirt" / "qemu.conf"
    lost = tmp_path / "lost.jsonl"
    with recorded(lab, lost):
        [qemu] = [
            pid for pid in lab.processes if b"guest=vm1," in processes.command_line(pid)
        ]  # fmt: skip
        os.kill(lab.pid, signal.SIGSTOP)
        os.kill(qemu, signal.SIGKILL)
        relaunch(lab, *holding(lab))
        lab.virsh_checked("domstate", "vm1", "--reason")
        wait_until(lambda: "shut off" in lab.virsh_checked("domstate", "vm1"), "vm1 is over")
    case, _, _ = explained(lost)
    assert_answer(lost, case, "a guest that ended while no daemon ran", "guest-lost")
    assert "vm1" in case["answer"]

    whole = settings.read_text()
    settings.write_text(whole + "no such setting\n")
    pid = lab.pid
    with recorded(lab, failing, ends=True):
        os.kill(pid, signal.SIGTERM)
        wait_for_end(pid)
        lab.system.attempt(*holding(lab), lab.program(), "-d", as_daemon=True)
    case, _, _ = explained(failing)
    assert_answer(failing, case, "a setting that no driver can read", "failed")
    assert "qemu.conf" in case["answer"]
    # In the daemon's own log.
    assert case["answer"].rpartition(": ")[2].rstrip(".") in lab.log.read_text()
