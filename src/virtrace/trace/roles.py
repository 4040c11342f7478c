"""Roles of probes: what an event means to those who read a trace, whatever its probe is called.

A recipe can give a probe a role; the names and captures below imply one. docs/recipes.md says which
values each role is read by.
"""

from __future__ import annotations

from collections.abc import Collection

QMP_COMMAND = "qmp.command"
QMP_REPLY = "qmp.reply"
QMP_EVENT = "qmp.event"
# Any other point that a point of the recipe answers, and the point that answers it.
REQUEST = "request"
REPLY = "reply"
# An error with its message; the place in the source where an error was raised; a message that
# other errors of the same failure repeat.
ERROR = "error"
ERROR_PLACE = "error.place"
ERROR_AGAIN = "error.again"
# An API that failed, right after its last error on the same thread.
API_FAILED = "api.failed"
# What is asked of the agent in a guest.
AGENT_COMMAND = "agent.command"
RPC_CALL = "rpc.call"
RPC_RECEIVED = "rpc.received"
RPC_CLIENT = "rpc.client"
RPC_PROCEDURE = "rpc.procedure"
RPC_DOMAIN = "rpc.domain"
RPC_REPLY = "rpc.reply"
# What libvirt tells its clients of the life of a guest.
GUEST_LIFECYCLE = "guest.lifecycle"
# How far a node of QEMU's block layer was written when the recording began, and when it ended; and
# a write that raised it.
MARK_STANDING = "mark.standing"
MARK_RAISED = "mark.raised"
# A request to a node of QEMU's block layer that failed; what is done about one of a device, and
# about one of a block job; that QEMU sends the event BLOCK_IO_ERROR, and that the processors of the
# guest stop.
WRITE_FAILED, READ_FAILED = "write.failed", "read.failed"
FLUSH_FAILED, DISCARD_FAILED = "flush.failed", "discard.failed"
DEVICE_ERROR, JOB_ERROR, GUEST_PAUSED = "device.error", "job.error", "guest.paused"
EVENT_SENT = "device.error.sent"
# How far a job of QEMU is.
JOB_STANDING = "job.standing"
# A file that the process has open; what its main loop did that took long: handlers, or a wait for
# requests; a system call that took long, and a QMP command that was handled.
FILE_OPEN = "file.open"
LOOP_BUSY, LOOP_WAIT = "loop.busy", "loop.wait"
LONG_CALL, QMP_HANDLED = "call.long", "qmp.handled"
# A pass of a migration over the guest's memory begins; the state of the migration changes; and how
# much the guest is held back for it.
MIGRATION_PASS, MIGRATION_STATE = "migration.pass", "migration.state"
MIGRATION_THROTTLE = "migration.throttle"
# A function that takes a lock, with its owner at the entry.
LOCK = "lock"
# A call that returns the three sizes of a disk.
DISK_SIZES = "disk.sizes"

REQUESTS = frozenset({QMP_COMMAND, REQUEST})
REPLIES = frozenset({QMP_REPLY, REPLY})
_OF_MIGRATION = (MIGRATION_PASS, MIGRATION_STATE, MIGRATION_THROTTLE)
FAILED_REQUESTS = (DISCARD_FAILED, FLUSH_FAILED, READ_FAILED, WRITE_FAILED)
OF_LOOP = frozenset({LOOP_BUSY, LOOP_WAIT})

OF_SPANS = (DISK_SIZES, LOCK, RPC_CALL)
OF_POINTS = (
    *(AGENT_COMMAND, API_FAILED, LONG_CALL, DEVICE_ERROR, EVENT_SENT, DISCARD_FAILED),
    *(ERROR, ERROR_AGAIN, ERROR_PLACE, FILE_OPEN, FLUSH_FAILED, GUEST_LIFECYCLE, GUEST_PAUSED),
    *(JOB_ERROR, JOB_STANDING, LOOP_BUSY, LOOP_WAIT, MARK_RAISED, MARK_STANDING),
    *_OF_MIGRATION,
    *(QMP_COMMAND, QMP_EVENT, QMP_HANDLED, QMP_REPLY, READ_FAILED, REPLY, REQUEST),
    *(RPC_CLIENT, RPC_DOMAIN, RPC_PROCEDURE, RPC_RECEIVED, RPC_REPLY, WRITE_FAILED),
)

_IMPLIED = {
    "qmp.send": QMP_COMMAND,
    "qmp.reply": QMP_REPLY,
    "qmp.event": QMP_EVENT,
    "agent.command": AGENT_COMMAND,
    "api.failed": API_FAILED,
    "error": ERROR,
    "error.raised": ERROR_PLACE,
    "error.system": ERROR_PLACE,
    "guest.lifecycle": GUEST_LIFECYCLE,
    **{
        role: role for role in (*FAILED_REQUESTS, DEVICE_ERROR, EVENT_SENT, GUEST_PAUSED, JOB_ERROR)
    },
    "file.open": FILE_OPEN,
    "job.standing": JOB_STANDING,
    "loop.dispatch": LOOP_BUSY,
    "loop.wait": LOOP_WAIT,
    "qmp.handled": QMP_HANDLED,
    **{role: role for role in _OF_MIGRATION},
    "mark.raised": MARK_RAISED,
    "mark.standing": MARK_STANDING,
    "rpc.received": RPC_RECEIVED,
    "rpc.client": RPC_CLIENT,
    "rpc.procedure": RPC_PROCEDURE,
    "rpc.domain": RPC_DOMAIN,
    "rpc.reply": RPC_REPLY,
}
# Captures one of which a span has that has the role without `role:`.
_OF_CAPTURES = {
    RPC_CALL: ("client",),
    LOCK: ("owner", "async_owner"),
    DISK_SIZES: ("disk",),
}


def of_point(name: str, *, is_answered: bool = False, answers: bool = False) -> str | None:
    """Return the role that a point without `role:` has.

    is_answered, answers: whether another point answers it, and whether it answers one.
    """
    if name in _IMPLIED:
        return _IMPLIED[name]
    if name.startswith("error."):
        return ERROR_AGAIN
    return REQUEST if is_answered else REPLY if answers else None


def of_span(entry: Collection[str], exit_: Collection[str]) -> str | None:
    """Return the role that a span without `role:` has.

    entry, exit_: names of the values that are captured at its entry and at its return.
    """
    if {"client", "program", "serial"} <= set(entry):
        return RPC_CALL
    if "owner" in entry or "async_owner" in entry:
        return LOCK
    return DISK_SIZES if "disk" in entry and "info" in exit_ else None


def signs_of(role: str) -> set[str]:
    """Return the strings one of which the header of a trace has if a probe in it has the role."""
    implying = {name for name, implied in _IMPLIED.items() if implied == role}
    return {role, *implying, *_OF_CAPTURES.get(role, ())}
