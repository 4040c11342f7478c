"""Breakpoints that record and go on. Nothing here runs a command or changes a setting."""

from __future__ import annotations

import time
from typing import Protocol

import gdb
from virtrace.binary.abi import Abi
from virtrace.errors import TargetError
from virtrace.inferior.capture import Memory, Unavailable
from virtrace.inferior.resolve import Site
from virtrace.inferior.target import InferiorMemory, number, register
from virtrace.inferior.tracer import PointPlan, Tracer


class Session(Protocol):
    """What a probe needs of the session that runs it."""

    abi: Abi
    tracer: Tracer
    started_ns: int

    def hit(self, name: str) -> None: ...

    def wants_return_at(self, pc: int) -> bool:
        """Whether GDB must stop so that a breakpoint can be set where a call returns to."""

    def wants_to_end(self) -> bool: ...

    def stopped(self, since_ns: int, error: Exception | None) -> None: ...


class StoppedThread:
    """The thread that met a probe, as the tracer sees it (tracer.Stop)."""

    def __init__(self, session: Session, site: Site | None, t_ns: int) -> None:
        self.t_ns = t_ns
        self.memory: Memory = InferiorMemory()
        self.tid = gdb.selected_thread().ptid[1]
        self.frame = gdb.newest_frame()
        self._abi = session.abi
        self._site = site
        self.sp = register(self.frame, self._abi.stack_pointer)

    def argument(self, name: str) -> int:
        site = self._site
        assert site is not None
        if site.debug is not None:
            return site.debug.argument(self.frame, name)
        assert site.prototype is not None
        names = [parameter.name for parameter in site.prototype.parameters]
        if isinstance(site.plan, PointPlan) and not site.at_entry:
            try:
                return number(gdb.parse_and_eval(f"$_probe_arg{names.index(name)}"))
            except gdb.error as error:
                raise Unavailable(f"GDB cannot tell: {error}") from error
        return self._abi_argument(names.index(name))

    def _abi_argument(self, index: int) -> int:
        registers = self._abi.argument_registers
        if index < len(registers):
            return register(self.frame, registers[index])
        return self._word(self._abi.stack_argument(index, self.sp))

    def _word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, self._abi.word), "little")

    def result(self) -> int:
        return register(self.frame, self._abi.result_register)

    def return_to(self) -> tuple[int, int]:
        """Where the function at whose entry we are returns to: pc, and sp once it has."""
        assert self._site is not None
        if self._site.at_entry:
            return self._word(self.sp), self._abi.sp_after_return(self.sp)
        caller = self.frame.older()
        if caller is None:
            raise Unavailable("GDB cannot unwind to the caller")
        return caller.pc(), register(caller, self._abi.stack_pointer)


class _Probe(gdb.Breakpoint):
    """Never stops but to let the session act; what goes wrong in it ends the trace."""

    def __init__(self, session: Session, location: str, site: Site | None) -> None:
        super().__init__(location, internal=True)
        if self.pending:
            self.delete()
            raise TargetError(
                f"GDB found no place for {location}", "`virtrace doctor` says what may be missing"
            )
        self._session = session
        self._site = site
        self.silent = True

    def stop(self) -> bool:
        now = time.monotonic_ns()
        try:
            thread = StoppedThread(self._session, self._site, now - self._session.started_ns)
            act = self.met(thread)
        except Exception as error:
            self._session.stopped(now, error)
            return True
        self._session.stopped(now, None)
        return act or self._session.wants_to_end()

    def met(self, thread: StoppedThread) -> bool:
        """Record. True: the session has something to do that only a stopped process allows."""
        raise NotImplementedError


class EntryProbe(_Probe):
    def met(self, thread: StoppedThread) -> bool:
        assert self._site is not None
        plan = self._site.plan
        self._session.hit(plan.name)
        pc, sp = thread.return_to()
        if not self._session.tracer.enter(plan, thread, pc, sp):
            return False
        return self._session.wants_return_at(pc)


class ReturnProbe(_Probe):
    """At a place where traced functions return to. Kept: the same call site serves every call."""

    def __init__(self, session: Session, pc: int) -> None:
        super().__init__(session, f"*{pc:#x}", None)
        self._pc = pc

    def met(self, thread: StoppedThread) -> bool:
        self._session.tracer.leave(self._pc, thread)
        return False


class PointProbe(_Probe):
    def met(self, thread: StoppedThread) -> bool:
        assert self._site is not None
        plan = self._site.plan
        assert isinstance(plan, PointPlan)
        self._session.hit(plan.name)
        self._session.tracer.point(plan, thread)
        return False


def probe(session: Session, site: Site) -> gdb.Breakpoint:
    if isinstance(site.plan, PointPlan) and not site.plan.at_return:
        return PointProbe(session, site.location, site)
    return EntryProbe(session, site.location, site)
