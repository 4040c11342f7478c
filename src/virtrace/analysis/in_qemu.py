"""What QEMU itself was seen to do: for a QMP command, and for whom it made a request to a disk.

The names of spans and points are those of the recipe qemu-query. Who made a request shows in the
stack on which it ended: a coroutine's outermost function tells who started it, and QEMU exports the
functions of qcow2 that write its own tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Quoted
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Event

_DISPATCH, _IMAGE, _STATUS, _STATISTICS = (
    *("qemu_qmp_dispatch", "image_info", "fstat"),
    "node_statistics",
)
# Who made a request, in words; by the beginning of the function in which its coroutine begins.
THE_GUEST, A_JOB, MAIN_THREAD, A_TASK = (
    *("the guest", "a block job", "QEMU's main thread"),
    "a part of a larger request",
)
QCOW2, QEMU_ITSELF, _UNKNOWN = "qcow2 itself", "QEMU itself", "somebody who is not known"
_ORIGINS = {
    "coroutine of blk_aio_": THE_GUEST,
    "coroutine of job_start": A_JOB,
    "coroutine of blk_": MAIN_THREAD,
    "coroutine of bdrv_flush": MAIN_THREAD,
    "coroutine of aio_task_pool_start_task": A_TASK,
}
_QCOW2 = "qcow2_"
# The first function of every coroutine: behind it nothing of the stack is missing.
_START = "start of the coroutine"
# Devices, by the `bus` of libvirt's definition.
BUSES = {
    "virtio": "virtio-blk",
    "scsi": "a SCSI disk",
    "ide": "an IDE disk",
    "sata": "a SATA disk",
    "usb": "a USB disk",
}
# Of st_blocks (stat(2)).
_BLOCK = 512


def dispatched(call: Call) -> Mapping[int, Exchange]:
    """The QMP commands of a call that QEMU was seen to begin with, by the span in which it did."""
    commands = {node.id: node for node in call.nodes() if isinstance(node, Exchange) and node.id}
    return {
        node.id: commands[str(node.arguments.get("id"))]
        for node in call.nodes()
        if isinstance(node, Span)
        and node.name == _DISPATCH
        and str(node.arguments.get("id")) in commands
    }


def highest_offset(call: Call, qmp_id: str, node: str, value: int) -> Quoted | None:
    """The mark of a node as it was in QEMU's memory when QEMU answered a command.

    None if that was not seen, or is not the value of the answer.
    """
    for child in _inside(call, qmp_id):
        if isinstance(child, Point) and child.event.name == _STATISTICS:
            event = child.event
            found = Quoted(event.values, event.name, event.seq).number("highest_offset")
            if event.values.get("node") == node and found is not None and found.value == value:
                return found
    return None


def blocks(call: Call, qmp_id: str, node: str, value: int) -> Quoted | None:
    """What the system call reported from which QEMU took the space that an image uses.

    A number of blocks of 512 bytes. None as in highest_offset().
    """
    for child in _inside(call, qmp_id):
        if isinstance(child, Span) and child.name == _IMAGE and child.arguments.get("node") == node:
            statuses = [one for one in _spans(child) if one.name == _STATUS]
            if len(statuses) == 1 and statuses[0].exit_seq is not None:
                returned = statuses[0].returned or {}
                found = Quoted(returned, _STATUS, statuses[0].exit_seq).number("blocks")
                if found is not None and found.value * _BLOCK == value:
                    return found
    return None


def _inside(call: Call, qmp_id: str) -> Iterator[object]:
    for child in call.nodes():
        if (
            isinstance(child, Span)
            and child.name == _DISPATCH
            and child.arguments.get("id") == qmp_id
        ):
            yield from child.nodes()


def _spans(span: Span) -> Iterator[Span]:
    return (child for child in span.nodes() if isinstance(child, Span))


def frames(event: Event) -> list[str]:
    """The frames of the stack that are known, innermost first."""
    stack = event.values.get("stack")
    return [frame for frame in stack if isinstance(frame, str)] if isinstance(stack, list) else []


def is_by_qcow2(event: Event) -> bool:
    """Whether qcow2 made the request for its own tables."""
    return any(frame.startswith(_QCOW2) for frame in frames(event))


def starter_words(event: Event) -> str:
    """Who started the coroutine of a request.

    Further in, the function is one that another coroutine calls, as an export calls blk_pwrite on
    QEMU 5.2.
    """
    stack = frames(event)
    for inner, outer in zip(stack, stack[1:]):
        if outer.startswith(_START):
            words = (words for entry, words in _ORIGINS.items() if inner.startswith(entry))
            return next(words, QEMU_ITSELF)
    # The stack is cut off.
    return _UNKNOWN


def origin(event: Event) -> str:
    """Who made a request, in words."""
    return QCOW2 if is_by_qcow2(event) else starter_words(event)
