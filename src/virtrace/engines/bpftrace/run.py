"""Traces by uprobes, without stopping the daemon."""

from __future__ import annotations

import ctypes
import math  # noqa: F401 - which needs the library of _Handshake
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engines.bpftrace import program
from virtrace.engines.bpftrace.limits import limited
from virtrace.engines.bpftrace.recorded import Lines, Replayer, Started
from virtrace.errors import (
    IncompleteError,
    TargetError,
)
from virtrace.files import read_regular
from virtrace.image.model import Program
from virtrace.image.process import Process, inspect
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import Plan, StaticProbeSite
from virtrace.plan.resolve import require_traceable
from virtrace.recipe.model import Recipe
from virtrace.record.command import end_with_us
from virtrace.record.ends import GRACE_SECONDS, Outside, ending_signals
from virtrace.record.header import header_record
from virtrace.record.job import Job
from virtrace.record.live import TerminalView
from virtrace.record.resolution import resolve_without_gdb
from virtrace.targets import target_of
from virtrace.trace.format import Engine
from virtrace.trace.rotation import new_writer

# Until all probes are there; what bpftrace needs for it grows with their number.
_LARGEST_LIBRARY = 64 << 20
_START_SECONDS = 60.0
_END_SECONDS = 60.0
# How far behind its clock an event is handed over.
_BEHIND_NS = 3 * program.HEARTBEAT_MS * 1_000_000
_POLL_SECONDS = 0.02
_MAX_SAID = 1 << 20
# The kernel's own count of processes: the inode of its first one.
_FIRST_NAMESPACE = "pid:[4026531836]"
_SAID = re.compile(r"ERROR: (?!Unknown error -1: couldn't set RLIMIT_MEMLOCK)(.*)")


def resolve(
    recipe: Recipe, program: Program, debug_files: Mapping[str, Path], packs: Sequence[Path]
) -> StoredPlan:
    """Resolve a recipe for bpftrace.

    debug_files, packs: as in ``Job``
    Raises: TargetError where nothing of it can be traced.
    """
    _require_one_stack(program)
    whole = resolve_without_gdb(recipe, program, debug_files, packs)
    require_traceable(recipe, whole)
    plan = limited(whole, program)
    engine: Engine = {"name": "bpftrace", "version": None}
    return StoredPlan(plan, header_record(recipe, program, plan, engine, time.monotonic_ns()))


def _require_one_stack(process: Program) -> None:
    """Raises: TargetError if a return probe of the kernel could break the process.

    Where a thread enters a function on another stack, at a higher address, the kernel forgets the
    return probes of the stack that it left. The functions there return to its trampoline all the
    same, and the process gets a SIGILL (cleanup_return_instances, kernel/events/uprobes.c).
    """
    target = target_of(process)
    if target.coroutines:
        raise TargetError(
            f"the kernel's return probes could end {process.exe}: threads of {target.name} leave "
            "one stack for another",
            "trace by GDB: leave out --engine",
        )


def require_proven(process: Program, plan: Plan) -> None:
    """TargetError where a uprobe of the plan could break the process."""
    places: dict[int, bool] = {}
    for site in plan.sites:
        module = process.module(site.module)
        if module is not None:
            for address in site.addresses:
                places[module.base + address] = not isinstance(site, StaticProbeSite)
    for address, doubt in process.doubts(places).items():
        raise TargetError(
            f"a uprobe at {address:#x} could break {process.exe}: {doubt}",
            "report it, with the output of `virtrace recipe check`",
        )


def record(job: Job, process: Process) -> int:
    """Record the job and return the exit status."""
    plan = resolve(job.recipe, process, job.debug_files, job.packs)
    require_proven(process, plan.plan)
    nested = os.readlink("/proc/self/ns/pid") != _FIRST_NAMESPACE
    handshake = _Handshake()
    where = program.Where(
        None if nested else str(process.pid),
        {module.path: str(module.file) for module in process.modules},
        {
            site.module: module.base
            for site in plan.plan.sites
            if (module := process.module(site.module))
        },
        handshake.path,
    )
    text = program.text(plan, where)
    signals: list[int] = []
    writer = new_writer(job.output, job.rotation)
    # Files without a name: nothing is left of them when we are killed.
    with tempfile.TemporaryFile() as errors, ending_signals(signals.append):
        view = TerminalView(sys.stdout.fileno(), writer, job.command_line)
        output = Output(Answers(job.recipe.points), job.limits, writer, view)
        replayer = Replayer(job, plan, output, None if nested else process.pid)
        try:
            run = _Run(text, errors, replayer, process.pid, handshake)
            run.start()
        except BaseException:
            writer.discard()
            raise
        try:
            replayer.begin(run.ready, _version())
            reason = run.until_its_end(job, signals)
            run.end()
            replayer.finish(reason, run.lines.lost_events)
        finally:
            run.kill()
            writer.close()
            view.close()
        status = replayer.recording.status()
        if run.died:
            raise IncompleteError(
                f"bpftrace ended: {run.said()}",
                "every complete line of the trace counts; nothing was left in the daemon",
            )
        if run.is_behind:
            raise IncompleteError(
                "bpftrace did not keep up: an unknown number of the last calls is missing",
                "trace fewer calls (--where), or a recipe with less in it",
            )
        return status


def _version() -> str | None:
    """Return bpftrace's version; None if it does not say."""
    done = subprocess.run(["bpftrace", "--version"], capture_output=True, text=True, timeout=60)
    return done.stdout.strip().removeprefix("bpftrace v") or None


class _Handshake:
    """A function to be traced, in a file of ours: all processes that map a file get its uprobes."""

    def __init__(self) -> None:
        libm = inspect(os.getpid()).module("libm.so.6")
        if libm is None:
            raise TargetError("Python has no libm.so.6 here", "trace by GDB: leave out --engine")
        self._file = os.memfd_create("virtrace-handshake")
        with open(self._file, "wb", closefd=False) as copy:
            copy.write(read_regular(libm.file, _LARGEST_LIBRARY))
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self._library = ctypes.CDLL(self.path)

    def call(self) -> None:
        """On each processor: the program's own heartbeat leaves out those that are idle."""
        mine = os.sched_getaffinity(0)
        for processor in mine:
            os.sched_setaffinity(0, {processor})
            getattr(self._library, program.HANDSHAKE)()
        os.sched_setaffinity(0, mine)


class _Run:
    """A bpftrace at work."""

    def __init__(
        self, text: str, errors: IO[bytes], replayer: Replayer, pid: int, handshake: _Handshake
    ) -> None:
        self.lines = Lines(replayer.event, replayer.lost)
        self.died = False
        # What bpftrace had not told by the end is not known.
        self.is_behind = False
        # When all probes were there.
        self.ready = Started(0, 0, 0)
        self._replayer = replayer
        self._errors = errors
        self._handshake = handshake
        self._beat_at = 0.0
        self._target = os.pidfd_open(pid)
        self._rest = b""
        with tempfile.TemporaryFile() as file:
            file.write(text.encode())
            file.seek(0)
            self._bpftrace = subprocess.Popen(
                # It keeps static probes, and the semaphores that guard them, to the process.
                ["bpftrace", *program.OPTIONS, "-p", str(pid), "/dev/stdin"],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **program.environment(os.cpu_count() or 1)},
                # Ctrl-C is for us: bpftrace is told when nothing more is wanted.
                start_new_session=True,
                preexec_fn=end_with_us,
            )
        assert self._bpftrace.stdout is not None
        self._output: IO[bytes] = self._bpftrace.stdout
        os.set_blocking(self._output.fileno(), False)

    def start(self) -> None:
        """Until every probe is there."""
        until = time.monotonic() + _START_SECONDS
        while len(self.lines.ready) < 2 or not self.lines.beats:
            if not self._read() or time.monotonic() > until:
                self.kill()
                raise TargetError(
                    f"bpftrace cannot trace this: {self.said()}",
                    "trace by GDB: leave out --engine",
                )

        self.ready = Started(max(self.lines.beats.values()), time.time(), 0)

    def until_its_end(self, job: Job, signals: Sequence[int]) -> str:
        """The reason; by then all that was before has come, be it late."""
        outside = Outside(self._target, job.command, job.selection.seconds, signals)
        calls = self._replayer.recording.tracer
        reason: str | None = None
        ended_ns, patience = 0, 0.0
        while not self._replayer.is_over:
            has_target = outside.has_target
            if not self._read():
                # It ends with the process, too.
                self.died = has_target
                return "target-exit" if not has_target else "error"
            if reason is None:
                reason = outside.reason()
                # The program's clock.
                ended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + _BEHIND_NS
                patience = time.monotonic() + _END_SECONDS
                continue
            beats = self.lines.beats
            # A processor that is not ours to run on says nothing as long as it is idle.
            now_ns = min(beats.get(cpu, 0) for cpu in os.sched_getaffinity(0))
            is_waiting = reason == "done" and calls.calls_open
            if now_ns > ended_ns + (GRACE_SECONDS * 1e9 if is_waiting else 0):
                return reason
            if time.monotonic() > patience:
                self.is_behind = True
                return reason
        return self._replayer.recording.ending.reason or "error"

    def end(self) -> None:
        """What is on its way still comes."""
        if self._bpftrace.poll() is None:
            self._bpftrace.send_signal(signal.SIGINT)
        until = time.monotonic() + _END_SECONDS
        while self._read() and time.monotonic() < until:
            pass
        if not self.died:
            self.died = not self.lines.ended
        self.lines.finish()

    def kill(self) -> None:
        if self._bpftrace.poll() is None:
            self._bpftrace.kill()
        self._bpftrace.wait()
        self._output.close()
        with suppress(OSError):
            os.close(self._target)
        self._target = -1

    def said(self) -> str:
        """The first thing that bpftrace complains of."""
        # Its place in the file is bpftrace's, too.
        said = os.pread(self._errors.fileno(), _MAX_SAID, 0).decode(errors="replace")
        if found := _SAID.search(said):
            return found[1].strip()
        status = self._bpftrace.poll()
        if status is not None and status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return said.strip().splitlines()[-1] if said.strip() else f"its status is {status}"

    def _read(self) -> bool:
        """What has come, waiting a little. False: nothing more comes."""
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + program.HEARTBEAT_MS / 1000
            self._handshake.call()
        ready = select.select([self._output], [], [], _POLL_SECONDS)[0]
        if not ready:
            return True
        data = self._output.read(1 << 20)
        if data == b"":
            return False
        *whole, self._rest = (self._rest + (data or b"")).split(b"\n")
        for line in whole:
            self.lines.feed(line)
        return True
