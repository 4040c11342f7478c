"""Keeps what the probes cost the daemon below a limit, by the kernel's own accounting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

from virtrace.binary.x86_64 import EMULATED
from virtrace.engine.budget import Budget, Switch
from virtrace.engines.uprobes.attach import Probes
from virtrace.engines.uprobes.processes import Processes
from virtrace.engines.uprobes.trial import Abilities
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import ProcessMemory
from virtrace.image.process import Process
from virtrace.plan.model import AnySite
from virtrace.record.job import Job

_LOOK_SECONDS = 0.2


class Load:
    """What the probes of each site cost, second by second."""

    def __init__(
        self,
        probes: Probes,
        sites: Sequence[AnySite],
        processes: Processes,
        job: Job,
        abilities: Abilities,
    ) -> None:
        """Note what a hit of each site costs; the probes must not be attached yet."""
        self._probes = probes
        self._budget = Budget(job.limits, job.recipe, "the probes held threads")
        self._switches = [self._budget.switch(site) for site in sites]
        self._hit_ns = [*_hit_costs(processes, sites, abilities)]
        self._before: dict[int, tuple[int, int]] = {}
        self._began_ns = time.monotonic_ns()
        self._look_at = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left that begins a recorded call."""
        return self._budget.is_spent

    def too_much(self) -> Iterator[tuple[Switch, str]]:
        """Switch off what costs too much; return what, and why."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        now_ns = time.monotonic_ns() - self._began_ns
        for site, (spent, runs) in self._probes.run_times().items():
            spent_before, runs_before = self._before.get(site, (0, 0))
            self._before[site] = spent, runs
            cost = spent - spent_before + (runs - runs_before) * self._hit_ns[site]
            over = self._budget.spend(self._switches[site], cost, now_ns, 0, in_call=False)
            if over is not None:
                gone = {at for at, switch in enumerate(self._switches) if switch == over[0]}
                self._probes.switch_off(gone)
                yield over


def _hit_costs(
    processes: Processes, sites: Sequence[AnySite], abilities: Abilities
) -> Iterator[int]:
    """What a hit of each site costs without its program, in ns."""
    with ExitStack() as opened:
        memories: dict[int, ProcessMemory] = {}
        for site in sites:
            process = processes.of(site)
            assert isinstance(process, Process)
            if process.pid not in memories:
                memories[process.pid] = ProcessMemory(process.pid)
                opened.callback(memories[process.pid].close)
            cost = abilities.stepped_ns
            module = process.module(site.module)
            with suppress(Unavailable, TargetError):
                if module is not None:
                    code = memories[process.pid].read(module.base + site.addresses[0], 2)
                    if EMULATED.match(code):
                        cost = abilities.emulated_ns
            yield cost
