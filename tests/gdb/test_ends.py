"""Every way that a trace ends, and what it leaves behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.gdb.harness import (
    NAME,
    ROOT,
    SCRIPTS,
    Daemon,
    Tracing,
    calls,
    check_ended,
    disks,
    events,
    gdb_command,
    start,
)
from tests.support.command import VIRTRACE, virtrace
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tests.support.waiting import PATIENCE, wait_until
from tests.support.writer import writer_of
from virtrace.errors import BAD_INPUT, DONE, INCOMPLETE, INTERRUPTED, NOT_TRACED
from virtrace.trace.reader import read_trace

INSTALLED = Path(sys.executable).with_name("virtrace")
RAISING = REPOSITORY / "tests" / "faults" / "raising.py"
INT, TERM, HUP, KILL, USR1, CHLD = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGKILL,
    signal.SIGUSR1,
    signal.SIGCHLD,
)


def test_no_thread_of_ours_takes_what_gdb_waits_for(daemon: Daemon, tmp_path: Path) -> None:
    """GDB suspends itself until a SIGCHLD comes; delivered to another thread it wakes nobody."""
    tracing = start(daemon, tmp_path / "t.jsonl")
    gdb = tracing.process.pid
    # The first is GDB's own, under which the others are.
    others = [task for task in os.listdir(f"/proc/{gdb}/task") if int(task) != gdb]
    assert len(others) >= 2
    for task in others:
        status = Path(f"/proc/{gdb}/task/{task}/status").read_text()
        [blocked] = re.findall(r"^SigBlk:\s(\w+)$", status, re.M)
        assert int(blocked, 16) >> (CHLD - 1) & 1
    tracing.signal(INT)
    assert tracing.ended()[0] == INTERRUPTED


@pytest.mark.parametrize(
    "signals", [[INT], [INT, INT], [TERM], [HUP], [HUP, INT, TERM, INT]], ids=str
)
def test_a_signal_ends_the_trace_and_the_program_runs_on(
    daemon: Daemon, tmp_path: Path, signals: list[int]
) -> None:
    output = tmp_path / "t.jsonl"
    received = daemon.do("signals")
    tracing = start(daemon, output)
    daemon.do("call vm1 vda")
    for number in signals:
        tracing.signal(number)
    status, printed = tracing.ended()
    assert status == INTERRUPTED, printed
    assert str(output) in printed
    assert disks(check_ended(output, "interrupt")) == ["vda"]
    assert_untraced_and_intact(daemon.pid)
    assert len(daemon.do("call vm1 vda")) == 1
    # Nothing of what ended the trace was for the program.
    assert daemon.do("signals") == received


def test_only_one_thread_of_gdb_can_take_the_signals_that_end_a_trace(
    daemon: Daemon, tmp_path: Path
) -> None:
    """GDB dies of those that reach a thread which has them unblocked, breakpoints inserted."""
    tracing = start(daemon, tmp_path / "t.jsonl")
    wait_until(lambda: takers(tracing.process.pid, USR1) != [], "a thread that waits for signals")
    open_to = {
        number.name: takers(tracing.process.pid, number) for number in (USR1, HUP, INT, TERM)
    }
    assert tracing.finish()[0] == DONE
    assert {len(names) for names in open_to.values()} == {1}, open_to


def takers(pid: int, number: int) -> list[str]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(
            line.split(":\t", 1)
            for line in (task / "status").read_text().splitlines()
            if ":" in line
        )
        if not int(status["SigBlk"], 16) & 1 << (number - 1):
            found.append(status["Name"])
    return found


def is_long(file: Path) -> bool:
    return file.stat().st_size > 200_000


def test_a_trace_can_end_in_the_middle_of_many_calls(daemon: Daemon, tmp_path: Path) -> None:
    for attempt in range(4):
        output = tmp_path / f"{attempt}.jsonl"
        tracing = start(daemon, output)
        daemon.ask("threads 6 300")
        wait_until(partial(is_long, output), "calls in the trace")
        tracing.signal(INT)
        status, printed = tracing.ended()
        assert status == INTERRUPTED, printed
        logged = daemon.answer()
        assert len(logged) == 1800
        assert {line.split()[3] for line in logged} == {"0"}
        assert_untraced_and_intact(daemon.pid)
        found = check_ended(output, "interrupt")
        told = {event.values["info"]["capacity"] for event in events(found, ROOT, "exit")}
        assert 0 < len(told) < 1800
        assert told <= {int(line.split()[4]) for line in logged}
        for tree in calls(found).values():
            kinds = {"enter": 0, "exit": 0, "lost": 0, "point": 0}
            for event in tree:
                kinds[event.type] += 1
            assert kinds["enter"] == kinds["exit"] + kinds["lost"]


def test_signals_from_outside_reach_the_program_and_the_trace_goes_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    def received() -> list[int]:
        return [int(number) for number in daemon.do("signals")[0].split()]

    def has_received(i: int, before: int) -> bool:
        return received()[i] > before

    before = received()
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output)
    for i, number in enumerate((USR1, CHLD, INT)):
        os.kill(daemon.pid, number)
        wait_until(partial(has_received, i, before[i]), f"{number.name} in the program")
        daemon.do(f"call vm1 after-{number.name}")
    status, printed = tracing.finish()
    assert status == DONE, printed
    found = check_ended(output, "done")
    assert disks(found) == ["after-SIGUSR1", "after-SIGCHLD", "after-SIGINT"]
    assert received() == [count + 1 for count in before]
    assert_untraced_and_intact(daemon.pid)


def test_the_program_exits_in_a_traced_call(mortal: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda 3")
    mortal.ask("call vm1 exit")
    assert mortal.exit_status() == 9
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    found = check_ended(output, "target-exit")
    assert disks(found) == ["vda", "vda", "vda", "exit"]
    *whole, last = calls(found).values()
    assert [tree[-1].type for tree in whole] == ["exit"] * 3
    assert [event.type for event in last] == ["enter"] * 3 + ["lost"] * 3


def test_the_program_is_killed(mortal: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda")
    os.kill(mortal.pid, signal.SIGKILL)
    assert mortal.exit_status() == -signal.SIGKILL
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert disks(check_ended(output, "target-exit")) == ["vda"]


def test_the_trace_ends_after_so_many_calls(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output, CALLS="2", WHERE="disk=vdb")
    for disk in ("vdb", "vda", "vdb"):
        daemon.do(f"call vm1 {disk}")
    status, printed = tracing.ended()
    assert status == DONE, printed
    found = check_ended(output, "limit")
    assert disks(found) == ["vdb", "vdb"]
    assert [event.type for event in found.events if event.name == ROOT] == ["enter", "exit"] * 2
    assert_untraced_and_intact(daemon.pid)
    assert len(daemon.do("call vm1 vdb")) == 1


def test_the_trace_ends_after_so_many_seconds(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output, SECONDS="0.5")
    daemon.do("call vm1 vda")
    status, printed = tracing.ended()
    assert status == DONE, printed
    assert disks(check_ended(output, "limit")) == ["vda"]
    assert_untraced_and_intact(daemon.pid)


def test_an_output_that_exists_is_kept_and_the_program_left_alone(
    daemon: Daemon, tmp_path: Path
) -> None:
    output = tmp_path / "t.jsonl"
    output.write_text("mine")
    settings = {"PID": str(daemon.pid), "OUTPUT": str(output)}
    attached = ["gdb", "-nx", "-batch", "-x", str(SCRIPTS / "trace_blockinfo.py")]
    for command in (gdb_command("blockinfo"), [*attached, "-p", str(daemon.pid)]):
        tracing = Tracing(command, settings)
        status, printed = tracing.ended()
        assert not tracing.is_on
        assert (status, f"virtrace: {output} already exists" in printed) == (BAD_INPUT, True)
        assert output.read_text() == "mine"
        assert_untraced_and_intact(daemon.pid)


def test_a_second_tracer_is_refused_and_the_first_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    output, other = tmp_path / "t.jsonl", tmp_path / "other.jsonl"
    first = start(daemon, output)
    second = Tracing(gdb_command("blockinfo"), {"PID": str(daemon.pid), "OUTPUT": str(other)})
    status, printed = second.ended()
    daemon.do("call vm1 vda")
    assert first.finish()[0] == DONE
    assert (status, "is already traced by gdb" in printed) == (NOT_TRACED, True)
    assert not other.exists()
    assert disks(check_ended(output, "done")) == ["vda"]


def test_a_full_disk_ends_the_trace_and_not_the_program(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    room = 40_000

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    settings = {"PID": str(daemon.pid), "OUTPUT": str(output)}
    tracing = Tracing(
        gdb_command("blockinfo"), settings, stdout=subprocess.DEVNULL, preexec_fn=little_room
    )
    assert len(daemon.do("call vm1 vda 20")) == 20
    status, printed = tracing.ended()
    # A trace was written, and it is incomplete.
    assert status == INCOMPLETE, printed
    assert f"virtrace: cannot write the trace {output}" in printed
    assert_untraced_and_intact(daemon.pid)
    found = read_trace(output)
    assert output.stat().st_size <= room
    assert events(found, ROOT, "exit")
    assert found.footer is None


def test_what_was_met_is_written_though_gdb_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output)
    writer = writer_of(output)
    daemon.do("call vm1 vda 20")
    # The last call has just returned, and the last of it was met before.
    tracing.signal(KILL)
    tracing.ended()
    wait_until(lambda: not Path(f"/proc/{writer}").exists(), "the end of the process that writes")
    found = read_trace(output)
    assert found.footer is None
    assert [event.values["result"] for event in events(found, ROOT, "exit")] == [0] * 20
    wait_until(lambda: tracer_of(daemon.pid) == 0, "GDB to let go")
    assert_untraced_and_intact(daemon.pid)


def test_the_process_that_writes_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output)
    writer = writer_of(output)
    daemon.do("call vm1 vda")
    wait_until(lambda: output.stat().st_size > 0, "the header")
    os.kill(writer, KILL)
    assert len(daemon.do("call vm1 vda 3")) == 3
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert "virtrace: the process that writes the trace was ended" in printed
    assert_untraced_and_intact(daemon.pid)
    found = read_trace(output)
    assert found.footer is None
    assert set(disks(found)) <= {"vda"}


def test_the_process_that_writes_does_not_go_on(daemon: Daemon, tmp_path: Path) -> None:
    """A program that waits for it is not kept standing for longer than a moment."""
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output)
    writer = writer_of(output)
    os.kill(writer, signal.SIGSTOP)
    # More than the pipe holds.
    daemon.do(f"pad {3 << 20}")
    assert len(daemon.do("call vm1 vda 5")) == 5
    daemon.do("pad 0")
    wait_until(lambda: tracer_of(daemon.pid) == 0, "GDB to let go")
    assert_untraced_and_intact(daemon.pid)
    os.kill(writer, signal.SIGCONT)
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    problem = "the trace is not written: the process that writes it does not continue"
    assert f"virtrace: {problem}" in printed
    check_ended(output, "error")


def test_an_error_of_its_own_says_where_when_asked(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    *gdb, option, action = gdb_command("blockinfo")
    settings = {"PID": str(daemon.pid), "OUTPUT": str(output), "DEBUG": "1"}
    settings["TEST_HOOK"] = "inferior.breakpoints:Breakpoints.insert"
    tracing = Tracing([*gdb, "-x", str(RAISING), option, action], settings)
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert "virtrace: internal error, the trace ended: RuntimeError: " in printed
    assert "in raising\n    raise RuntimeError" in printed
    assert_untraced_and_intact(daemon.pid)


def test_a_terminal_that_nobody_reads_does_not_hold_the_program(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Ctrl-S, or a pager that is left at its first page."""
    output = tmp_path / "t.jsonl"
    unread, terminal = os.pipe()
    settings = {"PID": str(daemon.pid), "OUTPUT": str(output)}
    tracing = Tracing(gdb_command("blockinfo"), settings, stdout=terminal)
    os.close(terminal)
    assert len(daemon.do("call vm1 vda 200")) == 200
    tracing.signal(USR1)
    wait_until(lambda: tracer_of(daemon.pid) == 0, "GDB has detached")
    wait_until(lambda: '"type":"footer"' in output.read_text(), "the footer")
    assert_untraced_and_intact(daemon.pid)
    # Now somebody reads, and that is all that it waits for.
    with open(unread, errors="replace") as stream:
        shown = stream.read()
    status, printed = tracing.ended()
    assert status == DONE, printed
    assert len(disks(check_ended(output, "done"))) == 200
    assert str(output) in shown


def test_a_reader_that_is_gone_ends_nothing(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    reader, terminal = os.pipe()
    settings = {"PID": str(daemon.pid), "OUTPUT": str(output)}
    tracing = Tracing(gdb_command("blockinfo"), settings, stdout=terminal)
    os.close(terminal)
    os.close(reader)
    daemon.do("call vm1 vda 5")
    status, printed = tracing.finish()
    assert status == DONE, printed
    assert len(disks(check_ended(output, "done"))) == 5
    assert_untraced_and_intact(daemon.pid)


class Record:
    """`virtrace record` of a command that says that it runs, and waits for leave to end."""

    def __init__(
        self, daemon: Daemon, folder: Path, recipe: str = "blockinfo", engine: str = "gdb"
    ) -> None:
        self._target = ("record", recipe, "--engine", engine, "-p", str(daemon.pid))
        self._folder = folder
        self._running, self._leave = folder / "running", folder / "leave"
        os.mkfifo(self._running)
        os.mkfifo(self._leave)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Return once the command runs."""
        command = ["sh", "-c", f"echo on > '{self._running}'; read line < '{self._leave}'"]
        recording = subprocess.Popen(
            [*VIRTRACE, *self._target, *options, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            start_new_session=True,
        )
        assert self._running.read_text() == "on\n"
        return recording

    def let_the_command_end(self) -> None:
        self._leave.write_text("go\n")


class TestRecord:
    """``virtrace record``, which starts GDB itself."""

    @pytest.fixture
    def record(self, daemon: Daemon, tmp_path: Path) -> Record:
        return Record(daemon, tmp_path)

    def test_the_command_runs_while_traced_and_ends_the_trace(
        self, daemon: Daemon, tmp_path: Path, record: Record
    ) -> None:
        recording = record.start("-o", "t.jsonl", "--where", "disk=vdb")
        daemon.do("call vm1 vda")
        daemon.do("call vm1 vdb")
        record.let_the_command_end()
        printed, _ = recording.communicate(timeout=PATIENCE)
        assert recording.returncode == DONE, printed
        assert disks(check_ended(tmp_path / "t.jsonl", "done")) == ["vdb"]
        assert_untraced_and_intact(daemon.pid)

    def test_ctrl_c_twice_on_the_whole_group(
        self, daemon: Daemon, tmp_path: Path, record: Record
    ) -> None:
        recording = record.start("-o", "t.jsonl")
        daemon.do("call vm1 vda")
        os.killpg(recording.pid, INT)
        os.killpg(recording.pid, INT)
        printed, _ = recording.communicate(timeout=PATIENCE)
        assert recording.returncode == INTERRUPTED, printed
        assert disks(check_ended(tmp_path / "t.jsonl", "interrupt")) == ["vda"]
        assert_untraced_and_intact(daemon.pid)

    def test_nothing_of_the_current_folder_is_run(self, daemon: Daemon, tmp_path: Path) -> None:
        """As root in a folder where somebody else leaves files."""
        ran = tmp_path / "ran"
        python = f"open({str(ran)!r}, 'a').write(__file__)\n"
        for name in ("gdb", "yaml", "elftools", "virtrace", "json", "sitecustomize", "site"):
            (tmp_path / f"{name}.py").write_text(python)
        for name in (".gdbinit", ".gdbearlyinit", f"{NAME}-gdb.gdb", "gdbinit"):
            (tmp_path / name).write_text(f"python open({str(ran)!r}, 'a').write({name!r})\n")
        (tmp_path / "blockinfo").write_text("not a recipe")
        (tmp_path / "blockinfo.yaml").write_text("not a recipe")
        done = subprocess.run(
            [
                INSTALLED,
                *("record", "blockinfo", "-p", str(daemon.pid)),
                *("-o", "t.jsonl", "--", "true"),
            ],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == DONE, done.stderr
        check_ended(tmp_path / "t.jsonl", "done")
        assert not ran.exists(), ran.read_text()

    def test_the_limit_is_reached_as_the_command_ends(
        self, daemon: Daemon, tmp_path: Path, record: Record
    ) -> None:
        """GDB is told that the command is done when it is about to end by itself."""
        for attempt in range(3):
            output = tmp_path / f"{attempt}.jsonl"
            recording = record.start("-o", str(output), "--calls", "1")
            daemon.do("call vm1 vda")
            record.let_the_command_end()
            printed, _ = recording.communicate(timeout=PATIENCE)
            assert recording.returncode == DONE, printed
            assert disks(check_ended(output, "limit")) == ["vda"]

    def test_killed_it_takes_gdb_along_in_good_order(
        self, daemon: Daemon, tmp_path: Path, record: Record
    ) -> None:
        recording = record.start("-o", "t.jsonl")
        daemon.do("call vm1 vda")
        recording.kill()
        wait_until(lambda: tracer_of(daemon.pid) == 0, "GDB has detached")
        assert_untraced_and_intact(daemon.pid)
        wait_until(lambda: '"footer"' in (tmp_path / "t.jsonl").read_text(), "the footer")
        assert disks(check_ended(tmp_path / "t.jsonl", "interrupt")) == ["vda"]
        # The command is nobody's by now.
        os.killpg(recording.pid, signal.SIGKILL)
        recording.communicate()


def tracer_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("TracerPid:")[1].split()[0])


# The program has the first function, and no such second one.
NEEDED = """
virtrace: 1
name: needed
about: A function that is not there.
try: t
spans:
  - prototype: int virDomainGetBlockInfo(virDomainPtr domain, const char *disk)
    module: libvirt.so.0
    root: true
    enter: {disk: disk}
  - prototype: int virNoSuchFunction(int a)
    module: libvirt.so.0
"""
NOT_FOUND = "missing not found, and not optional: virNoSuchFunction"


@pytest.mark.parametrize("is_optional", [False, True], ids=["needed", "optional"])
@pytest.mark.parametrize("means", ["gdb alone", "gdb", "uprobes"])
def test_a_probe_that_is_needed_and_missing_is_told_twice_and_by_the_status(
    daemon: Daemon, tmp_path: Path, means: str, is_optional: bool
) -> None:
    """The trace has what could be recorded."""
    if means == "uprobes" and os.geteuid() != 0:
        pytest.skip("only root can set uprobes")
    recipe, output = tmp_path / "needed.yaml", tmp_path / "t.jsonl"
    recipe.write_text(NEEDED + "    optional: true\n" * is_optional)
    if means == "gdb alone":
        tracing = start(daemon, output, str(recipe))
        daemon.do("call vm1 vda")
        status, printed = tracing.finish()
    else:
        record = Record(daemon, tmp_path, str(recipe), means)
        recording = record.start("-o", str(output))
        daemon.do("call vm1 vda")
        record.let_the_command_end()
        printed, _ = recording.communicate(timeout=PATIENCE)
        status = recording.returncode
    assert status == (DONE if is_optional else NOT_TRACED), printed
    before, after = " ".join(printed.split()).split(" to end Ctrl-C ")
    assert (NOT_FOUND in before, NOT_FOUND in after) == (not is_optional, not is_optional)
    assert disks(check_ended(output, "done")) == ["vda"]
    assert_untraced_and_intact(daemon.pid)


@pytest.mark.parametrize("is_optional", [False, True], ids=["needed", "optional"])
def test_a_compiled_recipe_tells_it_when_it_is_made_and_when_it_is_imported(
    daemon: Daemon, tmp_path: Path, is_optional: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can set uprobes")
    recipe, script, records, output = (
        tmp_path / name for name in ("needed.yaml", "run.py", "records", "t.jsonl")
    )
    recipe.write_text(NEEDED + "    optional: true\n" * is_optional)
    compiling = ("recipe", "compile", str(recipe), "--to", "python", "-o", str(script))
    compiled = virtrace(*compiling, "-p", str(daemon.pid))
    with subprocess.Popen(
        [sys.executable, str(script), str(daemon.pid), str(records)], stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert b"Ctrl-C ends it" in running.stdout.readline()
        daemon.do("call vm1 vda")
        running.send_signal(INT)
        running.communicate(timeout=PATIENCE)
    imported = virtrace("import", str(records), "-o", str(output))
    for done in (compiled, imported):
        assert done.returncode == (DONE if is_optional else NOT_TRACED), done.stderr
        assert (NOT_FOUND in " ".join(done.stdout.split())) == (not is_optional)
        assert done.stderr == ""
    trace = read_trace(output)
    assert trace.problems == []
    assert disks(trace) == ["vda"]


def test_the_line_for_gdb_tells_it_too(build: Callable[[str], Path], tmp_path: Path) -> None:
    """The driver of a distribution that builds it without static probes."""
    folder = tmp_path / "without"
    shutil.copytree(build("optimized"), folder, symlinks=True)
    driver = str(folder / "libvirt_driver_qemu.so")
    subprocess.run(["objcopy", "--remove-section", ".note.stapsdt", driver], check=True)
    daemon, output = Daemon(folder), tmp_path / "t.jsonl"
    script = str(SCRIPTS / "trace_blockinfo.py")
    try:
        tracing = Tracing(
            ["gdb", "-nx", "-batch", "-x", script, "-p", str(daemon.pid)], {"OUTPUT": str(output)}
        )
        assert tracing.is_on
        daemon.do("call vm1 vda")
        tracing.signal(INT)
        status, printed = tracing.ended()
        assert status == NOT_TRACED, printed
        told = "missing not found, and not optional: qmp.send, qmp.reply "
        before, after = " ".join(printed.split()).split(" to end Ctrl-C ")
        assert (told in before, told in after) == (True, True)
        assert disks(check_ended(output, "interrupt")) == ["vda"]
        assert_untraced_and_intact(daemon.pid)
    finally:
        daemon.end()
