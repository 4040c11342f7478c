"""What the engine refuses, and why the kernel's probes cannot be used on this host."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from virtrace.engines.uprobes import kernel
from virtrace.engines.uprobes.trial import abilities
from virtrace.errors import TargetError
from virtrace.image.process import read_status

NAME = "uprobes"
# Options of `virtrace record` that mean nothing here, and why.
REFUSED: Mapping[str, str] = MappingProxyType(
    {"max-stop-ms": "the uprobes engine never stops the daemon"}
)
# What to do where this engine cannot trace.
BY_GDB = "trace by GDB: --engine gdb"
# <linux/capability.h>
_CAPABILITIES = {"CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21
_OLDEST = (5, 8)
_LOCKDOWN = Path("/sys/kernel/security/lockdown")


def problem() -> TargetError | None:
    """Return why no program can be attached here; None if one was, to a function of our own."""
    if not kernel.is_supported_machine():
        return TargetError(f"the uprobes engine does not know {platform.machine()}", BY_GDB)
    try:
        abilities()
    except FileNotFoundError:
        return TargetError("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)", BY_GDB)
    except OSError as error:
        return _explained(error)
    return None


def _explained(error: OSError) -> TargetError:
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if version < _OLDEST:
        return TargetError(
            f"the kernel is Linux {platform.release()}, and the uprobes engine needs 5.8", BY_GDB
        )
    if error.errno not in (errno.EPERM, errno.EACCES):
        return TargetError(f"the kernel refuses BPF programs: {error.strerror}", BY_GDB)
    missing = _missing_capabilities()
    if missing and os.geteuid() != 0:
        return TargetError(
            "only root may trace by the kernel's probes",
            f"run as root (sudo), or with the capabilities {' and '.join(missing)}",
        )
    if missing:
        return TargetError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, as in most "
            "containers",
            "run on the host, or start the container with "
            + " ".join(f"--cap-add {name[4:]}" for name in missing),
        )
    status = read_status(os.getpid())
    if status and status.get("Seccomp", "0") != "0":
        return TargetError(
            "a seccomp filter forbids bpf(2) or perf_event_open(2), as in most containers",
            "run on the host, or start the container with --security-opt seccomp=unconfined",
        )
    return TargetError(f"the kernel refuses BPF programs: {error.strerror}{_locked_down()}", BY_GDB)


def _missing_capabilities() -> list[str]:
    status = read_status(os.getpid())
    held = int(status["CapEff"], 16) if status else 0
    if held & 1 << _CAP_SYS_ADMIN:
        return []
    return [name for name, bit in _CAPABILITIES.items() if not held & 1 << bit]


def _locked_down() -> str:
    try:
        return f" (lockdown: {_LOCKDOWN.read_text().strip()})"
    except OSError:
        return ""
