"""Forms of captures for structs of libvirt: ``typed(...)`` and ``records(...)``."""

from __future__ import annotations

import math
import struct

from virtrace.binary.ctype import Struct, integer
from virtrace.errors import Unavailable
from virtrace.image.memory import MAX_READ, Memory, read_string
from virtrace.image.structs import not_null, step_to_member
from virtrace.targets import LIBVIRT
from virtrace.trace.format import Json, text_value, unavailable

# virTypedParameter (include/libvirt/libvirt-common.h), public ABI: a name of 80 bytes, the type,
# and a union of 8 bytes. By the types' numbers: what the union holds.
_TYPED = struct.Struct("<80si4x8s")
_TYPED_KINDS = {1: "i", 2: "I", 3: "q", 4: "Q", 5: "d", 6: "?"}
_TYPED_STRING = 7

# virDomainStatsRecord (include/libvirt/libvirt-domain.h), public ABI: the domain, its typed
# parameters, and how many.
_RECORD = struct.Struct("<QQi4x")
# A host with more domains than this would take longer than a stop may.
_MAX_RECORDS = 1000
_POINTER = 8

_domain = LIBVIRT.type_named("virDomain")
assert isinstance(_domain, Struct)
DOMAIN = _domain
_to_name = step_to_member(DOMAIN, "name")


def typed_parameters(memory: Memory, address: int, count: int) -> Json:
    """Read an array of virTypedParameter, as an object by their names. Raises: Unavailable."""
    if address == 0:
        raise Unavailable("NULL pointer: the caller asked only for the number of parameters")
    if not 0 <= count <= MAX_READ // _TYPED.size:
        raise Unavailable(f"implausible count of typed parameters: {count}")
    found: dict[str, Json] = {}
    for field, kind, value in _TYPED.iter_unpack(memory.read(address, count * _TYPED.size)):
        name, end, _ = field.partition(b"\0")
        if not (end and name.isascii() and name.decode("ascii").isprintable() and name):
            raise Unavailable("the memory there is not an array of typed parameters")
        found[name.decode("ascii")] = _typed_value(memory, kind, value)
    return found


def domain_stats(memory: Memory, address: int, count: int) -> Json:
    """Read records through a pointer to an array of pointers, as an object by domain.

    Raises: Unavailable.
    """
    if not 0 <= count <= _MAX_RECORDS:
        raise Unavailable(f"{count} records of domains are not read")
    array = not_null(memory, integer(memory.read(not_null(memory, address), _POINTER)))
    found: dict[str, Json] = {}
    for (record,) in struct.iter_unpack("<Q", memory.read(array, count * _POINTER)):
        raw = memory.read(not_null(memory, record), _RECORD.size)
        domain, params, nparams = _RECORD.unpack(raw)
        at_name = _to_name(memory, not_null(memory, domain))
        name = text_value(read_string(memory, integer(memory.read(at_name, _POINTER))))
        if not isinstance(name, str):
            raise Unavailable("the name of a domain is not text")
        found[name] = typed_parameters(memory, params, nparams) if nparams else {}
    return found


def _typed_value(memory: Memory, kind: int, raw: bytes) -> Json:
    if kind == _TYPED_STRING:
        try:
            return text_value(read_string(memory, integer(raw)))
        except Unavailable as why:
            return unavailable(str(why))
    if kind not in _TYPED_KINDS:
        raise Unavailable(f"no typed parameter has the type {kind}")
    (value,) = struct.unpack_from("<" + _TYPED_KINDS[kind], raw)
    if isinstance(value, float) and not math.isfinite(value):
        return unavailable(f"{value} is not a JSON number")
    return value
