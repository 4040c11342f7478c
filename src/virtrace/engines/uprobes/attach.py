"""Loads the programs of a plan into the kernel and attaches them to one process."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from virtrace.engines.uprobes import kernel
from virtrace.engines.uprobes.host import BY_GDB
from virtrace.engines.uprobes.kernel import KernelError, Place
from virtrace.engines.uprobes.maps import RING_BYTES, Maps, symbols_of
from virtrace.engines.uprobes.processes import Processes
from virtrace.engines.uprobes.program import ROUNDS, Options, Program, programs
from virtrace.engines.uprobes.trial import Abilities
from virtrace.errors import EngineError
from virtrace.image.process import Process
from virtrace.plan.model import AnySite, ContentSite, LineSite, Plan, PointSite, Rising
from virtrace.targets.target import Standing

# Threads at a time that let go: the kernel waits in each for all processors.
_CLOSERS = 32
# Of the kernel alone, so that Python has no name for it (include/linux/errno.h).
_ENOTSUPP = 524


class TooLargeError(EngineError):
    """The verifier does not follow so large a program."""


class Probes:
    """The programs of a plan in the kernel; nothing of them is left when this process ends.

    ring: what they write to. refused: statements that begin with an instruction, such as one with
    a lock prefix, at which the kernel sets no probe
    """

    def __init__(
        self,
        programs: Sequence[Program],
        sites: Sequence[AnySite],
        processes: Processes,
        abilities: Abilities,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        """Load all programs; nothing is attached yet. Raises: EngineError."""
        self._programs = programs
        self._sites = sites
        self._processes = processes
        self._abilities = abilities
        self._descriptors: list[int] = []
        # -1: it is not attached.
        self._links: list[int] = []
        self.refused: list[LineSite] = []
        try:
            points = (site for site in sites if isinstance(site, PointSite))
            conditions = any(point.when is not None for point in points)
            contents = any(isinstance(site, ContentSite) for site in sites)
            main = processes.main
            pid = main.pid if isinstance(main, Process) else None
            self._maps = Maps(pid, ring_bytes, conditions=conditions, contents=contents)
        except OSError as error:
            raise _refused("maps cannot be created", error) from error
        self.ring = self._maps.ring
        try:
            self._load()
        except EngineError:
            self.close()
            raise

    def _load(self) -> None:
        able = self._abilities
        others = {process.pid for process in self._processes.others.values()}
        own = {pid: symbols_of(pid) for pid in others}

        def load(program: Program) -> int:
            process = self._processes.of(self._sites[program.site])
            named = own.get(process.pid, {}) if isinstance(process, Process) else {}
            code = program.code.link({**self._maps.symbols, **named})
            return kernel.load(code, "virtrace", sleepable=able.sleepable, multi=able.multi)

        # The verifier of each works on a processor of its own.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            loading = [pool.submit(load, program) for program in self._programs]
        errors = [loaded.exception() for loaded in loading]
        self._descriptors = [
            loaded.result() for loaded, error in zip(loading, errors) if error is None
        ]
        for program, error in zip(self._programs, errors):
            if isinstance(error, KernelError):
                probe = self._sites[program.site].probe
                said = [*error.log.strip().splitlines(), ""][0]
                if error.errno == errno.E2BIG:
                    raise TooLargeError(f"the program of {probe} is too large", BY_GDB) from error
                raise _refused(f"the program of {probe} was refused ({said})", error) from error
            if error is not None:
                raise error

    def attach(self, pid: int) -> None:
        """Attach all programs. Raises: EngineError; then none is attached.

        pid: of the process that was not there when they were loaded
        """
        self._maps.name_process(pid)
        attach = kernel.attach_multi if self._abilities.multi else kernel.attach
        for program, descriptor in zip(self._programs, self._descriptors):
            site = self._sites[program.site]
            process = self._processes.of(site)
            own_pid = process.pid if isinstance(process, Process) else pid
            module = process.module(site.module)
            assert module is not None
            place = Place(str(module.file), *program.offsets(module.elf), program.is_return_probe)
            try:
                self._links.append(attach(descriptor, place, own_pid))
            except KernelError as error:
                if error.errno == _ENOTSUPP and isinstance(site, LineSite):
                    self._links.append(-1)
                    self.refused.append(site)
                    continue
                self.detach()
                raise _refused(f"{site.probe} cannot be probed", error) from error

    def stood(self, nodes: Sequence[Standing]) -> None:
        """Note what the values of conditions were; what programs have met is newer, and stays."""
        for number, site in enumerate(self._sites):
            if isinstance(site, PointSite) and isinstance(site.when, Rising):
                for one in nodes:
                    self._maps.stood(number, one.key, one.value)

    def detach(self) -> None:
        """Detach all programs; returns when no thread runs one any more."""
        attached = [link for link in self._links if link >= 0]
        if attached:
            with ThreadPoolExecutor(min(len(attached), _CLOSERS)) as pool:
                list(pool.map(os.close, attached))
        self._links = []

    def switch_off(self, sites: set[int]) -> None:
        """Detach the programs of some sites."""
        for index, program in enumerate(self._programs):
            if program.site in sites and self._links[index] >= 0:
                os.close(self._links[index])
                self._links[index] = -1

    def lost(self) -> int:
        """Return how many events found no room in the ring."""
        return self._maps.lost()

    def run_times(self) -> dict[int, tuple[int, int]]:
        """Return how long the programs of each site ran, in ns, and how often, since the start."""
        found: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for program, descriptor in zip(self._programs, self._descriptors):
            with suppress(KernelError):
                spent, runs = kernel.run_time(descriptor)
                before = found[program.site]
                found[program.site] = before[0] + spent, before[1] + runs
        return found

    def close(self) -> None:
        self.detach()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._maps.close()


def load_programs(
    plan: Plan, processes: Processes, able: Abilities
) -> tuple[Sequence[Program], Probes]:
    """Load the programs of a plan, as large as the kernel takes them. Raises: EngineError."""
    of_next = not isinstance(processes.main, Process)
    for rounds in ROUNDS:
        made = programs(plan, Options(able.sleepable, rounds, of_next))
        try:
            return made, Probes(made, plan.sites, processes, able)
        except TooLargeError:
            if rounds == ROUNDS[-1]:
                raise
    raise AssertionError


def _refused(what: str, error: OSError) -> EngineError:
    return EngineError(f"the kernel cannot trace this: {what}: {error.strerror}", BY_GDB)
