"""A guest without an operating system, which writes to its memory all the time."""

from __future__ import annotations

import struct

from virtrace.lab.guest import MIB

PAGE = 4096
# Where the program is, behind what firmware uses, and where it writes from and to.
_LOADED_AT, _FROM = MIB, 2 * MIB
PAGES = 2048
# Of the multiboot specification: a kernel in ELF.
_MAGIC = 0x1BADB002
_HEADERS = 52 + 32


def kernel() -> bytes:
    """A kernel for `-kernel`: it writes to 2048 pages (8 MiB), one after the other, for ever."""
    multiboot = struct.pack("<III", _MAGIC, 0, -_MAGIC & 0xFFFFFFFF)
    code = b"\xfa"  # cli
    code += b"\xbf" + struct.pack("<I", _FROM)  # mov edi, FROM
    code += b"\xff\x07"  # inc dword [edi]
    code += b"\x81\xc7" + struct.pack("<I", PAGE)  # add edi, PAGE
    code += b"\x81\xff" + struct.pack("<I", _FROM + PAGES * PAGE)  # cmp edi, the end
    code += b"\x72\xf0"  # jb to inc
    code += b"\xeb\xe9"  # jmp to mov
    content = multiboot + code
    entry, size = _LOADED_AT + _HEADERS + len(multiboot), _HEADERS + len(content)
    elf = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    elf += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    program = struct.pack("<IIIIIIII", 1, 0, _LOADED_AT, _LOADED_AT, size, size, 7, PAGE)
    return elf + program + content
