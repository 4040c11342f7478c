"""One trace of one process, from its first breakpoint to a clean detach."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gdb

from virtrace.binary.abi import Abi
from virtrace.engine.budget import Budget, Switch
from virtrace.engine.stacks import Stacks
from virtrace.errors import TargetError, Unavailable
from virtrace.guard.journal import Journal
from virtrace.image.process import Process, read_status, stacks_of
from virtrace.inferior import target
from virtrace.inferior.backtrace import Backtraces
from virtrace.inferior.breakpoints import Breakpoints
from virtrace.inferior.kernel import Kernel
from virtrace.inferior.recorder import Recorder
from virtrace.inferior.stillness import Stillness
from virtrace.inferior.waiting import HeldEvents
from virtrace.plan.model import Plan
from virtrace.record.ends import Watch, unsignalled
from virtrace.record.header import header_record
from virtrace.record.job import Job
from virtrace.record.recording import Recording
from virtrace.targets import target_of
from virtrace.trace.format import Engine, Header


@dataclass(frozen=True)
class Traced:
    """What is traced."""

    process: Process
    abi: Abi
    plan: Plan


@dataclass(frozen=True)
class Means:
    """What a trace uses.

    recorder: takes the events
    journal: what the guard restores if GDB is killed; None if there is no guard
    backtraces: None if the recipe asks for none
    ready: called when every call from then on is traced
    """

    recorder: Recorder
    journal: Journal | None
    backtraces: Backtraces | None
    ready: Callable[[], None]


class GdbTrace:
    """One trace of one process. Runs once.

    abi, kernel, tracer: for the probes
    started_ns: when the trace began; CLOCK_MONOTONIC
    """

    def __init__(self, job: Job, traced: Traced, means: Means, warnings: Sequence[str]) -> None:
        """warnings: what makes the trace dangerous for the process."""
        self.abi = traced.abi
        self.kernel = Kernel(traced.process.pid, traced.abi)
        # Only a coroutine leaves a stack for another: elsewhere each thread has its own.
        self._stacks = (
            Stacks(partial(stacks_of, traced.process.pid))
            if target_of(traced.process).coroutines
            else None
        )
        self.started_ns = time.monotonic_ns()
        self._job = job
        self._process = traced.process
        self._plan = traced.plan
        self._warnings = warnings
        self._recorder = means.recorder
        self._ready = means.ready
        self._stillness = Stillness(self.started_ns)
        self._waiting = (
            HeldEvents(means.recorder, means.backtraces.of) if means.backtraces else None
        )
        self._recording = Recording(
            job.recipe,
            job.selection,
            self._waiting or means.recorder,
            self._stillness.record,
        )
        self._ending = self._recording.ending
        self.tracer = self._recording.tracer
        self.hit = self._recording.hit
        self._breakpoints = Breakpoints(self, traced.process, traced.abi, means.journal)
        self._budget = Budget(job.limits, job.recipe)
        # The last probe that was hit, and by which thread: stops are charged to it.
        self._last_hit: tuple[Switch, int] | None = None
        self._over_budget: list[tuple[Switch, str]] = []
        self._running = False
        self._interrupt_sent = False
        self._last_stop: gdb.Event | None = None

    def run(self) -> int:
        """Trace until something ends it, detach, and return the exit status."""
        try:
            engine: Engine = {"name": "gdb", "version": gdb.VERSION}
            header: Header = {
                **header_record(
                    self._job.recipe, self._process, self._plan, engine, self.started_ns
                ),
                **self._job.header_fields(),
            }
            header["host"]["warnings"] = [*self._warnings]
            with Watch(self._job.selection.seconds, self._ask_end):
                gdb.events.stop.connect(self._on_stop)
                gdb.events.exited.connect(self._on_stop)
                try:
                    with unsignalled():
                        self._recorder.listen(self._ask_end)
                    self._recording.begin(header)
                    self._breakpoints.insert(self._plan, self._budget)
                    self._ready()
                    self._loop()
                except Exception as error:
                    self._ending.fail(error)
                finally:
                    self._leave()
        finally:
            self.kernel.close()
        self._recorder.join()
        if self._recorder.failure is not None:
            self._ending.fail(self._recorder.failure)
        return self._recording.status()

    # --- Called by probes, while their thread is stopped.

    def wants_return_at(self, pc: int, switch: Switch) -> bool:
        return self._breakpoints.want_return(pc, switch)

    def stack_of(self, tid: int, sp: int) -> int:
        return tid if self._stacks is None else self._stacks.number(tid, sp)

    def stopping(self) -> None:
        self._stillness.hit()

    def stopped(self, since_ns: int, switch: Switch, tid: int) -> bool:
        self._last_hit = switch, tid
        self._account(since_ns)
        if self._over_budget or (self._waiting is not None and self._waiting.needs_stop):
            return True
        # Once an interrupt was sent, only its own stop may end the trace: see _loop.
        return not self._interrupt_sent and self._ending.is_due()

    def linked(self, since_ns: int) -> bool:
        self._last_hit = None
        traced = filter(None, map(self._process.module, self._job.recipe.modules))
        gone = target.gone(self._process, traced)
        if gone is None:
            self._account(since_ns)
            return False
        why = TargetError(
            f"the daemon unloaded {gone.name}, which was traced",
            "record again; everything traced before is complete",
        )
        self.failed(since_ns, why)
        return True

    def failed(self, since_ns: int, error: Exception) -> None:
        self._ending.fail(error)
        self._account(since_ns)

    # --- Called by GDB's event loop.

    def _ask_end(self, reason: str) -> None:
        """End the trace from another thread than GDB's, where only post_event may be called."""
        gdb.post_event(partial(self._guarded, partial(self._end, reason)))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Have an error end the trace: GDB would only print it, and go on."""
        try:
            work()
        except Exception as error:
            was = self._ending.reason
            self._ending.fail(error)
            if was is None:
                self._interrupt()

    def _end(self, reason: str) -> None:
        was = self._ending.reason
        self._ending.request(reason)
        if was is None and self._ending.reason is not None:
            self._interrupt()

    def _interrupt(self) -> None:
        # GDB ignores an interrupt if no thread runs; then the loop looks at the reason next.
        if self._running and gdb.selected_inferior().threads()[0].is_running():
            self._interrupt_sent = True
            gdb.execute("interrupt")

    def _on_stop(self, event: gdb.Event) -> None:
        """All threads are stopped."""
        self._last_stop = event
        if self._waiting is not None:
            self._guarded(self._waiting.resolve)

    # --- Called while all threads are stopped.

    def _loop(self) -> None:
        resume = "continue"
        # An interrupt that was sent must be met here: left pending, it would end the daemon.
        while self._ending.reason is None or self._interrupt_sent:
            for switch, why in self._over_budget:
                self._switch_off(switch, why)
            self._over_budget.clear()
            if self._ending.reason is not None and not self._interrupt_sent:
                return
            self._insert_returns()
            self._account(self._stillness.since_ns)
            self._last_stop = None
            self._running = True
            try:
                gdb.execute(resume)
            finally:
                self._running = False
            resume = "continue"
            if self._last_stop is None or isinstance(self._last_stop, gdb.ExitedEvent):
                self._ending.reason = "target-exit"
                self._stillness.stopped()
                return
            if isinstance(self._last_stop, gdb.SignalEvent):
                self._stillness.stopped()
                self._last_hit = None
                if self._last_stop.stop_signal == "SIGINT":
                    if self._interrupt_sent:
                        self._interrupt_sent = False
                    else:
                        # Somebody ends the daemon; GDB would keep the signal to itself.
                        resume = "signal SIGINT"

    def _insert_returns(self) -> None:
        for switch, why in self._breakpoints.unsafe_returns():
            self._switch_off(switch, why)
            if self._ending.reason is not None:
                self._ending.fail(
                    TargetError(
                        f"{switch.name} cannot be traced: {why}",
                        "everything traced before is complete; trace the functions that it calls, "
                        "with a recipe of your own",
                    )
                )
        self._breakpoints.insert_returns()

    def _switch_off(self, switch: Switch, why: str) -> None:
        """Probe nothing of it from now on."""
        self._breakpoints.remove(switch)
        t_ns = time.monotonic_ns() - self.started_ns
        self._recording.switch_off(switch.name, switch.kind, why, t_ns)
        if not self._breakpoints.serve_any(self._budget.beginnings):
            self._ending.request("limit")

    def _leave(self) -> None:
        gdb.events.stop.disconnect(self._on_stop)
        gdb.events.exited.disconnect(self._on_stop)
        try:
            if self._ending.reason not in ("error", "target-exit"):
                self._breakpoints.require_in_place(self.kernel.memory)
        except Exception as error:
            self._ending.fail(error)
        try:
            try:
                self._breakpoints.delete()
            finally:
                target.detach()
        except Exception as error:
            self._ending.fail(error)
        is_gdbs = isinstance(self._ending.failure, (gdb.error, Unavailable))
        if is_gdbs and target.is_over(self._process):
            # It went while GDB was at work on it.
            self._ending.reason, self._ending.failure = "target-exit", None
        self._account(self._stillness.since_ns)
        ended_ns = time.monotonic_ns() - self.started_ns
        self._recorder.wait_indefinitely()
        status = read_status(self._process.pid)
        detached = status is None or status["TracerPid"] != str(os.getpid())
        self._guarded(partial(self._recording.finish, ended_ns, detached=detached))

    def _account(self, since_ns: int) -> None:
        """Account for a stop of one thread or all, which ends now or goes on."""
        still_ns = self._stillness.account(since_ns)
        if self._last_hit is not None:
            switch, tid = self._last_hit
            over = self._budget.spend(
                switch,
                still_ns + self._stillness.charge_gdb(),
                self._stillness.since_ns - self.started_ns,
                tid,
                self.tracer.is_inside(tid),
            )
            if over is not None:
                self._over_budget.append(over)
