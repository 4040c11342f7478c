"""The script as a user starts it: in a terminal, through a link, from any folder."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.gdb.harness import NAME, SCRIPTS, Daemon, Tracing, check_ended, disks
from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE, wait_until
from virtrace.errors import INTERRUPTED

PROMPT = "(gdb) "
GDB = ("gdb", "-nx", "-q")
RECORD = (*VIRTRACE, "record", "blockinfo", "--engine", "gdb")
PROGRAM = "python print(gdb.current_progspace().filename)"


class Terminal:
    """An interactive GDB on a pseudo-terminal; what a user types, and what stands there.

    program: another one.
    """

    def __init__(self, folder: Path, *arguments: str, program: Sequence[str] = GDB) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*program, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1", "LANG": "C.UTF-8"},
            start_new_session=True,
            # Only the controlling terminal turns a key into a signal.
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._data = ""
        # A read may end within a character. On Ctrl-C the terminal drops what was not read yet.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, wanted: str) -> str:
        """All that came up to this text, which it must within PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while wanted not in self._data:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(left, 0))
            assert ready, f"{wanted!r} did not come; there is {self._data!r}"
            self._data += self._decode(os.read(self._ours, 1 << 16))
        seen, self._data = self._data.split(wanted, 1)
        return seen.replace("\r\n", "\n")

    def do(self, command: str) -> str:
        self.type(f"{command}\n")
        return self.until(PROMPT)

    def end_gently(self) -> None:
        """As a user ends it, with nothing attached."""
        self.type("quit\n")
        assert self.process.wait(PATIENCE) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """As when its window is closed, or the connection is lost."""
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1


@pytest.fixture
def terminal(daemon: Daemon, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, "-p", str(daemon.pid))
    opened.until(PROMPT)
    yield opened
    opened.end()


def settings(terminal: Terminal, file: Path) -> dict[str, str]:
    """What every `show` of GDB says, by its name."""
    terminal.do(f"pipe info set | cat > {file}")
    # What a setting of `auto` comes to depends on there being a process.
    text = re.sub(r"\(currently [^)]*\)", "", file.read_text())
    lines = (line.partition(":  ") for line in text.splitlines())
    return {name: value for name, colon, value in lines if colon and name != "convenience"}


@pytest.mark.parametrize("keys", ["\x03", "\x03\x03"], ids=["once", "twice"])
def test_ctrl_c_gives_the_prompt_back_and_leaves_nothing_of_ours(
    daemon: Daemon, terminal: Terminal, tmp_path: Path, keys: str
) -> None:
    output = tmp_path / "t.jsonl"
    terminal.do("set pagination on")
    terminal.do("set print frame-info source-line")
    terminal.do(f"source {SCRIPTS / 'virtrace.py'}")
    terminal.do(f"set virtrace output {output}")
    before = settings(terminal, tmp_path / "before")
    internal = breakpoints(terminal)
    program = terminal.do(PROGRAM)
    assert NAME in program
    terminal.type("virtrace start blockinfo\n")
    terminal.until(f"trace    {output}")
    terminal.until("\n")
    # The banner comes before the breakpoints: calls are made until one is traced.
    deadline = time.monotonic() + PATIENCE
    while '"type":"enter"' not in output.read_text():
        assert time.monotonic() < deadline
        daemon.do("call vm1 vda")
    terminal.until("capacity")
    terminal.type(keys)
    assert str(output) in terminal.until(PROMPT)
    assert set(disks(check_ended(output, "interrupt"))) == {"vda"}
    assert_untraced_and_intact(daemon.pid)

    assert "No breakpoints" in terminal.do("info breakpoints")
    assert breakpoints(terminal) <= internal
    after = settings(terminal, tmp_path / "after")
    assert len(after) > 200
    assert after == before
    assert terminal.do(PROGRAM) == program
    # The process can be traced again from the same GDB.
    terminal.do(f"attach {daemon.pid}")
    assert "virDomainGetBlockInfo" in terminal.do("info symbol virDomainGetBlockInfo")
    terminal.do("detach")
    terminal.end_gently()
    assert_untraced_and_intact(daemon.pid)


def breakpoints(terminal: Terminal) -> set[str]:
    """The addresses of all breakpoints, GDB's own (of which there are some) and ours."""
    return set(re.findall(r"0x[0-9a-f]{8,}", terminal.do("maintenance info breakpoints")))


def test_the_script_itself_ends_at_the_prompt(daemon: Daemon, tmp_path: Path) -> None:
    script = str(SCRIPTS / "trace_blockinfo.py")
    opened = Terminal(tmp_path, "-x", script, "-p", str(daemon.pid))
    try:
        opened.until("to end   Ctrl-C")
        opened.type("\x03")
        opened.until(PROMPT)
        assert "No breakpoints" in opened.do("info breakpoints")
        assert_untraced_and_intact(daemon.pid)
    finally:
        opened.end()
    (output,) = tmp_path.glob(f"virtrace-blockinfo-{daemon.pid}-*.jsonl")
    check_ended(output, "interrupt")


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(GDB, ["-x", str(SCRIPTS / "trace_blockinfo.py")]), (RECORD, [])],
    ids=["gdb -x -p", "virtrace record"],
)
def test_a_terminal_that_is_closed_ends_the_trace(
    daemon: Daemon, tmp_path: Path, program: Sequence[str], arguments: list[str]
) -> None:
    opened = Terminal(tmp_path, *arguments, "-p", str(daemon.pid), program=program)
    try:
        opened.until("to end   Ctrl-C")
        wait_until(lambda: bool(daemon.do("call vm1 vda")) and traced(tmp_path), "a traced call")
        opened.close()
        opened.process.wait(PATIENCE)
    finally:
        opened.end()
    (output,) = tmp_path.glob("*.jsonl")
    assert set(disks(check_ended(output, "interrupt"))) == {"vda"}
    assert_untraced_and_intact(daemon.pid)
    assert len(daemon.do("call vm1 vda")) == 1


def traced(folder: Path) -> bool:
    return any('"type":"enter"' in file.read_text() for file in folder.glob("*.jsonl"))


def test_in_batch_through_a_link_from_another_folder(daemon: Daemon, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    (elsewhere / "link.py").symlink_to(SCRIPTS / "trace_blockinfo.py")
    command = ["gdb", "-nx", "-batch", "-x", "else/where/link.py", "-p", str(daemon.pid)]
    tracing = Tracing(command, {}, cwd=tmp_path)
    assert tracing.is_on
    daemon.do("call vm1 vda")
    tracing.signal(signal.SIGINT)
    status, printed = tracing.ended()
    assert status == INTERRUPTED, printed
    (output,) = tmp_path.glob(f"virtrace-blockinfo-{daemon.pid}-*.jsonl")
    assert disks(check_ended(output, "interrupt")) == ["vda"]
    assert output.stat().st_mode & 0o777 == 0o600
    assert_untraced_and_intact(daemon.pid)


def test_the_commands_alone_trace_nothing(daemon: Daemon, tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            "gdb",
            "-nx",
            "-batch",
            "-x",
            str(SCRIPTS / "virtrace.py"),
            "-ex",
            "virtrace start nosuch",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "virtrace: there is no recipe 'nosuch'"
    assert list(tmp_path.iterdir()) == []
