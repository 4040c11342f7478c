"""The engine that traces by uprobes of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from virtrace.engines.uprobes.host import NAME, REFUSED, problem
from virtrace.errors import TargetError
from virtrace.image.model import Program
from virtrace.record.check import Check
from virtrace.record.job import Job


class UprobesEngine:
    """Traces by uprobes of the kernel, with BPF programs of its own; nothing is stopped."""

    name = NAME
    title = "the kernel's probes"
    refuses = REFUSED
    stops = False
    resolves_here = True

    def problem(self) -> TargetError | None:
        return problem()

    def checks(self) -> Iterator[Check]:
        found = self.problem()
        if found is None:
            yield Check("ok", f"`virtrace record --engine {NAME}` works here, and is the default")
        else:
            yield Check("note", f"no `--engine {NAME}`: {found.what}", found.remedy)

    def run(self, job: Job, image: Program) -> int:
        # While it is imported, the code of the process is being looked through.
        from virtrace.engines.uprobes.run import record

        return record(job, image)


ENGINE = UprobesEngine()
