"""Whose rights a daemon has."""

from __future__ import annotations

from pathlib import Path

from virtrace.errors import Unavailable
from virtrace.files import Owner

_EFFECTIVE = 1


def owner_of(pid: int) -> Owner:
    """The effective user and groups of a process.

    Raises: Unavailable.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the daemon's user: {error.strerror}") from error
    ids = {
        name: [int(number) for number in numbers.split()]
        for name, _, numbers in (line.partition(b":") for line in status.splitlines())
        if name in (b"Uid", b"Gid", b"Groups")
    }
    return Owner(ids[b"Uid"][_EFFECTIVE], ids[b"Gid"][_EFFECTIVE], tuple(ids[b"Groups"]))
