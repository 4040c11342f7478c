"""The engine that traces by uprobes of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from virtrace.engines.uprobes import run
from virtrace.engines.uprobes.host import problem
from virtrace.engines.uprobes.replay import NAME, REFUSED
from virtrace.errors import TargetError
from virtrace.image.process import Process
from virtrace.record.check import Check
from virtrace.record.job import Job


class UprobesEngine:
    """Traces by uprobes of the kernel, with BPF programs of its own; nothing is stopped."""

    name = NAME
    title = "the kernel's probes"
    refuses = REFUSED
    stops = False

    def problem(self) -> TargetError | None:
        return problem()

    def checks(self) -> Iterator[Check]:
        found = self.problem()
        if found is None:
            yield Check("ok", f"`virtrace record --engine {NAME}` works here, and is the default")
        else:
            yield Check("note", f"no `--engine {NAME}`: {found.what}", found.remedy)

    def run(self, job: Job, process: Process) -> int:
        return run.record(job, process)


ENGINE = UprobesEngine()
