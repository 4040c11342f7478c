"""Starts GDB."""

from __future__ import annotations

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
    # A trace ends GDB's worker threads and waits for that, which takes longer the later it begins.
    *("-iex", "maintenance set worker-threads 0"),
)
_RUN_SECONDS = 60


def command(action: str) -> list[str]:
    """Return the command line of a GDB that has virtrace loaded and runs one of its commands."""
    installed = _PACKAGE / "gdb_scripts"
    scripts = installed if installed.is_dir() else _PACKAGE.parents[1] / "gdb_scripts"
    return [*_GDB, "-x", str(scripts / "virtrace.py"), "-ex", action]


def backtrace(pid: int) -> str:
    """Return the output of `thread apply all bt`, for which the process is stopped.

    GDB finds and reads the files of the process by itself, so none of them may be a stranger's.

    Raises: TargetError if one is, or GDB fails or takes more than a minute
    """
    for module in inspect(pid).modules:
        if not module.elf.is_trusted:
            raise TargetError(
                f"no backtrace: others than root can have written {module.path}, which GDB would "
                "read",
                "leave out --backtrace",
            )
    quiet = ("-iex", "set debuginfod enabled off", "-iex", "set pagination off")
    try:
        done = run_gdb([*_GDB, *quiet, "-p", str(pid), "-ex", "thread apply all bt"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"gdb does not run: {error}", "run `virtrace doctor`") from error
    start = done.stdout.find("\nThread ")
    if start < 0:
        problem = done.stderr.strip().partition("\n")[0] or f"gdb ended with {done.returncode}"
        raise TargetError(f"no backtrace: {problem}", "run `virtrace doctor`")
    return done.stdout[start + 1 :]


def run_gdb(argv: Sequence[str]) -> CompletedProcess[str]:
    """Run GDB to its end, without input.

    Raises: OSError if it cannot be run; subprocess.TimeoutExpired after a minute
    """
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_RUN_SECONDS,
    )
