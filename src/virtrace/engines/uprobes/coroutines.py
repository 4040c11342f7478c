"""Programs whose threads leave one stack for another: how their functions return, and where.

The kernel keeps the return addresses that its return probes replace by thread, in the order of one
stack. Where a thread enters a function on another stack, it takes those of the stack that was left
for gone, and the functions there return to its trampoline all the same: the process gets a SIGILL
(cleanup_return_instances, kernel/events/uprobes.c). So no return probe is set in such a program.
Probes go to the `ret` instructions of the function instead, and the stack pointer there tells which
entry it belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from virtrace.engine.stacks import Stacks
from virtrace.engines.uprobes.hits import Hit
from virtrace.engines.uprobes.layout import HIT, HIT_HEADER
from virtrace.errors import Unavailable
from virtrace.image.model import Program as Image
from virtrace.image.process import stacks_of
from virtrace.plan.model import Plan, ResolvedProbe, ReturnPointSite, Site, SpanSite
from virtrace.targets import target_of

_RETURNING = (SpanSite, ReturnPointSite)
# Bits of an address within a page, which is always of one stack.
_PAGE = 12
# Numbers of stacks, and of pages of unknown stacks, that are no number of a thread.
_STACK, _UNKNOWN = 1 << 32, 1 << 48


def without_return_probes(image: Image, plan: Plan) -> Plan:
    """Put probes to `ret` instructions, where return probes of the kernel could end the process.

    A probe of a function that may end elsewhere is missing.
    """
    if not target_of(image).coroutines:
        return plan
    # By file and address of a `ret`, the probe that has it.
    taken: dict[tuple[str, int], str] = {}
    return replace(plan, probes=[_at_ret(image, probe, taken) for probe in plan.probes])


def _at_ret(image: Image, probe: ResolvedProbe, taken: dict[tuple[str, int], str]) -> ResolvedProbe:
    sites = []
    try:
        for site in probe.sites:
            if isinstance(site, _RETURNING):
                module = image.module(site.module)
                assert module is not None
                returns = module.elf.returns(site.entry)
                for address in returns:
                    other = taken.setdefault((site.file, address), probe.name)
                    if other != probe.name:
                        raise Unavailable(f"it ends in the same place as {other}")
                site = replace(site, returns=returns)
            sites.append(site)
    except Unavailable as why:
        return replace(
            probe,
            level="missing",
            sites=(),
            offset=None,
            why=f"its return cannot be traced: {why}",
            lacks=(),
        )
    return replace(probe, sites=sites)


def probed_returns(site: Site) -> Sequence[int]:
    """Return the `ret` instructions that have a probe."""
    return (site.returns or ()) if isinstance(site, _RETURNING) else ()


class CoroutineStacks:
    """On which stack each thread was, while mappings are what they were when it was there."""

    def __init__(self, pid: int, programs: Collection[int]) -> None:
        """programs: the numbers of those that run in this process."""
        self._programs = programs
        self._stacks = Stacks(partial(stacks_of, pid))
        self._by_page: dict[int, int] = {}

    def note(self, records: Sequence[memoryview]) -> None:
        """Look where the stacks of new records are."""
        for record in records:
            if record[0] == HIT:
                _, program, tid, _, _, _, _, _, sp, _ = HIT_HEADER.unpack_from(record)
                page = sp >> _PAGE
                if program in self._programs and page not in self._by_page:
                    try:
                        found = self._stacks.number(tid, sp)
                    except OSError:
                        # The process has ended.
                        return
                    if found > 0:
                        self._by_page[page] = found

    def number(self, hit: Hit) -> int:
        """Return the number of the stack; of one that is not known, that of its page."""
        if hit.program not in self._programs:
            return hit.tid
        page = hit.sp >> _PAGE
        found = self._by_page.get(page)
        return _UNKNOWN | page if found is None else _STACK | found
