"""Breakpoints that record and go on. Nothing here runs a command or changes a setting."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Protocol

import gdb

from virtrace.binary.abi import Abi
from virtrace.binary.x86_64 import Operand
from virtrace.engine.proof import (
    Caller,
    Proven,
    of_driver_method,
    of_static_function,
)
from virtrace.engine.stacks import Stacks
from virtrace.engine.tracer import Entered, LinePlan, PointPlan, Tracer
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import Memory
from virtrace.inferior.budget import Switch
from virtrace.inferior.kernel import Kernel
from virtrace.inferior.resolve import Site
from virtrace.inferior.target import WORD, InferiorMemory, number, register
from virtrace.recipe.model import DriverMethod
from virtrace.recipe.path import CALLER


class Session(Protocol):
    """What a probe needs of the session that runs it."""

    abi: Abi
    kernel: Kernel
    tracer: Tracer
    stacks: Stacks
    started_ns: int

    def hit(self, name: str) -> None: ...

    def wants_return_at(self, pc: int, switch: Switch) -> bool:
        """Whether GDB must stop so that a breakpoint can be set where a call returns to."""

    def stopping(self) -> None:
        """A thread has come to a probe."""

    def stopped(self, since_ns: int, switch: Switch, tid: int) -> bool:
        """It may go on, where GDB need not stop."""

    def linked(self, since_ns: int) -> bool:
        """The dynamic linker has loaded or unloaded something. Whether GDB must stop for it."""

    def failed(self, since_ns: int, error: Exception) -> None: ...


class StoppedThread:
    """The thread that met a probe, as the tracer sees it (tracer.Stop)."""

    def __init__(self, session: Session, probe: Probe, t_ns: int) -> None:
        self.t_ns = t_ns
        self.memory: Memory = session.kernel.memory
        self.tid = gdb.selected_thread().ptid[1]
        self._registers = session.kernel.registers(self.tid)
        self._abi = session.abi
        self._probe = probe
        self._site = probe.site
        self.entered: Entered | None = None
        self._proven: Proven | None = None
        self.sp = self.register(self._abi.stack_pointer)
        self.stack = session.stacks.number(self.tid, self.sp)

    @cached_property
    def frame(self) -> gdb.Frame:
        return gdb.newest_frame()

    def register(self, name: str) -> int:
        if name in self._registers:
            return self._registers[name]
        return register(self.frame, name)

    def argument(self, name: str) -> int:
        site = self._site
        assert site is not None
        if name == CALLER:
            return self.return_to()[0]
        if site.known is not None:
            return site.known.argument(self, name, self.entered)
        assert site.prototype is not None
        names = [parameter.name for parameter in site.prototype.parameters]
        index = names.index(name)
        if isinstance(site.plan, PointPlan) and not site.at_entry:
            operands = (
                site.operands.get(self.register(self._abi.program_counter))
                if site.operands
                else None
            )
            operand = operands[index] if operands and index < len(operands) else None
            if operand is not None:
                return self._operand(operand)
            try:
                return number(gdb.parse_and_eval(f"$_probe_arg{index}"))
            except gdb.error as error:
                raise Unavailable(f"GDB cannot tell: {error}") from error
        if site.find is None:
            return self._abi_argument(index)
        proven = self._proven[index] if self._proven and index < len(self._proven) else None
        if proven is None:
            raise Unavailable("without debug info its register cannot be proven")
        return proven

    def arguments(self, caller: Caller | None) -> Proven:
        site = self._site
        assert site is not None
        assert site.prototype is not None
        parameters = site.prototype.parameters
        if site.find is None:
            self._proven = tuple(self._or_none(parameter.name) for parameter in parameters)
        elif caller is not None:
            registers = [*self.argument_registers().values()]
            if isinstance(site.find, DriverMethod):
                self._proven = of_driver_method(registers, parameters, caller)
            else:
                self._proven = of_static_function(
                    registers, parameters, caller, self.sp, self._word
                )
        else:
            self._proven = ()
        return self._proven

    def argument_registers(self) -> dict[str, int]:
        return {name: self.register(name) for name in self._abi.argument_registers}

    def _or_none(self, name: str) -> int | None:
        try:
            return self.argument(name)
        except Unavailable:
            return None

    def _abi_argument(self, index: int) -> int:
        registers = self._abi.argument_registers
        if not registers:
            raise Unavailable(f"how calls on {self._abi.machine} hand it over is not known")
        if index < len(registers):
            return self.register(registers[index])
        return self._word(self._abi.stack_argument(index, self.sp))

    def _operand(self, operand: Operand) -> int:
        value = self.register(operand.register)
        raw = (
            value.to_bytes(self._abi.word, "little")[: operand.size]
            if operand.offset is None
            else self.memory.read(value + operand.offset, operand.size)
        )
        return int.from_bytes(raw, "little", signed=operand.signed) & WORD

    def _word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, self._abi.word), "little")

    def result(self) -> int:
        if self._abi.result_register is None:
            raise Unavailable(f"how calls on {self._abi.machine} return it is not known")
        return self.register(self._abi.result_register)

    def result_is_used(self) -> bool:
        return self._probe.reads_result

    def return_to(self) -> tuple[int, int]:
        """Where the function at whose entry we are returns to: pc, and sp once it has."""
        assert self._site is not None
        if self._site.at_entry and self._abi.return_address_on_stack:
            return self._word(self.sp), self._abi.sp_after_return(self.sp)
        caller = self.frame.older()
        if caller is None:
            raise Unavailable("GDB cannot unwind to the caller")
        return caller.pc(), register(caller, self._abi.stack_pointer)


class Probe(gdb.Breakpoint):
    """Never stops but to let the session act; what goes wrong in it ends the trace.

    switches: it is of use as long as one of these is on.
    """

    def __init__(
        self, session: Session, location: str, site: Site | None, switches: set[Switch]
    ) -> None:
        super().__init__(location, internal=True)
        if self.pending:
            self.delete()
            raise TargetError(
                f"GDB found no place for {location}", "`virtrace doctor` says what may be missing"
            )
        self._session = session
        self.site = site
        self.switches = switches
        self.silent = True

    @property
    def addresses(self) -> tuple[int, ...]:
        assert self.site is not None
        return self.site.addresses

    @cached_property
    def reads_result(self) -> bool:
        """Of one that stands behind a call, whether what is there looks at an `int` result."""
        pattern = self._session.abi.reads_result
        # By GDB, which leaves its own breakpoint out.
        code = InferiorMemory().read(gdb.newest_frame().pc(), 3)
        return pattern is not None and bool(pattern.match(code))

    def stop(self) -> bool:
        now = time.monotonic_ns()
        try:
            self._session.stopping()
            thread = StoppedThread(self._session, self, now - self._session.started_ns)
            act = self.met(thread)
            return self._session.stopped(now, min(self.switches), thread.tid) or act
        except Exception as error:
            self._session.failed(now, error)
            return True

    def met(self, thread: StoppedThread) -> bool:
        """Record. True: the session has something to do that only a stopped process allows."""
        raise NotImplementedError


class EntryProbe(Probe):
    def met(self, thread: StoppedThread) -> bool:
        assert self.site is not None
        plan = self.site.plan
        assert not isinstance(plan, LinePlan)
        self._session.hit(plan.name)
        pc, sp = thread.return_to()
        if not self._session.tracer.enter(plan, thread, pc, sp):
            return False
        (switch,) = self.switches
        return self._session.wants_return_at(pc, switch)


class ReturnProbe(Probe):
    """At a place where traced functions return to. Kept: the same call site serves every call."""

    def __init__(self, session: Session, pc: int, switches: set[Switch]) -> None:
        super().__init__(session, f"*{pc:#x}", None, switches)
        self._pc = pc

    @property
    def addresses(self) -> tuple[int, ...]:
        return (self._pc,)

    def met(self, thread: StoppedThread) -> bool:
        self._session.tracer.leave(self._pc, thread)
        return False


class PointProbe(Probe):
    def met(self, thread: StoppedThread) -> bool:
        assert self.site is not None
        plan = self.site.plan
        assert isinstance(plan, PointPlan)
        self._session.hit(plan.name)
        self._session.tracer.point(plan, thread)
        return False


class LineProbe(Probe):
    def __init__(self, session: Session, site: Site, switch: Switch) -> None:
        super().__init__(session, site.location, site, {switch})
        assert site.known is not None
        self._pc = site.known.pc

    def met(self, thread: StoppedThread) -> bool:
        assert self.site is not None
        plan = self.site.plan
        assert isinstance(plan, LinePlan)
        self._session.tracer.line(plan, self._pc, thread)
        return False


class LinkerProbe(gdb.Breakpoint):
    """Where the dynamic linker comes by when it has loaded or unloaded a file."""

    def __init__(self, session: Session, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self._session = session
        self.silent = True

    def stop(self) -> bool:
        now = time.monotonic_ns()
        try:
            return self._session.linked(now)
        except Exception as error:
            self._session.failed(now, error)
            return True


def probe(session: Session, site: Site, switch: Switch) -> Probe:
    if isinstance(site.plan, LinePlan):
        return LineProbe(session, site, switch)
    if isinstance(site.plan, PointPlan) and not site.plan.at_return:
        return PointProbe(session, site.location, site, {switch})
    return EntryProbe(session, site.location, site, {switch})
