"""Small reads of a program's memory, for facts that only their own content proves.

What cannot be read is None here, and not an error: a pointer that leads nowhere is the usual case
where it is not yet known what lies at an address.
"""

from __future__ import annotations

import struct

from virtrace.image.memory import PAGE, PartialMemory

WORD = 8
_MASK = (1 << 64) - 1
# Below lies what no program maps; above, what is not in user space (x86-64, 4-level paging).
_LOWEST, _HIGHEST = 0x10000, 1 << 47
# Pages that are kept: far more than a look reads.
_MOST_PAGES = 1 << 13
_LONGEST_TEXT = 1 << 16
# Bytes: what is searched once is not kept.
_LARGE = 1 << 17


class Peek:
    """Reads memory through a cache, so that one look sees each page once."""

    def __init__(self, memory: PartialMemory) -> None:
        self._memory = memory
        self._pages: dict[int, bytes] = {}

    def data(self, address: int, size: int) -> bytes | None:
        """Return that many bytes, or None if not all of them can be read."""
        found = self.available(address, size)
        return found if len(found) == size else None

    def available(self, address: int, size: int) -> bytes:
        """Return the bytes up to the first that cannot be read."""
        if not 0 <= address < _HIGHEST:
            return b""
        if size >= _LARGE:
            return self._memory.read_available(address, size)
        pieces, at, end = [], address, address + size
        while at < end:
            page = self._page(at // PAGE)
            piece = page[at % PAGE : at % PAGE + end - at]
            pieces.append(piece)
            at += len(piece)
            if not piece or len(page) < PAGE:
                break
        return b"".join(pieces)

    def word(self, address: int) -> int | None:
        return self.number(address, WORD)

    def number(self, address: int, size: int, *, signed: bool = False) -> int | None:
        found = self.data(address, size)
        return None if found is None else int.from_bytes(found, "little", signed=signed)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Return the words that can be read, at most that many."""
        found = self.available(address, count * WORD)
        return struct.unpack_from(f"<{len(found) // WORD}Q", found)

    def text(self, address: int | None, longest: int = 256) -> str | None:
        """Return the C string there; None unless it is printable UTF-8 of at most that many bytes.

        Line ends and tabs count as printable.
        """
        if address is None or address < _LOWEST:
            return None
        found = self.available(address, min(longest, _LONGEST_TEXT) + 1)
        content, end, _ = found.partition(b"\0")
        if not end:
            return None
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        is_printable = all(character.isprintable() or character in "\r\n\t" for character in text)
        return text if is_printable else None

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= _MOST_PAGES:
                self._pages.clear()
            page = self._pages[number] = self._memory.read_available(number * PAGE, PAGE)
        return page


def is_pointer(value: int | None, alignment: int = WORD) -> bool:
    """Whether a word can be the address of something with that alignment."""
    return value is not None and _LOWEST <= value < _HIGHEST and value % alignment == 0
