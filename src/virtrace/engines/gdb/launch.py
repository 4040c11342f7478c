"""Starting GDB with virtrace inside."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from virtrace.errors import TargetError
from virtrace.image.process import inspect

_PACKAGE = Path(__file__).resolve().parents[2]
# Nothing of the user's, of the current folder or of a traced file is executed.
_GDB = (
    *("gdb", "-nx", "-nh", "-q", "-batch", "-iex", "set auto-load no"),
    # A trace ends them, and waits for that: their end takes the longer the later it begins.
    *("-iex", "maintenance set worker-threads 0"),
)
_RUN_SECONDS = 60


def command(action: str) -> list[str]:
    """Return GDB's command line for one of its `virtrace` commands, such as ``start blockinfo``."""
    return [*_GDB, "-x", str(_script()), "-ex", f"virtrace {action}"]


def job_command(document: int, ready: int) -> list[str]:
    """Return GDB's command line for a job.

    document: a file descriptor that the job is read from
    ready: a file descriptor that takes ``ready`` and a newline once every call is traced
    """
    return [*_GDB, "-x", str(_script()), "-ex", f"python commands.run_job({document}, {ready})"]


def _script() -> Path:
    installed = _PACKAGE / "gdb_scripts"
    scripts = installed if installed.is_dir() else _PACKAGE.parents[1] / "gdb_scripts"
    return scripts / "virtrace.py"


def backtrace(pid: int) -> str:
    """`thread apply all bt`. TargetError where GDB does not do it within a minute.

    The process stands still for it; whatever ends GDB lets it go on. GDB finds and reads the
    files of the process by itself: none of a stranger's may be among them.
    """
    for module in inspect(pid).modules:
        if not module.elf.is_trusted:
            raise TargetError(
                f"no backtrace: others than root can have written {module.path}, which GDB would "
                "read",
                "leave out --backtrace",
            )
    quiet = ("-iex", "set debuginfod enabled off", "-iex", "set pagination off")
    done = _run([*_GDB, *quiet, "-p", str(pid), "-ex", "thread apply all bt"])
    start = done.stdout.find("\nThread ")
    if start < 0:
        said = done.stderr.strip().partition("\n")[0] or f"gdb ended with {done.returncode}"
        raise TargetError(f"no backtrace: {said}", "run `virtrace doctor`")
    return done.stdout[start + 1 :]


def _run(argv: Sequence[str]) -> CompletedProcess[str]:
    """Run GDB to its end. Raises TargetError after a minute."""
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RUN_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"gdb does not run: {error}", "run `virtrace doctor`") from error


def end_with_us() -> None:
    """In a tracer's process: end the trace, cleanly, should this one be killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
