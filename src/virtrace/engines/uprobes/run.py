"""One recording by uprobes: drains the kernel's buffer, decodes, and ends."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Union

from virtrace.engine.answers import Answers
from virtrace.engine.budget import Switch
from virtrace.engine.output import Output
from virtrace.engines.uprobes import kernel
from virtrace.engines.uprobes.attach import Probes, load_programs
from virtrace.engines.uprobes.coroutines import (
    CoroutineStacks,
    probed_returns,
    without_return_probes,
)
from virtrace.engines.uprobes.frames import frames
from virtrace.engines.uprobes.host import BY_GDB, NAME
from virtrace.engines.uprobes.layout import HIT
from virtrace.engines.uprobes.live import LiveBacktraces, Taken
from virtrace.engines.uprobes.load import Load
from virtrace.engines.uprobes.maps import shares_pids
from virtrace.engines.uprobes.processes import Processes, processes_of
from virtrace.engines.uprobes.program import Program
from virtrace.engines.uprobes.replay import Replayer
from virtrace.engines.uprobes.spool import Spool
from virtrace.engines.uprobes.trial import abilities, returns_pass_seccomp
from virtrace.errors import INTERRUPTED, EngineError, TargetError, TraceError, Unavailable
from virtrace.image.descriptors import open_files
from virtrace.image.model import Program as Image
from virtrace.image.process import Process, inspect, read_status
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import AnySite, Plan, joined
from virtrace.plan.resolve import convention_of, must_be_entry, require_traceable
from virtrace.printing import print_lines
from virtrace.recipe.model import BLOCK_NODES, OPEN_FILES, Point, Recipe
from virtrace.record.command import start
from virtrace.record.ends import GRACE_SECONDS, Outside, ending_signals, has_exited
from virtrace.record.header import header_record, target_record
from virtrace.record.job import Job
from virtrace.record.live import TerminalView
from virtrace.record.progress import Progress
from virtrace.record.resolution import resolve_without_gdb
from virtrace.targets import target_of
from virtrace.targets.starts import Starts
from virtrace.targets.target import Standing
from virtrace.trace.format import Engine
from virtrace.trace.rotation import new_writer

# Between looks at the kernel's buffer: while events come, and at most.
_SHORTEST_SLEEP, _LONGEST_SLEEP = 0.02, 0.05
_SHOW_SECONDS = 0.2
# Shares of one processor that decoding takes while events come, and once none has come for a while.
_SHARE, _SHARE_WHEN_QUIET = 0.05, 0.5
_QUIET_SECONDS = 0.1
# Decoding goes on for at least this long, as it is slow until the processor's caches have its data.
_SLICE_SECONDS = 0.02
# Between looks for a process that starts: so much of its beginning can be missed.
_BETWEEN_LOOKS = 0.001
# Records that are decoded between looks at the clock.
_AT_ONCE = 16
# Bytes taken by records that wait to be decoded. Beyond a part of it decoding takes what
# time it needs; beyond all of it the kernel's buffer is left to fill, and events are lost.
MOST_WAITING = 1 << 30
_MUST_KEEP_UP = MOST_WAITING // 4


def resolve(
    recipe: Recipe,
    image: Image,
    debug_files: Mapping[str, Path],
    packs: Sequence[Path],
    qemu: Image | None = None,
) -> StoredPlan:
    """Resolve a recipe for the kernel's probes.

    debug_files, packs: as in ``Job``. qemu: of a recipe that traces a daemon, too.
    Raises: EngineError where nothing of it can be traced.
    """
    convention = convention_of(image)
    if not convention.is_known:
        raise EngineError(
            f"the uprobes engine does not know how calls on {convention.machine} are made",
            BY_GDB,
        )
    engine: Engine = {"name": NAME, "version": os.uname().release}

    def planned(part: Recipe, image: Image) -> Plan:
        plan = resolve_without_gdb(part, image, debug_files, packs)
        return without_return_probes(image, plan)

    if qemu is None:
        plan = planned(recipe, image)
        header = header_record(recipe, image, plan, engine, time.monotonic_ns())
    else:
        daemon_part, qemu_part = (recipe.part(of) for of in recipe.of)
        of_daemon, of_qemu = planned(daemon_part, image), planned(qemu_part, qemu)
        plan = joined(of_daemon, of_qemu)
        header = header_record(daemon_part, image, plan, engine, time.monotonic_ns())
        probes = [probe.name for probe in of_qemu.probes]
        header["qemu"] = {**target_record(qemu_part, qemu, of_qemu), "probes": probes}
    require_traceable(recipe, plan)
    return StoredPlan(plan, header)


def require_proven(processes: Processes, plan: Plan) -> None:
    """EngineError where a uprobe of the plan could break a process."""
    sites: dict[int, list[AnySite]] = defaultdict(list)
    for site in plan.sites:
        sites[id(processes.of(site))].append(site)
    for own in sites.values():
        process = processes.of(own[0])
        places: dict[int, bool] = {}
        for site in own:
            module = process.module(site.module)
            if module is not None:
                for address in site.addresses:
                    places[module.base + address] = must_be_entry(site)
                places.update((module.base + address, False) for address in probed_returns(site))
        for address, doubt in process.doubts(places).items():
            raise EngineError(
                f"a uprobe at {address:#x} could break {process.exe}: {doubt}",
                "report it, with the output of `virtrace recipe check`",
            )


@dataclass(frozen=True)
class _SwitchedOff:
    """A probe was switched off.

    t_ns: CLOCK_BOOTTIME. is_last: nothing is left that begins a recorded call.
    """

    switch: Switch
    why: str
    t_ns: int
    is_last: bool


@dataclass(frozen=True)
class _CommandEnded:
    """What follows belongs to calls that were open when the traced command ended."""


@dataclass(frozen=True)
class _LookedAgain:
    """What stood meanwhile, by its kind. t_ns: CLOCK_BOOTTIME."""

    standing: Mapping[str, Sequence[Standing]]
    t_ns: int


# What stands between the records, in their order.
_Mark = Union[_SwitchedOff, _CommandEnded, _LookedAgain, Taken]


class _Run:
    """A recording at work."""

    def __init__(
        self,
        probes: Probes,
        replayer: Replayer,
        spool: Spool[_Mark],
        load: Load,
        live: LiveBacktraces,
        stacks: CoroutineStacks | None,
        standing: _Standing,
    ) -> None:
        self._probes = probes
        self._replayer = replayer
        self._spool = spool
        self._load = load
        self._live = live
        self._stacks = stacks
        self._standing = standing
        self._items: Iterator[bytes | _Mark] = iter(())
        self._keeps_up = False
        # Seconds that decoding may take now, and when that was computed.
        self._allowed = 0.0
        self._looked_at = self._came_at = time.monotonic()
        self._sleep = _SHORTEST_SLEEP
        # Edge-triggered: it tells what a program wakes us up for, not that there are records.
        self._wakeup = select.epoll()
        self._wakeup.register(probes.ring.descriptor, select.EPOLLIN | select.EPOLLET)

    def until_its_end(
        self,
        job: Job,
        target: int,
        signals: Sequence[int],
        traced: subprocess.Popen[bytes] | None,
    ) -> str:
        """Trace until the recording has to end; return why.

        target: a pidfd of the process. traced: the command, if it was started before.
        """
        outside = Outside(target, job.command, job.selection.seconds, signals, traced)
        # What only decoding tells must not come late.
        self._keeps_up = job.selection.calls is not None
        give_up_at = None
        while True:
            self._wait()
            self._drain()
            self._look_again()
            self._switch_off()
            self._decode_for_a_while()
            if self._replayer.is_over:
                return "done"
            if give_up_at is None:
                reason = outside.reason()
                if reason == "done":
                    # All that the command had called is in the kernel's buffer, at the latest.
                    self._drain(always=True)
                    self._spool.mark(_CommandEnded())
                    give_up_at = time.monotonic() + GRACE_SECONDS
                    self._keeps_up = True
                elif reason is not None:
                    return reason
            elif signals:
                return "interrupt"
            elif not outside.has_target:
                return "target-exit"
            elif time.monotonic() > give_up_at:
                return "done"

    def detach(self) -> None:
        self._wakeup.close()
        self._probes.detach()
        self._replayer.since(_now_ns())
        self._drain(always=True)

    def decode_the_rest(self, name: str, signals: Sequence[int]) -> None:
        """Decode what still waits. A further signal leaves the rest out. name: of the trace."""
        enough = len(signals) + 1
        waiting = max(self._spool.size, 1)
        with Progress(name) as progress:
            show_at = time.monotonic() + _SHOW_SECONDS
            while self._decode(until=show_at) and not self._replayer.is_over:
                done = 1 - self._spool.size / waiting
                progress.show(
                    f"decoding what was recorded ({done:.0%}); Ctrl-C leaves the rest out"
                )
                show_at = time.monotonic() + _SHOW_SECONDS
                if len(signals) >= enough:
                    self._replayer.recording.lost += self._left_out()
                    return

    def _wait(self) -> None:
        """Wait a little, or until a program has recorded what must not wait."""
        self._wakeup.poll(self._sleep)

    def _drain(self, *, always: bool = False) -> None:
        """Take what the kernel has: what it means has time. always: also if too much waits."""
        if self._spool.stored > MOST_WAITING and not always:
            return
        records = self._probes.ring.records()
        self._sleep = _SHORTEST_SLEEP if records else min(self._sleep * 2, _LONGEST_SLEEP)
        if not records:
            return
        self._came_at = time.monotonic()
        try:
            for taken in self._live.look(records):
                self._spool.mark(taken)
            if self._stacks is not None:
                self._stacks.note(records)
            self._spool.write(frames(records))
        except TraceError as error:
            self._replayer.recording.ending.fail(error)
        self._probes.ring.release()

    def _look_again(self) -> None:
        found = self._standing.meanwhile()
        if found:
            self._spool.mark(_LookedAgain(found, _now_ns()))

    def _switch_off(self) -> None:
        for switch, why in self._load.too_much():
            # What came before it is recorded before it.
            self._drain(always=True)
            self._spool.mark(_SwitchedOff(switch, why, _now_ns(), self._load.is_spent))

    def _decode_for_a_while(self) -> None:
        now = time.monotonic()
        share = _SHARE_WHEN_QUIET if now - self._came_at > _QUIET_SECONDS else _SHARE
        if self._keeps_up or self._spool.stored > _MUST_KEEP_UP:
            share = 1.0
        if not self._spool.size:
            # Nothing is saved up for a time when events come.
            self._allowed = 0.0
        self._allowed = min(self._allowed + (now - self._looked_at) * share, _LONGEST_SLEEP)
        self._looked_at = now
        if self._allowed < _SLICE_SECONDS and share < 1.0:
            return
        self._decode(until=now + self._allowed)
        self._replayer.flush()
        self._allowed = max(self._allowed - (time.monotonic() - now), 0.0)

    def _decode(self, until: float) -> bool:
        """Decode until then, or the end of the recording; return whether anything still waits."""
        while time.monotonic() < until and not self._replayer.is_over:
            # Not one by one: to look at the clock takes a part of what an event takes.
            some = [*islice(self._items, _AT_ONCE)]
            if not some:
                self._items = self._spool.read()
                some = [*islice(self._items, _AT_ONCE)]
                if not some:
                    return False
            for item in some:
                self._take(item)
                if self._replayer.is_over:
                    return True
        return True

    def _take(self, item: bytes | _Mark) -> None:
        recording = self._replayer.recording
        if isinstance(item, bytes):
            self._replayer.hits.take(item)
        elif isinstance(item, Taken):
            self._replayer.note_backtraces(item)
        elif isinstance(item, _LookedAgain):
            self._replayer.note_standing(item.standing, item.t_ns)
        elif isinstance(item, _SwitchedOff):
            t_ns = self._replayer.since(item.t_ns)
            recording.switch_off(item.switch.name, item.switch.kind, item.why, t_ns)
            if item.is_last:
                recording.ending.request("limit")
        else:
            recording.ending.request("done")
            recording.ending.is_due()

    def _left_out(self) -> int:
        """Count the events that will not be decoded."""
        count = 0
        while True:
            for item in self._items:
                count += isinstance(item, bytes) and item[0] == HIT
            self._items = self._spool.read()
            first = next(self._items, None)
            if first is None:
                return count
            count += isinstance(first, bytes) and first[0] == HIT


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _require_safe_returns(process: Process) -> None:
    """Raises: EngineError if a return probe could end the process by its seccomp filter."""
    status = read_status(process.pid)
    if status is not None and status.get("Seccomp", "0") != "0" and not returns_pass_seccomp():
        raise EngineError(
            f"process {process.pid} has a seccomp filter, and on Linux {os.uname().release} the "
            "return of a probed function can make a filter end the process",
            BY_GDB,
        )


class _Standing:
    """Reads what points with `standing:` ask for."""

    def __init__(self, job: Job, processes: Processes) -> None:
        """Raises: TargetError if it cannot be known, and with it nothing of the recipe."""
        self._job = job
        self._processes = processes
        self._points = [point for point in job.recipe.points if point.standing]
        # What the last look at each kind found, and when the next one is due.
        self._last: dict[str, Sequence[Standing]]
        self._due = {point.name: time.monotonic_ns() for point in self._points}
        self.read()

    def read(self) -> Mapping[str, Sequence[Standing]]:
        """By the name of its kind. Raises: TargetError."""
        self._last = {str(point.standing): self._found(point) for point in self._points}
        return self._last

    def meanwhile(self) -> Mapping[str, Sequence[Standing]]:
        """What is not as it was, of what is to be looked at now."""
        found = {}
        now = time.monotonic_ns()
        for point in self._points:
            if point.every is None or now < self._due[point.name]:
                continue
            self._due[point.name] = now + point.every
            kind = str(point.standing)
            # It may change while it is read; there is a next time.
            with suppress(TargetError):
                before, self._last[kind] = self._last[kind], self._found(point)
                found[kind] = [one for one in self._last[kind] if one not in before]
        return {kind: standing for kind, standing in found.items() if standing}

    def _found(self, point: Point) -> Sequence[Standing]:
        process = self._processes.of_probe(point.name)
        assert isinstance(process, Process)
        if point.standing == OPEN_FILES:
            guest = {} if self._job.guest is None else {"domain": self._job.guest.name}
            return [
                Standing(file, number, {"fd": number, "file": file, **guest})
                for number, file in open_files(process.pid).items()
                if file.startswith("/")
            ]
        try:
            return target_of(process).knowledge.standing(
                str(point.standing), process, self._job.guest
            )
        except Unavailable as why:
            raise TargetError(
                f"process {process.pid} cannot be traced: {why}",
                "report it, with the output of `virtrace recipe check`",
            ) from why


@contextmanager
def _at_once() -> Iterator[None]:
    """Have the scheduler run this process before others, where that is allowed."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _await(
    starts: Starts, traced: subprocess.Popen[bytes] | None, signals: Sequence[int]
) -> Process | None:
    """Wait for the process to start; None if a signal ended that.

    Raises: TargetError if the command that should start it has ended for a while.
    """
    give_up_at = None
    while not signals:
        process = starts.look()
        if process is not None:
            return process
        if give_up_at is not None and time.monotonic() > give_up_at:
            raise TargetError(
                "the command has ended, and the daemon has not started",
                "name the program that starts: --process PATH",
            )
        if give_up_at is None and traced is not None and traced.poll() is not None:
            give_up_at = time.monotonic() + GRACE_SECONDS
        time.sleep(_BETWEEN_LOOKS)
    return None


def _coroutine_stacks(
    processes: Processes, plan: Plan, programs: Sequence[Program]
) -> CoroutineStacks | None:
    """None if no function of a process with coroutines is traced to its return."""
    returning = [site for site in plan.sites if probed_returns(site)]
    if not returning:
        return None
    process = processes.of(returning[0])
    assert isinstance(process, Process)
    own = {
        number
        for number, program in enumerate(programs)
        if processes.of(plan.sites[program.site]) is process
    }
    return CoroutineStacks(process.pid, own)


def record(job: Job, image: Image) -> int:
    """Record the job and return the exit status.

    image: the process, or the files of the one that starts next
    """
    qemu = None if job.qemu is None else inspect(job.qemu)
    processes = processes_of(job.recipe, image, qemu)
    plan = resolve(job.recipe, image, job.debug_files, job.packs, qemu)
    require_proven(processes, plan.plan)
    able = abilities()
    signals: list[int] = []
    traced = began = None
    with ExitStack() as opened:
        made, probes = load_programs(plan.plan, processes, able)
        opened.callback(probes.close)
        if isinstance(image, Process):
            process = image
        else:
            opened.enter_context(ending_signals(signals.append))
            how = "" if job.command else f"; in another terminal: {job.recipe.try_}"
            print_lines([f"waiting for {image.exe} to start{how}"])
            sys.stdout.flush()
            starts = Starts(image)
            traced = start(job.command) if job.command else None
            with _at_once():
                started = _await(starts, traced, signals)
                if started is None:
                    return INTERRUPTED
                began = _now_ns(), time.time()
                probes.attach(started.pid)
            process = started
            plan.header["target"]["pid"] = process.pid
            processes = processes_of(job.recipe, process, qemu)
        standing = _Standing(job, processes)
        if any(program.is_return_probe for program in made):
            _require_safe_returns(process)
        load = Load(probes, plan.plan.sites, processes, job, able)
        live = LiveBacktraces(processes, plan.plan, made)
        opened.callback(live.close)
        target = os.pidfd_open(process.pid)
        opened.callback(os.close, target)
        writer = new_writer(job.output, job.rotation)
        if process is image:
            opened.enter_context(ending_signals(signals.append))
        view = TerminalView(sys.stdout.fileno(), writer, job)
        output = Output(Answers(job.recipe.points, job.recipe.spans), job.limits, writer, view)
        own_tids = shares_pids(process.pid)
        stacks = _coroutine_stacks(processes, plan.plan, made)
        replayer = Replayer(
            *(job, plan, made, output),
            own_tids=own_tids,
            stack_of=live.stack_of,
            stacks=stacks,
        )
        spool: Spool[_Mark] = Spool(job.output.absolute().parent)
        opened.callback(spool.close)
        run = _Run(probes, replayer, spool, load, live, stacks, standing)
        try:
            if process is image:
                probes.attach(process.pid)
            # Behind this moment a rise is one that a program has met.
            stood = standing.read()
            probes.stood(stood.get(BLOCK_NODES, ()))
        except BaseException:
            writer.discard()
            raise
        try:
            reason = "error"
            try:
                replayer.begin(*(began or (_now_ns(), time.time())), probes.refused)
                replayer.note_standing(stood, _now_ns())
                with kernel.statistics():
                    reason = run.until_its_end(job, target, signals, traced)
                run.detach()
                if reason == "done" and has_exited(target):
                    # By the command, as its last act.
                    reason = "target-exit"
                run.decode_the_rest(job.output.name, signals)
                replayer.record_held()
                with suppress(TargetError):
                    replayer.note_standing(standing.read(), _now_ns())
            except Exception as error:
                replayer.recording.ending.fail(error)
            replayer.recording.lost = max(replayer.recording.lost, probes.lost())
            replayer.finish(reason)
        finally:
            probes.detach()
            writer.close()
            view.close()
        return replayer.recording.status()
