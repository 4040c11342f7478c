"""The engine that traces by uprobes, set by bpftrace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from virtrace.engines.bpftrace import run
from virtrace.engines.bpftrace.recorded import REFUSED
from virtrace.errors import TargetError
from virtrace.image.process import Process
from virtrace.record.check import Check
from virtrace.record.job import Job


class BpftraceEngine:
    """Traces by uprobes of the kernel, which bpftrace sets."""

    name = title = "bpftrace"
    refuses = REFUSED

    def problem(self) -> TargetError | None:
        if shutil.which("bpftrace") is None:
            return TargetError(
                "bpftrace is not installed", "apt-get install bpftrace, or dnf install bpftrace"
            )
        if os.geteuid() != 0:
            return TargetError("only root may set uprobes", "run as root (sudo)")
        for folder in ("/sys/bus/event_source/devices/uprobe", "/sys/fs/bpf"):
            if not os.path.isdir(folder):
                return TargetError(
                    f"this kernel offers no uprobes for BPF: {folder} is not there",
                    "run on the host, with a kernel of 4.20 or later",
                )
        return None

    def checks(self) -> Iterator[Check]:
        problem = self.problem()
        if problem is None:
            yield Check("ok", "`virtrace record --engine bpftrace` works here")
        else:
            yield Check("note", f"no `--engine bpftrace`: {problem.what}", problem.remedy)

    def run(self, job: Job, process: Process) -> int:
        return run.record(job, process)


ENGINE = BpftraceEngine()
