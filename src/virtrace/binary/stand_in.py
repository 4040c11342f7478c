"""A substitute that GDB reads in place of a stranger's file.

It is built from what a child read of that file and contains only the static probes and a section
for the code: no symbols, no unwind tables, no debug info. The facts are from the ELF-64 format and
from GDB's reader of the note (stapread.c).
"""

from __future__ import annotations

import re
import struct

from virtrace.binary.elf import StapProbe
from virtrace.binary.reader import Binary
from virtrace.binary.x86_64 import ABI

_NAME = re.compile(r"\w{1,128}", re.ASCII)
# The base that the notes name, which is the address of a section; any address will do.
_BASE = 1 << 12
_SECTION = struct.Struct("<IIQQQQIIQQ")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_NOBITS, _PROGBITS, _STRTAB, _NOTE = 8, 1, 3, 7
_ALLOC, _CODE = 2, 4


def stand_in(elf: Binary) -> bytes:
    """Build the substitute. elf: a 64-bit little-endian file."""
    notes = b"".join(_note(probe) for probe in elf.stap_probes() if _is_plain(probe))
    code = [segment for segment in elf.segments if segment.executable]
    start = min((segment.address for segment in code), default=0)
    end = max((segment.address + segment.size for segment in code), default=0)
    parts = [
        (".text", _NOBITS, _ALLOC | _CODE, start, end - start, b""),
        (".stapsdt.base", _PROGBITS, _ALLOC, _BASE, 1, b"\0"),
        (".note.stapsdt", _NOTE, 0, 0, len(notes), notes),
    ]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in parts) + b".shstrtab\0"
    parts.append((".shstrtab", _STRTAB, 0, 0, len(names), names))
    contents, headers = b"", [_SECTION.pack(*[0] * 10)]
    for name, kind, flags, address, size, data in parts:
        headers.append(
            _SECTION.pack(
                *(names.index(name.encode() + b"\0"), kind, flags, address),
                *(_HEADER.size + len(contents), size, 0, 0, 4, 0),
            )
        )
        contents += data + bytes(-len(data) % 8)
    sections_at = _HEADER.size + len(contents)
    # A shared object, to be read only.
    head = _HEADER.pack(
        *(b"\x7fELF\x02\x01\x01", 3, elf.machine_number, 1, 0, 0, sections_at, 0),
        *(_HEADER.size, 0, 0, _SECTION.size, len(headers), len(headers) - 1),
    )
    return head + contents + b"".join(headers)


def _is_plain(probe: StapProbe) -> bool:
    return bool(_NAME.fullmatch(probe.provider) and _NAME.fullmatch(probe.name))


def _note(probe: StapProbe) -> bytes:
    # GDB must not try operands that are not understood here.
    plain = all(map(ABI.operand, probe.arguments.split()))
    texts = (probe.provider, probe.name, probe.arguments if plain else "")
    words = struct.pack("<QQQ", probe.address, _BASE, probe.semaphore)
    descriptor = words + b"".join(text.encode("ascii") + b"\0" for text in texts)
    head = struct.pack("<III8s", 8, len(descriptor), 3, b"stapsdt")
    return head + descriptor + bytes(-len(descriptor) % 4)
