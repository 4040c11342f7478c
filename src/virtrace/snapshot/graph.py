"""Who waits for whom: from each thread that waits to the one that keeps it waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virtrace.snapshot.format import AT_REST
from virtrace.snapshot.model import AGENT_JOB, Job, Look, SeenThread


class Chain(NamedTuple):
    """threads: from the one that waits to the root. is_cycle: the last waits for one before it.

    job: the job that the last one waits for, where no thread holds it.
    """

    threads: tuple[SeenThread, ...]
    is_cycle: bool
    job: Job | None


@dataclass(frozen=True)
class Root:
    """What keeps threads waiting.

    thread: the last of the chains. behind: those that wait for it, in the order of their ids.
    job: held by no thread, and what `thread` waits for. cycle: the threads of a deadlock.
    """

    thread: SeenThread
    behind: tuple[SeenThread, ...]
    job: Job | None = None
    cycle: tuple[SeenThread, ...] = ()


def roots(look: Look) -> Sequence[Root]:
    """What keeps threads waiting, with the most that waits first."""
    found: dict[object, tuple[Chain, list[SeenThread]]] = {}
    for thread in look.threads:
        if thread.wait.kind in AT_REST:
            continue
        chain = _chain(look, thread, ())
        last = chain.threads[-1]
        key: object = tuple(sorted(one.tid for one in _cycle(chain))) or last.tid
        if chain.job is not None:
            # All that wait for a job that no thread holds wait for the same.
            key = last.wait.domain, chain.job
        found.setdefault(key, (chain, []))[1].append(thread)
    made = [_root(chain, threads) for chain, threads in found.values()]
    return sorted(made, key=lambda root: (-len(root.cycle), -len(root.behind), root.thread.tid))


def holders(look: Look, thread: SeenThread) -> Iterator[tuple[SeenThread | None, Job | None]]:
    """Those that a thread waits for; None where no thread holds the job."""
    wait = thread.wait
    if wait.kind in ("mutex", "rwlock"):
        owner = look.thread(wait.owner)
        if owner is not None:
            yield owner, None
    elif wait.kind == "job":
        domain = look.domain(wait.domain)
        for job in (domain.jobs or ()) if domain is not None else ():
            owner = look.thread(job.owner)
            if owner is not thread and _may_be_waited_for(job, wait.function or ""):
                yield owner, job


def _may_be_waited_for(job: Job, function: str) -> bool:
    """Whether a function that begins a job waits for this one."""
    is_known = function and not function.endswith("Internal")
    return not is_known or (job.kind == AGENT_JOB) == ("Agent" in function)


def _chain(look: Look, thread: SeenThread, before: tuple[SeenThread, ...]) -> Chain:
    if thread in before:
        return Chain((*before, thread), is_cycle=True, job=None)
    longest = None
    ownerless = None
    for owner, job in holders(look, thread):
        if owner is None:
            ownerless = job
            continue
        chain = _chain(look, owner, (*before, thread))
        if longest is None or (chain.is_cycle, len(chain.threads)) > (
            longest.is_cycle,
            len(longest.threads),
        ):
            longest = chain
    return longest or Chain((*before, thread), is_cycle=False, job=ownerless)


def _cycle(chain: Chain) -> tuple[SeenThread, ...]:
    if not chain.is_cycle:
        return ()
    cycle = chain.threads[chain.threads.index(chain.threads[-1]) : -1]
    # Wherever it was entered, it is told from the same thread on.
    first = cycle.index(min(cycle, key=lambda thread: thread.tid))
    return cycle[first:] + cycle[:first]


def _root(chain: Chain, threads: Sequence[SeenThread]) -> Root:
    cycle = _cycle(chain)
    first = cycle[0] if cycle else chain.threads[-1]
    inside = cycle or (first,)
    return Root(first, tuple(one for one in threads if one not in inside), chain.job, cycle)


def by_domain(look: Look, threads: Sequence[SeenThread]) -> Mapping[str, int]:
    """How many of the threads wait for each domain, by its name."""
    found: dict[str, int] = {}
    for thread in threads:
        name = domain_name(look, thread)
        if name is not None:
            found[name] = found.get(name, 0) + 1
    return found


def domain_name(look: Look, thread: SeenThread) -> str | None:
    """The domain that a thread works on: as its client named it, or as it waits for it."""
    if thread.request is not None and thread.request.subject == "domain":
        return thread.request.name
    domain = look.domain(thread.wait.domain)
    return None if domain is None else domain.name
