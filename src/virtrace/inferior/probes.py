"""Breakpoints that record and continue. Nothing here runs a command or changes a setting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import gdb

from virtrace.binary.abi import Abi, Operand
from virtrace.engine.budget import Switch
from virtrace.engine.tracer import Tracer
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import Memory
from virtrace.inferior.facts import number, register
from virtrace.inferior.kernel import Kernel
from virtrace.inferior.target import InferiorMemory
from virtrace.plan.arguments import WORD
from virtrace.plan.model import (
    AnySite,
    ContentSite,
    LineSite,
    PointSite,
    ReturnPointSite,
    SpanSite,
    StaticProbeSite,
)


class ProbeHost(Protocol):
    """The trace that runs a probe, as the probe sees it."""

    abi: Abi
    kernel: Kernel
    tracer: Tracer
    started_ns: int

    def hit(self, name: str) -> None: ...

    def wants_return_at(self, pc: int, switch: Switch) -> bool:
        """Whether GDB must stop so that a breakpoint can be set where a call returns to."""

    def stack_of(self, tid: int, sp: int) -> int:
        """Return the number of the stack that a thread is on; see tracer.Stop."""

    def stopping(self) -> None:
        """Note that a thread has hit a probe."""

    def stopped(self, since_ns: int, switch: Switch, tid: int) -> bool:
        """Account for a stop. Returns whether GDB must stop the process."""

    def linked(self, since_ns: int) -> bool:
        """Note that the linker loaded or unloaded a file. Returns whether GDB must stop."""

    def failed(self, since_ns: int, error: Exception) -> None: ...


class StoppedThread:
    """The thread that hit a probe, as the tracer sees it (tracer.Stop)."""

    def __init__(self, host: ProbeHost, probe: Probe, t_ns: int) -> None:
        self.t_ns = t_ns
        self.memory: Memory = host.kernel.memory
        self.tid = gdb.selected_thread().ptid[1]
        self._registers = host.kernel.registers(self.tid)
        self._abi = host.abi
        self._probe = probe
        self.sp = self.register(self._abi.stack_pointer)
        self.stack = host.stack_of(self.tid, self.sp)

    @cached_property
    def frame(self) -> gdb.Frame:
        return gdb.newest_frame()

    def register(self, name: str) -> int:
        if name in self._registers:
            return self._registers[name]
        return register(self.frame, name)

    def argument_registers(self) -> dict[str, int]:
        return {name: self.register(name) for name in self._abi.argument_registers}

    def probe_argument(self, index: int) -> int:
        operand = self._probe.operand(self.register(self._abi.program_counter), index)
        if operand is not None:
            return self._operand(operand)
        try:
            return number(gdb.parse_and_eval(f"$_probe_arg{index}"))
        except gdb.error as error:
            raise Unavailable(f"GDB cannot tell: {error}") from error

    def _operand(self, operand: Operand) -> int:
        value = self.register(operand.register)
        raw = (
            value.to_bytes(self._abi.word, "little")[: operand.size]
            if operand.offset is None
            else self.memory.read(value + operand.offset, operand.size)
        )
        return int.from_bytes(raw, "little", signed=operand.signed) & WORD

    def result(self) -> int:
        if self._abi.result_register is None:
            raise Unavailable(f"how calls on {self._abi.machine} return it is not known")
        return self.register(self._abi.result_register)

    def result_is_used(self) -> bool:
        return self._probe.reads_result

    def return_address(self) -> int:
        return self.return_to()[0]

    def return_to(self) -> tuple[int, int]:
        """At a function's entry: return address, and stack pointer after the return."""
        if self._probe.at_entry and self._abi.return_address_on_stack:
            address = int.from_bytes(self.memory.read(self.sp, self._abi.word), "little")
            return address, self._abi.sp_after_return(self.sp)
        caller = self.frame.older()
        if caller is None:
            raise Unavailable("GDB cannot unwind to the caller")
        return caller.pc(), register(caller, self._abi.stack_pointer)


class Probe(gdb.Breakpoint):
    """Stops only to let the host act; an internal error in it ends the trace.

    addresses: in the process.
    switches: the probe is of use while one of these is on.
    """

    # Whether it is at the first instruction of a function.
    at_entry = False

    def __init__(
        self,
        host: ProbeHost,
        location: str,
        addresses: Sequence[int],
        switches: set[Switch],
    ) -> None:
        super().__init__(location, internal=True)
        if self.pending:
            self.delete()
            raise TargetError(
                f"GDB found no place for {location}", "`virtrace doctor` says what may be missing"
            )
        self._host = host
        self.addresses = addresses
        self.switches = switches
        self.silent = True

    def operand(self, pc: int, index: int) -> Operand | None:
        """Return where an argument of a static probe is; None if GDB must find it."""
        return None

    @cached_property
    def reads_result(self) -> bool:
        """Whether the code after a call reads an `int` result."""
        pattern = self._host.abi.reads_result
        # Read by GDB, which hides its own breakpoints.
        code = InferiorMemory().read(gdb.newest_frame().pc(), 3)
        return pattern is not None and bool(pattern.match(code))

    def stop(self) -> bool:
        now = time.monotonic_ns()
        try:
            self._host.stopping()
            thread = StoppedThread(self._host, self, now - self._host.started_ns)
            act = self.met(thread)
            return self._host.stopped(now, min(self.switches), thread.tid) or act
        except Exception as error:
            self._host.failed(now, error)
            return True

    def met(self, thread: StoppedThread) -> bool:
        """Record a hit. Returns whether the host must act while the process is stopped."""
        raise NotImplementedError


class EntryProbe(Probe):
    """A breakpoint at the entry of a function."""

    def __init__(
        self, host: ProbeHost, site: SpanSite | ReturnPointSite, base: int, switch: Switch
    ) -> None:
        super().__init__(host, f"*{base + site.address:#x}", (base + site.address,), {switch})
        self.at_entry = site.at_entry
        self._site = site

    def met(self, thread: StoppedThread) -> bool:
        self._host.hit(self._site.probe)
        pc, sp = thread.return_to()
        if not self._host.tracer.enter(self._site, thread, pc, sp):
            return False
        (switch,) = self.switches
        return self._host.wants_return_at(pc, switch)


class ReturnProbe(Probe):
    """A breakpoint at a return address. It stays, because the call site is used again."""

    def __init__(self, host: ProbeHost, pc: int, switches: set[Switch]) -> None:
        super().__init__(host, f"*{pc:#x}", (pc,), switches)
        self._pc = pc

    def met(self, thread: StoppedThread) -> bool:
        self._host.tracer.leave(self._pc, thread)
        return False


class PointProbe(Probe):
    """A breakpoint at a static probe, or at the entry of a function that is a point."""

    def __init__(self, host: ProbeHost, site: PointSite, base: int, switch: Switch) -> None:
        super().__init__(host, f"*{base + site.address:#x}", (base + site.address,), {switch})
        self.at_entry = site.at_entry
        self._site = site

    def met(self, thread: StoppedThread) -> bool:
        self._host.hit(self._site.probe)
        self._host.tracer.point(self._site, thread)
        return False


class StaticProbe(Probe):
    """A breakpoint at every place of a static probe, which GDB itself finds."""

    def __init__(self, host: ProbeHost, site: StaticProbeSite, base: int, switch: Switch) -> None:
        location = f"-probe-stap {site.provider}:{site.name}"
        addresses = [base + address for address in site.addresses]
        super().__init__(host, location, addresses, {switch})
        self._site = site
        self._operands = {
            base + address: [*map(host.abi.operand, texts)]
            for address, texts in site.arguments.operands.items()
        }

    def operand(self, pc: int, index: int) -> Operand | None:
        operands = self._operands.get(pc, ())
        return operands[index] if index < len(operands) else None

    def met(self, thread: StoppedThread) -> bool:
        self._host.hit(self._site.probe)
        self._host.tracer.point(self._site, thread)
        return False


class LineProbe(Probe):
    """A breakpoint at a source line."""

    def __init__(self, host: ProbeHost, site: LineSite, base: int, switch: Switch) -> None:
        self._pc = base + site.address
        super().__init__(host, f"*{self._pc:#x}", (self._pc,), {switch})
        self._site = site

    def met(self, thread: StoppedThread) -> bool:
        self._host.tracer.line(self._site, self._pc, thread)
        return False


class LinkerProbe(gdb.Breakpoint):
    """A breakpoint on the dynamic linker's hook, hit after each load or unload of a file."""

    def __init__(self, host: ProbeHost, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self._host = host
        self.silent = True

    def stop(self) -> bool:
        now = time.monotonic_ns()
        try:
            return self._host.linked(now)
        except Exception as error:
            self._host.failed(now, error)
            return True


def probe(host: ProbeHost, site: AnySite, base: int, switch: Switch) -> Probe:
    """Set the breakpoint of a site. base: load address of its module."""
    if isinstance(site, LineSite):
        return LineProbe(host, site, base, switch)
    if isinstance(site, StaticProbeSite):
        return StaticProbe(host, site, base, switch)
    if isinstance(site, PointSite):
        return PointProbe(host, site, base, switch)
    # What writes contain is compared by programs of the kernel alone.
    assert not isinstance(site, ContentSite)
    return EntryProbe(host, site, base, switch)
