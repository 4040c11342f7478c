"""What makes a trace with GDB dangerous for a daemon now, found without touching the daemon.

A hazard is a warning to the user, not a reason to refuse.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtrace.image.process import Process, read_status, text_of_process
from virtrace.targets import Target

_ENGINE = "`virtrace record` with --engine uprobes, which can be killed without harm to the daemon"
_MAX_ENVIRONMENT = 1 << 18
# How long the load of the daemon and the host is measured.
_LOOK_SECONDS = 0.2
# A client that asks for a disk's numbers in a loop takes 3 to 5 % of a processor; then a thread is
# at a breakpoint for a third of the time.
_BUSY = 0.01
_SWAPPED_A_SECOND = 100
_WAITS_FOR_MEMORY = 10.0


@dataclass(frozen=True)
class Hazard:
    """what: what may happen, and why; remedy: what to do instead."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Sample:
    """Counters of the daemon and the host.

    at: monotonic clock, s
    worked: processor time of the process, s; None if unknown
    swapped: pages that the host has read from and written to swap; None if unknown
    """

    at: float
    worked: float | None
    swapped: int | None


class Look:
    """Measures a process and its host from its construction on."""

    def __init__(self, process: Process, target: Target) -> None:
        self._process = process
        self._target = target
        self._before = _sample(process.pid)

    def hazards(self, stop_ms: float) -> list[Hazard]:
        """Wait until the measurement is long enough, and return what was found.

        stop_ms: longest total time for which a call may be held, ms
        """
        time.sleep(max(0.0, self._before.at + _LOOK_SECONDS - time.monotonic()))
        after = _sample(self._process.pid)
        status = read_status(self._process.pid)
        if status is None:
            # It has ended; the attach will report that.
            return []
        environment = _environment(self._process.pid)
        found = (
            watchdog(environment, own_pid=status["NSpid"].split()[-1]),
            patience(stop_ms, self._target.timeouts(self._process, environment)),
            swapping(self._before, after),
            pressure(_kernel_text("/proc/pressure/memory")),
            busy(self._before, after),
        )
        return [hazard for hazard in found if hazard is not None]


def watchdog(environment: Mapping[str, str], own_pid: str) -> Hazard | None:
    """The watchdog that sd_watchdog_enabled(3) would report.

    own_pid: the process's id in its own PID namespace
    """
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", own_pid) != own_pid:
        return None
    return Hazard(
        f"systemd ends this daemon when it is silent for {int(microseconds) / 1e6:g} s "
        "(a watchdog)",
        f"{_ENGINE}; or `systemctl service-watchdogs no` until the trace is over",
    )


def patience(stop_ms: float, timeouts: Mapping[str, float]) -> Hazard | None:
    """A timeout that is shorter than twice the time for which a call may be held.

    timeouts: as in Target
    """
    if not timeouts:
        return None
    who, seconds = min(timeouts.items(), key=lambda item: item[1])
    if stop_ms * 2 < seconds * 1000:
        return None
    return Hazard(
        f"a call may be held for {stop_ms:g} ms, but {who} for only {seconds:g} s",
        "a smaller --max-stop-ms",
    )


def swapping(before: Sample, after: Sample) -> Hazard | None:
    if before.swapped is None or after.swapped is None:
        return None
    rate = (after.swapped - before.swapped) / (after.at - before.at)
    if rate < _SWAPPED_A_SECOND:
        return None
    return Hazard(
        f"this host swaps ({rate:.0f} pages a second): the daemon is stopped for longer, and if "
        "GDB is killed because memory runs out, that can end the daemon",
        _ENGINE,
    )


def pressure(memory: str) -> Hazard | None:
    """memory: text of /proc/pressure/memory."""
    found = re.match(r"some avg10=([\d.]+)", memory)
    if found is None or float(found[1]) < _WAITS_FOR_MEMORY:
        return None
    return Hazard(
        f"this host is short of memory (programs waited for it in {float(found[1]):g} % of the "
        "last 10 s): if GDB is killed because memory runs out, that can end the daemon",
        _ENGINE,
    )


def busy(before: Sample, after: Sample) -> Hazard | None:
    if before.worked is None or after.worked is None:
        return None
    share = (after.worked - before.worked) / (after.at - before.at)
    if share < _BUSY:
        return None
    return Hazard(
        f"the daemon is busy ({share:.0%} of a processor): if GDB is killed while a thread is "
        "stopped at a breakpoint, that ends the daemon",
        _ENGINE,
    )


def _sample(pid: int) -> Sample:
    worked = None
    with suppress(OSError):
        # The clock that clock_getcpuclockid(3) returns for a pid.
        worked = time.clock_gettime(~pid << 3 | 2)
    counts = re.findall(r"^pswp(?:in|out) (\d+)", _kernel_text("/proc/vmstat"), re.M)
    return Sample(time.monotonic(), worked, sum(map(int, counts)) if counts else None)


def _environment(pid: int) -> dict[str, str]:
    """The variables that a process was started with; empty where they cannot be read."""
    variables = text_of_process(pid, "environ", _MAX_ENVIRONMENT).split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


def _kernel_text(path: str) -> str:
    """The content of a file of the kernel's; empty where there is none."""
    with suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""
