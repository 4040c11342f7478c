"""The request that a worker serves, read from the client's own message.

A virNetMessage keeps the bytes that came over the socket. It is proven by them: the header in the
struct and the header on the wire (src/rpc/virnetprotocol.x) agree. Arguments are decoded by the
public API: what a procedure takes on the wire is what its function of the API takes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from virtrace.snapshot.model import NamedFrame, Request
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek, is_pointer
from virtrace.snapshot.threads import kept_registers
from virtrace.targets.libvirt import public_api

# Of virNetMessage: see layouts/virNetMessage.yaml.
_BUFFER, _HEADER = 8, 32
_IN_STRUCT = struct.Struct("<IIiiIi")
# In front of it the length of the whole message.
_ON_WIRE = struct.Struct(">IIIiiIi")
# remote, lxc, qemu, admin, keepalive (src/rpc and src/remote, *.x).
_PROGRAMS = frozenset((0x20008086, 0x20008087, 0x20008088, 0x06900690, 0x6B656570))
_JOB = ("virNetServerClient", "virNetServerProgram")
_LONGEST = 1 << 25
_MOST_READ = 1 << 12
_LONGEST_NAME = 256
_UINT = struct.Struct(">I")
# What an argument of the API begins with, on the wire; then a UUID and, of a domain, its id.
_SUBJECTS = {
    "virDomain *": ("domain", 20),
    "virStoragePool *": ("storage pool", 16),
    "virNetwork *": ("network", 16),
}
_STRING = "char *"
# Steps of a migration on the side that the domain leaves, which only libvirt itself calls.
_OF_SOURCE = re.compile(r"virDomainMigrate(?:Begin3|Perform3?|Confirm3)(?:Params)?")


def request_served(
    peek: Peek, objects: Objects, frames: Sequence[NamedFrame], api: str | None
) -> Request | None:
    """Return the request that a thread serves, by what two frames keep in registers.

    frames: of the function that dispatches it, and of its caller. Builds differ: where the first
    one does not keep the message, the second one keeps the job that it took from the queue.
    """
    dispatcher, *callers = frames
    kept = {*kept_registers(dispatcher.frame)}
    return _the_only(peek, kept, api) or _the_only(peek, _messages(peek, objects, callers), api)


def _messages(peek: Peek, objects: Objects, callers: Sequence[NamedFrame]) -> set[int]:
    found = set()
    for named in callers:
        for value in kept_registers(named.frame):
            # virNetServerJob (src/rpc/virnetserver.c).
            job = peek.words(value, 3) if is_pointer(value) else ()
            if len(job) == 3 and (objects.type_of(job[0]), objects.type_of(job[2])) == _JOB:
                found.add(job[1])
    return found


def _the_only(peek: Peek, addresses: set[int], api: str | None) -> Request | None:
    found = [one for each in addresses if (one := request_at(peek, each, api)) is not None]
    return found[0] if len(found) == 1 else None


def request_at(peek: Peek, address: int, api: str | None) -> Request | None:
    """Return the request in a virNetMessage; None if there is none at the address.

    api: the function of the public API that it asks for, if known
    """
    if not is_pointer(address):
        return None
    buffer, raw = peek.word(address + _BUFFER), peek.data(address + _HEADER, _IN_STRUCT.size)
    if raw is None or not is_pointer(buffer, 1):
        return None
    assert buffer is not None
    program, version, procedure, _, serial, _ = _IN_STRUCT.unpack(raw)
    wire = peek.data(buffer, _ON_WIRE.size)
    if program not in _PROGRAMS or version != 1 or wire is None:
        return None
    length, *header, serial_on_wire, _ = _ON_WIRE.unpack(wire)
    is_same = (header[0], header[2], serial_on_wire) == (program, procedure, serial)
    if not is_same or not _ON_WIRE.size <= length < _LONGEST:
        return None
    size = min(length - _ON_WIRE.size, _MOST_READ)
    payload = peek.available(buffer + _ON_WIRE.size, size)
    return _decoded(Request(program, procedure, serial), payload, api)


def _parameters(api: str) -> tuple[Sequence[str], Sequence[str]]:
    """The types and names of what a function takes; of one that is not public, the first."""
    prototype = public_api.functions().get(api)
    if prototype is not None:
        parameters = prototype.parameters
        return [each.type for each in parameters], [each.name for each in parameters]
    return (["virDomain *"], ["domain"]) if _OF_SOURCE.fullmatch(api) else ([], [])


def _decoded(request: Request, payload: bytes, api: str | None) -> Request:
    types, names = _parameters(api or "")
    if not types:
        return request
    subject = _SUBJECTS.get(types[0])
    if subject is None:
        return request
    what, behind = subject
    name, at = _string(payload, 0)
    if name is None or len(payload) < at + behind:
        return request
    at += behind
    arguments: dict[str, str] = {}
    for kind, argument in zip(types[1:], names[1:]):
        if kind != _STRING:
            break
        text, at = _string(payload, at, may_be_missing=True)
        if text is None:
            break
        arguments[argument] = text
    return Request(request.program, request.procedure, request.serial, what, name, arguments)


def _string(payload: bytes, at: int, *, may_be_missing: bool = False) -> tuple[str | None, int]:
    """Decode a string of XDR (RFC 4506, 4.11), and return where it ends.

    may_be_missing: it may stand behind a 1 that says that it is there (4.19)
    """
    for skipped in (0, 4) if may_be_missing else (0,):
        if skipped and payload[at : at + 4] != _UINT.pack(1):
            continue
        begin = at + skipped + 4
        if begin > len(payload):
            break
        (length,) = _UINT.unpack_from(payload, at + skipped)
        content = payload[begin : begin + length]
        end = begin + (length + 3) // 4 * 4
        if 0 < length <= _LONGEST_NAME and len(content) == length and end <= len(payload):
            padding = payload[begin + length : end]
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if text.isprintable() and not any(padding):
                return text, end
    return None, at
