"""The breakpoints of a trace in its process, from their insertion to their removal."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from virtrace.binary.abi import Abi
from virtrace.engine.budget import Budget, Switch
from virtrace.errors import TargetError
from virtrace.guard.journal import Journal
from virtrace.image.memory import Memory
from virtrace.image.process import Process, inspect
from virtrace.inferior import target
from virtrace.inferior.probes import LinkerProbe, Probe, ProbeHost, ReturnProbe, probe
from virtrace.inferior.returns import ReturnSites
from virtrace.plan.model import Plan


class Breakpoints:
    """Where the probes of a trace are. All but want_return() needs all threads to be stopped."""

    def __init__(
        self, host: ProbeHost, process: Process, abi: Abi, journal: Journal | None
    ) -> None:
        """host: is told about the hits. journal: what the guard restores; None: no guard."""
        self._host = host
        self._process = process
        self._instruction = abi.breakpoint
        self._journal = journal
        self._probes: list[Probe] = []
        self._linker_probe: LinkerProbe | None = None
        self._returns = ReturnSites()

    def insert(self, plan: Plan, budget: Budget) -> None:
        """Insert the breakpoints at the sites of a plan."""
        self._probes = [
            probe(self._host, site, module.base, budget.switch(site))
            for site in plan.sites
            if (module := self._process.module(site.module)) is not None
        ]
        if self._process.linker is not None:
            self._linker_probe = LinkerProbe(self._host, self._process.linker[1])

    def want_return(self, pc: int, switch: Switch) -> bool:
        """Have returns to an address traced; return whether a breakpoint has to be inserted."""
        return self._returns.want(pc, switch)

    def unsafe_returns(self) -> Iterator[tuple[Switch, str]]:
        """Yield what wants a breakpoint where one could break the process, and why.

        Each has to be removed before insert_returns() is called.
        """
        for pc in self._returns.wanted():
            doubt = self._doubt(pc)
            if doubt is not None:
                why = f"it returns to {pc:#x}, where a breakpoint could break the process: {doubt}"
                yield from ((switch, why) for switch in self._returns.wanted_by(pc))

    def _doubt(self, pc: int) -> str | None:
        """Return why a breakpoint at a return address could break the process, if it could."""
        try:
            doubt = self._process.doubts({pc: False}).get(pc)
            if doubt is not None:
                # It may be in a file that was loaded since.
                doubt = inspect(self._process.pid).doubts({pc: False}).get(pc)
        except TargetError as error:
            doubt = error.what
        return doubt

    def insert_returns(self) -> None:
        """Insert the breakpoints that are wanted at return addresses."""
        for pc, switches in self._returns.take().items():
            if self._journal is not None and self._instruction is not None:
                # As GDB reads it: the user may have a breakpoint there.
                was = target.InferiorMemory().read(pc, len(self._instruction))
                self._journal.breakpoint(pc, was)
            self._probes.append(ReturnProbe(self._host, pc, switches))

    def remove(self, switch: Switch) -> None:
        """Probe nothing of a switch from now on."""
        self._returns.drop(switch)
        for breakpoint_ in self._probes:
            breakpoint_.switches.discard(switch)
            if not breakpoint_.switches:
                breakpoint_.delete()
        self._probes = [breakpoint_ for breakpoint_ in self._probes if breakpoint_.switches]

    def serve_any(self, switches: Collection[Switch]) -> bool:
        """Whether anything of these switches is still probed."""
        return any(not probe_.switches.isdisjoint(switches) for probe_ in self._probes)

    def require_in_place(self, memory: Memory) -> None:
        """Check that all breakpoints are still there.

        A uprobe that somebody set at one meanwhile got the hits; when it went, the kernel wrote
        back the code of the file.

        memory: of the process, with the breakpoints in it
        Raises: TargetError if one is gone: calls may be missing since
        """
        if self._instruction is None:
            return
        gone = {
            switch.name
            for probe_ in self._probes
            for address in probe_.addresses
            if memory.read(address, len(self._instruction)) != self._instruction
            for switch in probe_.switches
        }
        if gone:
            raise TargetError(
                "another tracer (bpftrace, perf) replaced the breakpoints of "
                f"{', '.join(sorted(gone))}: calls may be missing",
                "record again while no other tool traces the daemon",
            )

    def delete(self) -> None:
        """Remove all breakpoints."""
        for breakpoint_ in filter(None, [*self._probes, self._linker_probe]):
            breakpoint_.delete()
