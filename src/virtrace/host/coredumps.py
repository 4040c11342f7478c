"""Cores that systemd-coredump has stored on this host, as coredumpctl names them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from virtrace.errors import TargetError, Unavailable
from virtrace.host.programs import Programs

LATEST = "latest"
_SECONDS = 20.0
_LIST = "see what it has: coredumpctl list"
_STORAGE = re.compile(r"^ *Storage: (?P<where>.+?)(?: \((?P<state>[a-z ]+)\))?$", re.M)


def is_named(core: str) -> bool:
    """Whether this names a core of coredumpctl: a pid, or the latest one."""
    return core == LATEST or (core.isascii() and core.isdecimal())


def stored_core(core: str, names: Sequence[str]) -> Path:
    """Return the file of a core.

    core: as of is_named. names: of the processes of which the latest one can be.
    Raises: TargetError if there is none, or it is not in a file.
    """
    programs = Programs(time.monotonic() + _SECONDS)
    wanted = names if core == LATEST else [core]
    try:
        said = programs.run("coredumpctl", "--no-pager", "-1", "info", *wanted)
    except Unavailable as error:
        raise TargetError(f"coredumpctl has no such core: {error}", _LIST) from error
    return file_in(said.decode(errors="surrogateescape"))


def file_in(said: str) -> Path:
    """Return the file that `coredumpctl info` names for one core. Raises: TargetError."""
    # A process can have lines like it in its command line.
    several = [*_STORAGE.finditer(said)]
    found = several[0] if len(several) == 1 else None
    if found is None or not found["where"].startswith("/"):
        where = "not known" if found is None else found["where"]
        raise TargetError(
            f"the core is not in a file (storage: {where})",
            "if the journal has it: coredumpctl dump PID -o core, and name that file",
        )
    if found["state"] in ("missing", "inaccessible"):
        raise TargetError(f"{found['where']} is {found['state']}", _LIST)
    return Path(found["where"])
