"""Checks a host: its engines, and what this user may trace."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from virtrace import engines
from virtrace.errors import DONE, NOT_TRACED
from virtrace.image.process import can_trace_all, user_name, yama_refusal, yama_scope
from virtrace.record.check import Check, Section


def engine_section(name: str) -> Section:
    engine = engines.load(name)
    return Section(f"{engine.title[:1].upper()}{engine.title[1:]}", [*engine.checks()])


def missing_engines_section() -> Section | None:
    """The problem that no engine can work on this host; None if one can."""
    problems = [engines.load(name).problem() for name in engines.ENGINES]
    if None in problems:
        return None
    return Section(
        "Engines", [Check("problem", error.what, error.remedy) for error in problems if error]
    )


def permission_section() -> Section:
    return Section("Permissions", list(_permissions()))


def _permissions() -> Iterator[Check]:
    user = user_name(os.geteuid())
    refusal = yama_refusal(yama_scope(), can_trace_all())
    if refusal is not None:
        yield Check("problem", refusal.what, refusal.remedy)
    if can_trace_all():
        yield Check("ok", f"{user}, with CAP_SYS_PTRACE: may trace the daemons of every user")
    else:
        yield Check(
            "note",
            f"{user}, without CAP_SYS_PTRACE: may trace only {user}'s own daemon (qemu:///session)",
            "run as root (sudo) for the system daemon",
        )


def verdict(general: Sequence[Section], daemons: Sequence[Section]) -> tuple[int, str]:
    """Return the exit status of `virtrace doctor`, and the answer in one line.

    general: the sections of the host
    daemons: the sections of its daemons
    """
    ready = [section for section in daemons if section.problem is None]
    first_problem = next((section.problem for section in general if section.problem), None)
    if first_problem is None and not ready:
        first_problem = daemons[0].problem
    if first_problem is not None:
        return NOT_TRACED, f"Tracing will not work here: {first_problem.text}"
    each = "; ".join(f"{section.title}: {section.reach}" for section in ready)
    which = ", on several daemons, so name one with -p" if len(ready) > 1 else ""
    return DONE, f"Tracing works here{which}. {each}"
