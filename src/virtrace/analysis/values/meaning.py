"""What a number of libvirt's API is called.

The tables beside this module are of libvirt 12.8.0: the value, its name in words, and the version
that has it first. No value has changed its meaning since 7.0.0. That of QEMU is alike on 5.2 to
11.1, and has words for errors of the host, too.
"""

from __future__ import annotations

import errno
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from virtrace import resources
from virtrace.trace import roles
from virtrace.trace.format import Json, Record

_FOLDER = Path(__file__).parent
_ERRNO = "errno"


def _table(name: str) -> dict[str, dict[str, list[str]]]:
    file = _FOLDER / f"{name}.json"
    table: dict[str, dict[str, list[str]]] = json.loads(resources.text(file))
    return table


# Read at once: later, a process can be without the right to open files.
_ENUMS: Mapping[str, Mapping[str, list[str]]] = {
    **{
        kind: values
        for name in ("errors", "states", "jobs", "volumes", "events", "qemu")
        for kind, values in _table(name).items()
    }
}
_FLAGS: Mapping[str, Mapping[str, list[str]]] = _table("flags")
_ARGUMENTS: Mapping[str, list[str]] = json.loads(resources.text(_FOLDER / "arguments.json"))
# By role or name of a probe, and the name of its value.
_VALUES = {
    (roles.ERROR, "code"): "virErrorNumber",
    (roles.ERROR_AGAIN, "code"): "virErrorNumber",
    (roles.ERROR_PLACE, "code"): "virErrorNumber",
    (roles.ERROR_PLACE, "domain"): "virErrorDomain",
    ("virDomainGetInfo", "state"): "virDomainState",
    ("blockjob.told", "type"): "virDomainBlockJobType",
    ("blockjob.told", "status"): "virConnectDomainEventBlockJobStatus",
    ("event.queued", "kind"): "virDomainEventID",
    ("virConnectDomainEventRegisterAny", "kind"): "virDomainEventID",
    ("event.lifecycle", "type"): "virDomainEventType",
    ("guest.became", "type"): "virDomainEventType",
    (roles.GUEST_LIFECYCLE, "type"): "virDomainEventType",
    **{(role, "result"): _ERRNO for role in roles.FAILED_REQUESTS},
    **{(role, "error"): _ERRNO for role in (roles.DEVICE_ERROR, roles.JOB_ERROR)},
    **{(role, "action"): "BlockErrorAction" for role in (roles.DEVICE_ERROR, roles.JOB_ERROR)},
    (roles.DEVICE_ERROR, "on_read_error"): "BlockdevOnError",
    (roles.DEVICE_ERROR, "on_write_error"): "BlockdevOnError",
    (roles.JOB_ERROR, "on_error"): "BlockdevOnError",
    (roles.GUEST_PAUSED, "state"): "RunState",
    ("volume", "type"): "virStorageVolType",
    ("virStorageVolGetInfo", "type"): "virStorageVolType",
    ("virStorageVolGetInfoFlags", "type"): "virStorageVolType",
    ("virStoragePoolGetInfo", "state"): "virStoragePoolState",
}


def meaning(probe: str, role: str | None, name: str, value: Json) -> str | None:
    """Return the words for a value; None if it has none.

    probe, role: of the event. name: of the value; of a field of a struct, the field's.
    """
    if type(value) is not int:
        return None
    kind = _kind(probe, role, name)
    if kind is None:
        return None
    if kind == _ERRNO:
        return errno.errorcode.get(abs(value))
    return one_of(kind, value) if isinstance(kind, str) else flags(kind, value)


# Bounded, as strangers choose the names.
@functools.lru_cache(4096)
def _kind(probe: str, role: str | None, name: str) -> str | list[str] | None:
    """Return the enum of a value, or the kinds of flags that it can have."""
    if name == _ERRNO:
        return _ERRNO
    found = _ARGUMENTS.get(f"{probe}.{name}")
    return found or _VALUES.get((role or "", name)) or _VALUES.get((probe, name))


# virDomainEventType.
DETAILS = (
    *("Defined", "Undefined", "Started", "Suspended", "Resumed", "Stopped", "Shutdown"),
    *("PMSuspended", "Crashed"),
)


def lifecycle(kind: Json, detail: Json) -> str | None:
    """Return the words for what became of a guest; None if it has none.

    kind, detail: as of virConnectDomainEventLifecycle.

    >>> lifecycle(5, 1)
    'stopped, destroyed'
    """
    became = one_of("virDomainEventType", kind) if type(kind) is int else None
    if became is None or type(kind) is not int or type(detail) is not int:
        return became
    how = one_of(f"virDomainEvent{DETAILS[kind]}DetailType", detail)
    return f"{became}, {how}" if how else became


def meanings(probe: str, role: str | None, values: Record) -> dict[str, str]:
    """Return the words for the values of a probe, also in structs, by name: ``info.state``."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inner = meanings(probe, role, value)
            found.update({f"{name}.{key}": words for key, words in inner.items()})
        elif (words := meaning(probe, role, name, value)) is not None:
            found[name] = words
    return found


def one_of(kind: str, value: int) -> str | None:
    """Return the word for a value of a public enum; None if the enum does not have it."""
    found = _ENUMS[kind].get(str(value))
    return found[0] if found else None


def error_words(number: int) -> str:
    """Return the name of an error of the host, and what it means.

    >>> error_words(28)
    'ENOSPC (no space left on device)'
    """
    name, words = errno.errorcode.get(number, f"error {number}"), one_of(_ERRNO, number)
    return f"{name} ({words})" if words else name


def flags(kinds: list[str], value: int) -> str | None:
    """Return the words for a combination of flags; None if there are none, or one is unknown."""
    if value <= 0:
        return None
    words = []
    for bit in (1 << position for position in range(value.bit_length())):
        if value & bit:
            found = next(
                (_FLAGS[kind][str(bit)] for kind in kinds if str(bit) in _FLAGS[kind]), None
            )
            if found is None:
                return None
            words.append(found[0])
    return ", ".join(words)
