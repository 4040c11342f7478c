"""Where a number that libvirt answered came from, step by step, down to QEMU or the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS = ("capacity", "allocation", "physical")


@dataclass(frozen=True)
class Step:
    """One place where the number stood, and what it was taken from.

    kind: ``api``, ``driver``, ``struct`` (libvirt's copy of what QEMU said), ``qmp`` or
    ``host`` (libvirt's own look at the file or device).
    where: the function, the QMP command with its id, or what libvirt looked at.
    meaning: what the number is at this place, in words; empty where it is only handed on.
    value: None where the trace does not have it, and then ``missing`` says why.
    seq: the event that holds it; None where none does. path: where in the event's
    ``values``, as jq writes it.
    sources: what it was taken from. More than one: any of them can be it, and the trace does
    not tell which. Empty: the end of what libvirt can know.
    """

    kind: str
    where: str
    meaning: str = ""
    value: int | None = None
    missing: str | None = None
    seq: int | None = None
    path: str | None = None
    sources: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Why libvirt took one source and not another.

    seen: the events that show the branch taken; empty where it is told from the values.
    """

    text: str
    seen: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """The chain of one number. number: one of NUMBERS. answer: what the API returned."""

    number: str
    answer: Step
    rule: Rule

    def steps(self) -> Iterator[Step]:
        """Every step, the answer first, alternatives one after the other."""
        rest = [self.answer]
        while rest:
            step = rest.pop()
            yield step
            rest.extend(reversed(step.sources))
