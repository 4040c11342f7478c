"""The engine that traces by breakpoints: starts GDB and hands it the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from virtrace import resources
from virtrace.engines.gdb.checks import checks
from virtrace.engines.gdb.launch import command
from virtrace.errors import IncompleteError, TargetError
from virtrace.image.process import Process
from virtrace.plan.resolve import require_for_gdb
from virtrace.record.check import Check
from virtrace.record.command import end_with_us, report_status, start
from virtrace.record.debug_info import fetch_sources
from virtrace.record.ends import ending_signals
from virtrace.record.job import Job
from virtrace.record.told import told_error


class GdbEngine:
    """Traces by breakpoints of GDB."""

    name = "gdb"
    title = "GDB"
    refuses: Mapping[str, str] = MappingProxyType({})
    stops = True
    resolves_here = False

    def problem(self) -> TargetError | None:
        if shutil.which("gdb") is None:
            return TargetError("gdb is not installed", "apt-get install gdb, or dnf install gdb")
        if resources.IS_ONE_FILE:
            return TargetError(
                "this virtrace is one file, and GDB needs its scripts in a folder",
                "use --engine uprobes, or install virtrace as docs/install.md says",
            )
        return None

    def checks(self) -> Iterator[Check]:
        return checks()

    def run(self, job: Job, process: Process) -> int:
        require_for_gdb(job.recipe)
        job = replace(job, source_files=fetch_sources(process, job))
        document = os.memfd_create("virtrace-job")
        ready, ready_for_gdb = os.pipe()
        try:
            with open(document, "wb", closefd=False) as file:
                file.write(job.to_json())
            gdb = subprocess.Popen(
                command(f"python commands.run_job({document}, {ready_for_gdb})"),
                stdin=subprocess.DEVNULL,
                pass_fds=[document, ready_for_gdb, *job.descriptors],
                preexec_fn=end_with_us,
            )
        finally:
            os.close(document)
            os.close(ready_for_gdb)
        with open(ready, "rb") as ready_file, ending_signals(partial(_signal, gdb)):
            # Until every call is traced, or GDB has ended.
            said = ready_file.readline()
            is_ready = said == b"ready\n"
            if is_ready and job.command:
                traced = start(job.command)
                if traced is not None:
                    report_status(job.command, traced.wait())
                _signal(gdb, signal.SIGUSR1)
            status = gdb.wait()
            # Others that GDB has started may live on.
            os.set_blocking(ready, False)
            told = ready_file.readline() if is_ready else said
        if status == 1:
            # Not one of ours: GDB could not even run the script.
            for check in checks():
                if check.kind == "problem":
                    raise TargetError(check.text, check.remedy or "run `virtrace doctor`")
        if status < 0:
            raise IncompleteError(
                f"GDB was ended by {signal.Signals(-status).name} while it traced",
                "every complete line of the trace counts; "
                f"`virtrace rescue {job.pid}` says whether anything was left in the daemon",
            )
        if told:
            raise told_error(told, status)
        return status


def _signal(gdb: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal on which GDB ends the trace and detaches; the caller waits for that."""
    if gdb.poll() is None:
        gdb.send_signal(number)


ENGINE = GdbEngine()
