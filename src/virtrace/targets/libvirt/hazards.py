"""What makes it dangerous just now to trace a daemon with GDB, found without touching it.

Each is a note to whoever is about to trace, not a reason to refuse.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtrace.binary.inside import text_inside, text_of_process
from virtrace.image.process import Process, read_status

_ENGINE = "`virtrace record` with --engine bpftrace, which leaves nothing there to end the daemon"
# QEMU_JOB_WAIT_TIME of libvirt's qemu_domainjob.c.
_JOB_SECONDS = 30.0
# As libvirtd.conf has them where it says nothing else.
_KEEPALIVE = {"keepalive_interval": 5, "keepalive_count": 5}
_LONGEST = 1 << 18
# So long it is looked at how busy the daemon and the host are.
_LOOK_SECONDS = 0.2
# A client that asks for the numbers of a disk all the time takes 3 to 5 % of a processor, and a
# thread then stands at a breakpoint in every third moment.
_BUSY = 0.01
_SWAPPED_A_SECOND = 100
_WAITS_FOR_MEMORY = 10.0


@dataclass(frozen=True)
class Hazard:
    """what: may happen, and why. remedy: what to do instead."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Reading:
    """at: monotonic seconds. worked: processor seconds of the process so far, None if unknown.

    swapped: pages that the host has read from and written to its swap so far, likewise.
    """

    at: float
    worked: float | None
    swapped: int | None


class Look:
    """From when it is made until it is asked."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._before = _read(process.pid)

    def hazards(self, stop_ms: float) -> list[Hazard]:
        """Waits until it has looked for long enough. stop_ms: of recipe.selection.Limits."""
        time.sleep(max(0.0, self._before.at + _LOOK_SECONDS - time.monotonic()))
        after = _read(self._process.pid)
        status = read_status(self._process.pid)
        if status is None:
            # It has ended, which is for the attach to say.
            return []
        environment = _environment(self._process.pid)
        found = (
            watchdog(environment, own_pid=status["NSpid"].split()[-1]),
            patience(stop_ms, _conf(self._process, status["Uid"].split()[0], environment)),
            swapping(self._before, after),
            pressure(_text("/proc/pressure/memory")),
            busy(self._before, after),
        )
        return [hazard for hazard in found if hazard is not None]


def watchdog(environment: Mapping[str, str], own_pid: str) -> Hazard | None:
    """As sd_watchdog_enabled(3) has it. own_pid: of the process, as it sees it itself."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", own_pid) != own_pid:
        return None
    return Hazard(
        f"systemd ends this daemon when it is silent for {int(microseconds) / 1e6:g} s "
        "(a watchdog)",
        f"{_ENGINE}; or `systemctl service-watchdogs no` until the trace is over",
    )


def patience(stop_ms: float, conf: str) -> Hazard | None:
    """Who gives up before twice of what a call may be kept standing. conf: of libvirtd.conf."""
    waits = {"another call waits for the domain": _JOB_SECONDS}
    said = dict(re.findall(r"^\s*(keepalive_\w+)\s*=\s*(-?\d+)", conf, re.M))
    interval, count = (int(said.get(name, default)) for name, default in _KEEPALIVE.items())
    if interval > 0:
        waits["the daemon's keepalive lets a client wait"] = interval * (count + 1)
    who, seconds = min(waits.items(), key=lambda item: item[1])
    if stop_ms * 2 < seconds * 1000:
        return None
    return Hazard(
        f"a call may be kept standing for {stop_ms:g} ms, and {who} for {seconds:g} s only",
        "a smaller --max-stop-ms",
    )


def swapping(before: Reading, after: Reading) -> Hazard | None:
    if before.swapped is None or after.swapped is None:
        return None
    rate = (after.swapped - before.swapped) / (after.at - before.at)
    if rate < _SWAPPED_A_SECOND:
        return None
    return Hazard(
        f"this host swaps ({rate:.0f} pages a second): the daemon stands still for longer, and "
        "if GDB is killed for want of memory, that can end the daemon",
        _ENGINE,
    )


def pressure(memory: str) -> Hazard | None:
    """memory: of /proc/pressure/memory."""
    found = re.match(r"some avg10=([\d.]+)", memory)
    if found is None or float(found[1]) < _WAITS_FOR_MEMORY:
        return None
    return Hazard(
        f"this host is short of memory (programs waited for it in {float(found[1]):g} % of the "
        "last 10 s): if GDB is killed for want of it, that can end the daemon",
        _ENGINE,
    )


def busy(before: Reading, after: Reading) -> Hazard | None:
    if before.worked is None or after.worked is None:
        return None
    share = (after.worked - before.worked) / (after.at - before.at)
    if share < _BUSY:
        return None
    return Hazard(
        f"the daemon is busy ({share:.0%} of a processor): if GDB is killed while a thread stands "
        "at a breakpoint, that ends the daemon",
        _ENGINE,
    )


def _read(pid: int) -> Reading:
    worked = None
    with suppress(OSError):
        # What clock_getcpuclockid(3) makes of a pid.
        worked = time.clock_gettime(~pid << 3 | 2)
    counts = re.findall(r"^pswp(?:in|out) (\d+)", _text("/proc/vmstat"), re.M)
    return Reading(time.monotonic(), worked, sum(map(int, counts)) if counts else None)


def _environment(pid: int) -> dict[str, str]:
    """That it was started with; empty where it is not ours to see."""
    variables = text_of_process(pid, "environ", _LONGEST).split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


def _conf(process: Process, user: str, environment: Mapping[str, str]) -> str:
    """The file that the daemon was configured by; empty where it has none, or hides it."""
    proc = Path(f"/proc/{process.pid}")
    started = text_of_process(process.pid, "cmdline", _LONGEST)
    arguments = started.replace("--config=", "--config\0").split("\0")
    given = [file for option, file in zip(arguments, arguments[1:]) if option in ("-f", "--config")]
    if given:
        path = given[-1]
    else:
        home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
        folder = "/etc" if user == "0" else home
        path = f"{folder}/libvirt/{os.path.basename(process.exe)}.conf"
    with suppress(OSError):
        # As the process itself has it, as far as its root allows.
        root, folder = os.readlink(proc / "root"), os.readlink(proc / "cwd")
        inside = folder[len(root) :] if root != "/" and folder.startswith(root) else folder
        return text_inside(proc / "root", os.path.join(inside, path), _LONGEST)
    return ""


def _text(path: str) -> str:
    """Of a file of the kernel's; empty where there is none."""
    with suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""
