"""The small program, a tracer at work on it, and what its trace holds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import pytest

from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE
from virtrace.image.process import read_status
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "program"
SCRIPTS = HERE.parents[1] / "gdb_scripts"
# Not libvirtd: whoever looks for one on this machine must not find ours.
NAME = "fakelibvirtd"
# The function at the root of what the blockinfo recipe traces.
ROOT = "virDomainGetBlockInfo"

INLINED = "inline __attribute__((always_inline))"
# How the compiler and the packager can treat the same source; flags, and whether stripped.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "optimized": (("-O2", "-g"), False),
    "plain": (("-O0", "-g"), False),
    # The compiler may drop and replace arguments: it makes a .constprop or .isra clone.
    "cloned": (("-O2", "-g", "-DGATHER=__attribute__((noinline))"), False),
    "inlined": (("-O2", "-g", f"-DGATHER={INLINED}"), False),
    "stripped": (("-O2",), True),
    "old_object": (("-O2", "-DOLD_OBJECT"), True),
    "strange_object": (("-O2", "-DSTRANGE_OBJECT"), True),
}


def build_variant(folder: Path, variant: str) -> Path:
    """The program and its two libraries, in this folder."""
    flags, stripped = VARIANTS[variant]
    library, soname = folder / "libvirt.so.0.9000.0", folder / "libvirt.so.0"
    driver = folder / "libvirt_driver_qemu.so"
    warnings = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")
    shared = ("-shared", "-fPIC", "-Wl,-soname,libvirt.so.0")
    compiler = ["gcc", *warnings, *flags]
    soname.symlink_to(library.name)
    for command in (
        [*compiler, *shared, str(SOURCES / "libvirt.c"), "-o", str(library)],
        [*compiler, *shared[:2], str(SOURCES / "driver.c"), str(soname), "-o", str(driver)],
        [
            *compiler,
            str(SOURCES / "daemon.c"),
            str(soname),
            *("-Wl,-rpath,$ORIGIN", "-ldl", "-pthread", "-o", str(folder / NAME)),
        ],
        *([["strip", str(library), str(driver), str(folder / NAME)]] if stripped else []),
    ):
        subprocess.run(command, check=True)
    return folder


class Lines:
    """Lines from a pipe, each waited for no longer than PATIENCE."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""

    def next(self) -> str:
        """EOFError where the other end is closed."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._descriptor], [], [], max(left, 0))
            assert ready, f"no answer within {PATIENCE} s; so far: {self._data!r}"
            chunk = os.read(self._descriptor, 1 << 16)
            if not chunk:
                raise EOFError(self._data.decode())
            self._data += chunk
        line, self._data = self._data.split(b"\n", 1)
        return os.fsdecode(line)


class Daemon:
    """The program; it does what it is asked, see program/daemon.c."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._lines = Lines(self._process.stdout.fileno())
        self.pid = self._process.pid
        self.answer()

    def command(self) -> list[str | Path]:
        return [self.folder / NAME, self.folder / "libvirt_driver_qemu.so"]

    def ask(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(os.fsencode(f"{command}\n"))

    def answer(self) -> list[str]:
        lines: list[str] = []
        while (line := self._lines.next()) != ".":
            lines.append(line)
        return lines

    def do(self, command: str) -> list[str]:
        self.ask(command)
        return self.answer()

    @property
    def is_usable(self) -> bool:
        """False once it has ended, or where a tracer still holds it."""
        if self._process.poll() is not None:
            return False
        status = read_status(self.pid)
        return status is not None and status["TracerPid"] == "0"

    def exit_status(self) -> int:
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(folder: Path) -> Iterator[Daemon]:
    """A program of a test's own."""
    daemon = Daemon(folder)
    try:
        yield daemon
    finally:
        daemon.end()


class Tracing:
    """A tracer at work: every call is traced once this is made, where is_on.

    command: what starts it. settings: the VIRTRACE_* variables, without that prefix.
    options: of subprocess.Popen.
    """

    running: ClassVar[list[Tracing]] = []

    def __init__(self, command: list[str], settings: dict[str, str], **options: Any) -> None:
        ready, ready_for_gdb = os.pipe()
        # Not a pipe, which fills up while nobody reads it.
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._printed, "stderr": self._printed}
        self.process = subprocess.Popen(
            command,
            **{**streams, **options},
            pass_fds=[ready_for_gdb],
            env={
                **os.environ,
                "NO_COLOR": "1",
                "VIRTRACE_READY_FD": str(ready_for_gdb),
                **{f"VIRTRACE_{name}": value for name, value in settings.items()},
            },
        )
        self.running.append(self)
        os.close(ready_for_gdb)
        try:
            self.is_on = Lines(ready).next() == "ready"
        except EOFError:
            self.is_on = False
        finally:
            os.close(ready)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Exit status and all that it printed."""
        status = self.process.wait(PATIENCE)
        self._printed.seek(0)
        return status, self._printed.read().decode()

    def clean_up(self) -> None:
        """A test that failed leaves it running: let it detach, if it still can."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE / 4)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._printed.close()

    def finish(self) -> tuple[int, str]:
        """End it as `virtrace record` does when its command is done."""
        self.signal(signal.SIGUSR1)
        return self.ended()


def gdb_command(recipe: str) -> list[str]:
    """GDB as `virtrace record` starts it."""
    script = ("-x", str(SCRIPTS / "virtrace.py"), "-ex", f"virtrace start {recipe}")
    return ["gdb", "-nx", "-nh", "-q", "-batch", "-iex", "set auto-load no", *script]


def start(daemon: Daemon, output: Path, recipe: str = "blockinfo", **settings: str) -> Tracing:
    tracing = Tracing(
        gdb_command(recipe), {"PID": str(daemon.pid), "OUTPUT": str(output), **settings}
    )
    if not tracing.is_on:
        pytest.fail(f"tracing did not start: {tracing.ended()}")
    return tracing


def trace(
    daemon: Daemon, output: Path, *commands: str, recipe: str = "blockinfo", **settings: str
) -> tuple[Trace, list[list[str]]]:
    """The trace of these commands, and what the program answered to each."""
    tracing = start(daemon, output, recipe, **settings)
    answers = [daemon.do(command) for command in commands]
    status, printed = tracing.finish()
    assert status == 0, f"status {status}: {printed}"
    assert_untraced_and_intact(daemon.pid)
    found = read_trace(output)
    assert found.problems == []
    assert found.footer is not None
    assert found.footer["reason"] == "done"
    assert found.footer["detached"] is True
    return found, answers


def events(found: Trace, name: str, kind: str | None = None) -> list[Event]:
    return [event for event in found.events if event.name == name and kind in (None, event.type)]


def values(found: Trace, name: str, kind: str) -> dict[str, Any]:
    """The values of the only such event."""
    (event,) = events(found, name, kind)
    return event.values


def calls(found: Trace) -> dict[int, list[Event]]:
    """The events of each call, by its number, in the file's order; without its source lines."""
    trees: dict[int, list[Event]] = {}
    for event in found.events:
        assert event.call is not None
        if event.type != "line":
            trees.setdefault(event.call, []).append(event)
    return trees


def check_ended(output: Path, reason: str) -> Trace:
    found = read_trace(output)
    assert found.problems == []
    assert found.footer is not None
    assert (found.footer["reason"], found.footer["detached"]) == (reason, True)
    return found


def disks(found: Trace) -> list[str]:
    return [event.values["disk"] for event in events(found, ROOT, "enter")]
