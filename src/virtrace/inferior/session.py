"""One trace of one process, from its first breakpoint to a clean detach."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial

import gdb

from virtrace import __version__
from virtrace.binary.abi import Abi
from virtrace.binary.debuginfo import how_to_trust
from virtrace.engine.capture import Unwalked
from virtrace.engine.stacks import Stacks
from virtrace.engine.tracer import RawEvent, Tracer
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, TargetError, Unavailable, incomplete
from virtrace.guard.journal import Journal
from virtrace.image.model import Program
from virtrace.image.process import Process, inspect, read_status, writable_mappings
from virtrace.inferior import target
from virtrace.inferior.backtrace import Backtraces
from virtrace.inferior.budget import Budget, Switch
from virtrace.inferior.kernel import Kernel
from virtrace.inferior.probes import LinkerProbe, Probe, ReturnProbe, probe
from virtrace.inferior.recorder import Recorder
from virtrace.inferior.resolve import ResolvedProbe
from virtrace.inferior.watch import Watch, unsignalled
from virtrace.recipe.model import Recipe
from virtrace.recipe.selection import Limits, Selection
from virtrace.targets import target_of
from virtrace.trace.format import (
    ENDED,
    FORMAT,
    VERSION,
    Footer,
    Header,
    LoadedModule,
    Record,
    unavailable,
)

# How long calls that are open may take to return once the traced command is done.
GRACE_SECONDS = 5.0

_EXIT_STATUS = {"done": DONE, "limit": DONE, "interrupt": INTERRUPTED}


class Session:
    """Runs once.

    backtraces: where the recipe has any. ready: called when every call from then on is traced.
    command: what is run then, if known. warnings: what was said of the daemon before the attach.
    """

    def __init__(
        self,
        recipe: Recipe,
        selection: Selection,
        limits: Limits,
        process: Process,
        abi: Abi,
        resolved: list[ResolvedProbe],
        journal: Journal | None,
        recorder: Recorder,
        backtraces: Backtraces | None,
        command: str | None,
        warnings: Sequence[str],
        ready: Callable[[], None],
    ) -> None:
        self.abi = abi
        self.kernel = Kernel(process.pid, abi)
        self.stacks = Stacks(partial(writable_mappings, process.pid))
        self.tracer = Tracer(selection.where, self._record)
        self.started_ns = time.monotonic_ns()
        self._recipe = recipe
        self._selection = selection
        self._limits = limits
        self._process = process
        self._resolved = resolved
        self._journal = journal
        self._recorder = recorder
        self._backtraces = backtraces
        self._command = command
        self._warnings = warnings
        self._ready = ready
        self._probes: list[Probe] = []
        self._linker_probe: LinkerProbe | None = None
        # Where a breakpoint stands, or is to be set, for calls of whom that return there.
        self._returns: dict[int, set[Switch]] = {}
        self._returns_wanted: dict[int, set[Switch]] = {}
        self._budget = Budget(limits, recipe)
        # Who met the last probe, for which the process may stand still longer.
        self._met: tuple[Switch, int] | None = None
        self._too_dear: list[tuple[Switch, str]] = []
        # Events that have to wait, and whose backtraces GDB can take once all threads stand.
        self._held: list[RawEvent] = []
        self._unwalked: list[tuple[Record, str, Unwalked]] = []
        self._hits = {item.name: 0 for item in recipe.probes}
        # Why the trace ends, once it does; and what broke it, where something did.
        self._reason: str | None = None
        self._failure: Exception | None = None
        # The command is done: the trace ends as soon as no call is open.
        self._finishing = False
        self._running = False
        self._interrupt_sent = False
        self._last_stop: gdb.Event | None = None
        self._still_since_ns = self.started_ns
        self._still_total_ns = 0
        self._still_max_ns = 0
        # What GDB itself works while the process stands still, and its clock when it last began.
        self._gdb_ns = 0
        self._gdb_unspent_ns = 0
        self._gdb_since_ns = 0

    def run(self) -> int:
        """Trace until something ends it, and detach. The exit status, as errors.py has it."""
        try:
            header: Header = {
                **header_record(self._recipe, self._process, self._resolved, self.started_ns),
                # What makes it another trace by the same recipe.
                "selection": {
                    "where": dict(self._selection.where),
                    "calls": self._selection.calls,
                    "seconds": self._selection.seconds,
                },
                "limits": {
                    "max_stop_ms": self._limits.stop_ms,
                    "max_load": self._limits.load,
                    "max_events": self._limits.events,
                    "max_bytes": self._limits.bytes,
                },
                "command": self._command,
            }
            header["host"]["warnings"] = [*self._warnings]
            with Watch(self._selection.seconds, GRACE_SECONDS, self._ask_end):
                gdb.events.stop.connect(self._on_stop)
                gdb.events.exited.connect(self._on_stop)
                try:
                    with unsignalled():
                        self._recorder.listen(self._ask_end)
                    self._recorder.put(header)
                    self._insert()
                    self._loop()
                except Exception as error:
                    self._failure = error
                    self._reason = "error"
                finally:
                    self._leave()
        finally:
            self.kernel.close()
        self._recorder.finish()
        failure = self._failure or self._recorder.failure
        if failure is not None:
            raise incomplete(failure) from failure
        return _EXIT_STATUS.get(self._reason or "error", INCOMPLETE)

    # --- Called by probes, while a thread stands at one.

    def hit(self, name: str) -> None:
        self._hits[name] += 1

    def wants_return_at(self, pc: int, switch: Switch) -> bool:
        if pc in self._returns:
            self._returns[pc].add(switch)
            return False
        # GDB's documentation forbids stop() to add or delete a breakpoint: the loop does.
        self._returns_wanted.setdefault(pc, set()).add(switch)
        return True

    def _wants_to_end(self) -> bool:
        if self._interrupt_sent:
            # Only the interrupt's own stop may end the trace: see _loop.
            return False
        calls = self._selection.calls
        if calls is not None and self.tracer.calls_done >= calls:
            self._reason = self._reason or "limit"
        elif self._finishing and not self.tracer.calls_open:
            self._reason = self._reason or "done"
        return self._reason is not None

    def stopping(self) -> None:
        self._gdb_unspent_ns = time.thread_time_ns() - self._gdb_since_ns
        self._gdb_ns += self._gdb_unspent_ns

    def stopped(self, since_ns: int, switch: Switch, tid: int) -> bool:
        self._met = switch, tid
        self._account(since_ns)
        # Every thread must stand, too, for a backtrace.
        return bool(self._too_dear or self._unwalked) or self._wants_to_end()

    def linked(self, since_ns: int) -> bool:
        self._met = None
        traced = filter(None, map(self._process.module, self._recipe.modules))
        gone = target.gone(self._process, traced)
        if gone is None:
            self._account(since_ns)
            return False
        why = TargetError(
            f"the daemon unloaded {gone.name}, which was traced",
            "record again: what was traced until then is whole",
        )
        self.failed(since_ns, why)
        return True

    def failed(self, since_ns: int, error: Exception) -> None:
        self._failure = self._failure or error
        self._reason = "error"
        self._account(since_ns)

    def _record(self, event: RawEvent) -> None:
        if self._backtraces is not None:
            self._unwalked += [
                (event.values, name, value)
                for name, value in event.values.items()
                if isinstance(value, Unwalked)
            ]
        if self._unwalked:
            self._held.append(event)
        else:
            self._put(event)

    def _put(self, event: RawEvent) -> None:
        self._recorder.put(event)
        if self._recorder.rotates:
            ends_call = event.span == event.call and event.type != "enter"
            if ends_call or event.call is None:
                # A file may end here.
                self._recorder.put(self._footer("rotated", event.t_ns, detached=False))

    def _guarded(self, work: Callable[[], None]) -> None:
        """GDB would only print what goes wrong in it, and go on."""
        try:
            work()
        except Exception as error:
            self._failure = self._failure or error
            self._end("error")

    def _ask_end(self, reason: str) -> None:
        """From other threads than GDB's: only post_event may be called there."""
        gdb.post_event(partial(self._guarded, partial(self._end, reason)))

    def _end(self, reason: str) -> None:
        if reason == "done" and not self._finishing and self.tracer.calls_open:
            self._finishing = True
            return
        if self._reason is None:
            self._reason = reason
            # GDB ignores it where no thread runs, and then the loop looks at the reason next.
            if self._running and gdb.selected_inferior().threads()[0].is_running():
                self._interrupt_sent = True
                gdb.execute("interrupt")

    def _on_stop(self, event: gdb.Event) -> None:
        self._last_stop = event
        # All threads stand.
        for values, name, thread in self._unwalked:
            assert self._backtraces is not None
            try:
                values[name] = self._backtraces.of(thread)
            except Unavailable as why:
                values[name] = unavailable(str(why))
            except Exception as error:
                # GDB would only print it.
                values[name] = unavailable("an error of virtrace's own")
                self._failure = self._failure or error
                self._reason = "error"
        self._unwalked.clear()
        for held in self._held:
            self._guarded(partial(self._put, held))
        self._held.clear()

    # --- The process stands still.

    def _insert(self) -> None:
        self._probes = [
            probe(self, site, self._budget.switch(site.plan))
            for item in self._resolved
            for site in item.sites
        ]
        if self._process.linker is not None:
            self._linker_probe = LinkerProbe(self, self._process.linker[1])
        self._ready()

    def _loop(self) -> None:
        resume = "continue"
        # An interrupt that was sent must be met here: left pending, it would end the daemon.
        while self._reason is None or self._interrupt_sent:
            for switch, why in self._too_dear:
                self._switch_off(switch, why)
            self._too_dear.clear()
            if self._reason is not None and not self._interrupt_sent:
                return
            for pc in [*self._returns_wanted]:
                doubt = self._doubt(pc)
                if doubt is not None:
                    self._give_up(pc, doubt)
            for pc, switches in self._returns_wanted.items():
                self._returns[pc] = switches
                if self._journal is not None and self.abi.breakpoint is not None:
                    # By GDB: the user may have one of their own there.
                    was = target.InferiorMemory().read(pc, len(self.abi.breakpoint))
                    self._journal.breakpoint(pc, was)
                self._probes.append(ReturnProbe(self, pc, switches))
            self._returns_wanted.clear()
            self._account(self._still_since_ns)
            self._last_stop = None
            self._running = True
            try:
                gdb.execute(resume)
            finally:
                self._running = False
            resume = "continue"
            if self._last_stop is None or isinstance(self._last_stop, gdb.ExitedEvent):
                self._reason = "target-exit"
                self._still_since_ns = time.monotonic_ns()
                return
            if isinstance(self._last_stop, gdb.SignalEvent):
                self._still_since_ns = time.monotonic_ns()
                self._met = None
                if self._last_stop.stop_signal == "SIGINT":
                    if self._interrupt_sent:
                        self._interrupt_sent = False
                    else:
                        # Somebody ends the daemon; GDB would keep the signal to itself.
                        resume = "signal SIGINT"

    def _doubt(self, pc: int) -> str | None:
        """Why a breakpoint at the place that a function returns to could break the process."""
        try:
            doubt = self._process.doubts({pc: False}).get(pc)
            if doubt is not None:
                # It may be in a file that was loaded since.
                doubt = inspect(self._process.pid).doubts({pc: False}).get(pc)
        except TargetError as error:
            doubt = error.what
        return doubt

    def _give_up(self, pc: int, doubt: str) -> None:
        """Trace no function any more that returns there; without the rest there is no trace."""
        for switch in [*self._returns_wanted.get(pc, ())]:
            why = f"it returns to {pc:#x}, where a breakpoint could break the process: {doubt}"
            self._switch_off(switch, why)
            if self._reason is not None:
                self._failure = TargetError(
                    f"{switch.name} cannot be traced: {why}",
                    "what was traced until then is whole; trace what it calls, by a recipe of "
                    "your own",
                )
                self._reason = "error"

    def _switch_off(self, switch: Switch, why: str) -> None:
        """Nothing is met of it from now on."""
        self._returns_wanted = _without(switch, self._returns_wanted)
        self._returns = _without(switch, self._returns)
        for one in self._probes:
            one.switches.discard(switch)
            if not one.switches:
                one.delete()
        self._probes = [one for one in self._probes if one.switches]
        t_ns = time.monotonic_ns() - self.started_ns
        if switch.kind != "line":
            self.tracer.switch_off(switch.name, t_ns)
        self._recorder.put(
            {
                "type": "switched-off",
                "t_ns": t_ns,
                "name": switch.name,
                "kind": switch.kind,
                "why": why,
            }
        )
        if not any(one.switches & self._budget.beginnings for one in self._probes):
            self._reason = self._reason or "limit"

    def _leave(self) -> None:
        gdb.events.stop.disconnect(self._on_stop)
        gdb.events.exited.disconnect(self._on_stop)
        try:
            if self._reason not in ("error", "target-exit"):
                self._require_in_place()
        except Exception as error:
            self._failure = error
            self._reason = "error"
        try:
            try:
                for breakpoint_ in filter(None, [*self._probes, self._linker_probe]):
                    breakpoint_.delete()
            finally:
                target.detach()
        except Exception as error:
            self._failure = self._failure or error
        if isinstance(self._failure, (gdb.error, Unavailable)) and target.is_over(self._process):
            # It went while GDB was at work on it.
            self._reason, self._failure = "target-exit", None
        self._account(self._still_since_ns)
        ended_ns = time.monotonic_ns() - self.started_ns
        self._recorder.be_patient()
        self._guarded(partial(self.tracer.finish, ended_ns, ENDED))
        self._guarded(lambda: self._recorder.put(self._last_footer(ended_ns)))

    def _require_in_place(self) -> None:
        """TargetError where a breakpoint is gone: calls may be missing since.

        A uprobe that somebody set there meanwhile got the calls; when it went, the kernel wrote
        back the code of the file.
        """
        instruction = self.abi.breakpoint
        if instruction is None:
            return
        gone = {
            switch.name
            for probe in self._probes
            for address in probe.addresses
            if self.kernel.memory.read(address, len(instruction)) != instruction
            for switch in probe.switches
        }
        if gone:
            raise TargetError(
                f"somebody else traced {', '.join(sorted(gone))} meanwhile (bpftrace, perf), which "
                "took the breakpoints away: calls may be missing",
                "record again while nobody else traces the daemon",
            )

    def _account(self, since_ns: int) -> None:
        """The process stood still from since_ns until now, and goes on or is not through yet."""
        now_ns = time.monotonic_ns()
        still = now_ns - since_ns
        self._still_total_ns += still
        self._still_max_ns = max(self._still_max_ns, still)
        self._still_since_ns = now_ns
        self._gdb_since_ns = time.thread_time_ns()
        if self._met is not None:
            switch, tid = self._met
            spent_ns = still + self._gdb_unspent_ns
            self._gdb_unspent_ns = 0
            gone = self._budget.spend(
                switch, spent_ns, now_ns - self.started_ns, tid, self.tracer.is_inside(tid)
            )
            if gone is not None:
                self._too_dear.append(gone)

    def _last_footer(self, ended_ns: int) -> Footer:
        status = read_status(self._process.pid)
        detached = status is None or status["TracerPid"] != str(os.getpid())
        return self._footer(self._reason or "error", ended_ns, detached=detached)

    def _footer(self, reason: str, t_ns: int, *, detached: bool) -> Footer:
        return {
            "type": "footer",
            "reason": reason,
            "t_ns": t_ns,
            # What came into the file is known where it is written.
            "events": 0,
            "dropped": 0,
            "hits": self._hits,
            "detached": detached,
            "stopped_ns": {
                "total": self._still_total_ns,
                "max": self._still_max_ns,
                "gdb": self._gdb_ns,
            },
        }


def _without(switch: Switch, returns: dict[int, set[Switch]]) -> dict[int, set[Switch]]:
    # Not new sets: the probes have these.
    for switches in returns.values():
        switches.discard(switch)
    return {pc: switches for pc, switches in returns.items() if switches}


def header_record(
    recipe: Recipe, process: Program, resolved: Sequence[ResolvedProbe], started_ns: int
) -> Header:
    roles = {probe.name: probe.role for probe in recipe.probes}
    return {
        "type": "header",
        "format": FORMAT,
        "version": VERSION,
        "started": datetime.now(timezone.utc).isoformat(),
        "clock": {"source": "CLOCK_MONOTONIC", "start_ns": started_ns},
        "tool": {
            "virtrace": __version__,
            "engine": {"name": "gdb", "version": gdb.VERSION},
            "python": platform.python_version(),
        },
        "target": {
            "pid": process.pid if isinstance(process, Process) else 0,
            "exe": process.exe,
            "program": target_of(process).to_record(process),
            "modules": list(_modules(recipe, process, resolved)),
        },
        "host": {
            "machine": platform.machine(),
            "kernel": platform.release(),
            "system": _system_name(),
        },
        "recipe": dict(recipe.raw),
        "probes": [item.to_record(roles[item.name]) for item in resolved],
    }


def _modules(
    recipe: Recipe, process: Program, resolved: Sequence[ResolvedProbe]
) -> Iterator[LoadedModule]:
    """The modules of the recipe, and what would give their probes more, where they lack any."""
    # Debug info does not help against an exported function that is not exported.
    static = {span.name for span in recipe.spans if span.find or span.prototype is None}
    for name in recipe.modules:
        module = process.module(name)
        if module is None:
            continue
        probes = [probe for probe in resolved if probe.module == name]
        known = any(probe.level in ("dwarf", "pack") for probe in probes)
        lacking = any(
            probe.lacks or (probe.level == "missing" and probe.name in static) for probe in probes
        )
        remedy = target_of(process).how_to_get_debug_info(name, process.root)
        if not module.elf.is_trusted:
            remedy = how_to_trust(module.path)
        yield {
            "path": module.path,
            "build_id": module.build_id,
            "base": f"{module.base:#x}",
            "remedy": remedy if lacking and not known else None,
        }


def _system_name() -> str | None:
    try:
        release = platform.freedesktop_os_release()
    except (OSError, AttributeError):  # AttributeError: Python 3.9
        return None
    return release.get("PRETTY_NAME")
