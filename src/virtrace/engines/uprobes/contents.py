"""Instructions that compare what a guest writes with the beginnings of known formats.

They run where a write begins, and note a number for the event at its end. Nothing of the data
leaves the kernel. Of data in several pieces the first and the last one are compared, and all for
zeroes, up to a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

from virtrace.engines.uprobes.assembler import FP, R0, R1, R2, R7, R8, R9, Symbol
from virtrace.engines.uprobes.layout import CONTENTS_KEY, WORD
from virtrace.engines.uprobes.reads import (
    CONDITION_KEY_SLOT,
    CONDITION_SLOT,
    SCRATCH_SLOT,
    InContext,
    Loaded,
    Plus,
    Reads,
)
from virtrace.plan.model import ContentSite
from virtrace.trace import contents
from virtrace.trace.format import Json, unavailable

CONTENTS = Symbol("contents", is_map=True)

# What is noted: an index.
_NOTED = ("", contents.NO_FORMAT, *contents.FORMATS)
_UNREAD, _NONE, _ZEROES, _GPT, _GPT_BACKUP, _EXT, _XFS, _NTFS, _LUKS, _MD = range(len(_NOTED))


class _Word(NamedTuple):
    """A word of a known format. at: from the beginning, or below 0 from the end, bytes.

    sector: of a GPT header, which has its own sector's number 24 bytes behind
    """

    at: int
    format: int
    value: bytes
    mask: int = (1 << 64) - 1
    sector: int | None = None


# UEFI specification, 5.3.2: a header of a GPT, in the second sector and in the last one.
_GPT_WORDS = [
    _Word(at, _GPT, b"EFI PART", sector=sector)
    for at, sector in ((0, 512), (512, 512), (-512, 512), (-4096, 4096))
]
# Linux, fs/ext4/ext4.h: magic, a state of three bits, a behaviour of two, minor revision 0; in a
# superblock, or behind the first KiB of the disk.
_EXT_WORDS = [
    _Word(at, _EXT, b"\x53\xef" + bytes(6), 0xFFFF_FFFC_FFF8_FFFF) for at in (0x38, 0x438)
]
_WORDS = sorted(
    [
        *_GPT_WORDS,
        *_EXT_WORDS,
        # Linux, fs/xfs/libxfs/xfs_format.h: magic, and a block size below 16 MiB, big-endian.
        _Word(0, _XFS, b"XFSB" + bytes(4), 0xFF_FFFF_FFFF),
        # In the first sector, and in the last one.
        _Word(3, _NTFS, b"NTFS    "),
        _Word(3 - 512, _NTFS, b"NTFS    "),
        # LUKS1 and LUKS2 on-disk formats: magic and version.
        *(
            _Word(0, _LUKS, magic + b"\xba\xbe" + version)
            for magic, version in (
                (b"LUKS", b"\x00\x01"),
                (b"LUKS", b"\x00\x02"),
                (b"SKUL", b"\x00\x02"),
            )
        ),
        # Linux, include/uapi/linux/raid/md_p.h: magic and major version.
        *(_Word(0, _MD, struct.pack("<II", 0xA92B4EFC, version)) for version in (0, 1)),
    ]
)
# BDRV_REQ_ZERO_WRITE of QEMU: a write of zeroes, without data.
_ZERO_WRITE = 2
# Bytes that are compared with zeroes at a time, and how often at most.
_CHUNK, _ROUNDS = 256, 256
# struct iovec: base, size.
_VECTOR = 2 * WORD

# Slots of the frame: the map's key, the next vector, what is left to compare; one vector; data.
_KEY = CONDITION_KEY_SLOT
_NEXT, _LEFT = (_KEY + CONTENTS_KEY + WORD * at for at in range(2))
_BASE, _LENGTH = CONDITION_SLOT, CONDITION_SLOT + WORD
_DATA = CONDITION_SLOT - _CHUNK


class Contents:
    """Writes the instructions of one program."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def compare(self, site: ContentSite, registers: Mapping[str, str]) -> None:
        """Note what a write contains that will raise the mark. registers: of the arguments."""
        code, reads = self._reads.code, self._reads
        given = {name: InContext(register) for name, register in registers.items()}
        reads.to_frame(_KEY, Plus(given["child"], site.node), WORD, "out")
        reads.to_frame(SCRATCH_SLOT, Plus(Loaded(_KEY, base=FP), site.mark), WORD, "out")
        reads.into(R1, given["offset"])
        code.store(FP, _KEY + WORD, R1)
        reads.into(R2, given["bytes"])
        code.store(FP, _KEY + 2 * WORD, R2)
        code.do(R1, "+=", R2)
        code.load(R2, FP, SCRATCH_SLOT)
        code.jump_if(R1, "<=", R2, "out")
        code.do(R8, "=", _ZEROES)
        reads.into(R1, given["flags"])
        code.do(R1, "&=", _ZERO_WRITE)
        code.jump_if(R1, "!=", 0, "compared")
        # A part of other data, of which the ends are not at hand.
        reads.into(R1, given["start"])
        code.jump_if(R1, "!=", 0, "unread")
        reads.to_frame(SCRATCH_SLOT, Plus(given["data"], site.size), WORD, "unread")
        code.load(R1, FP, SCRATCH_SLOT)
        code.load(R2, FP, _KEY + 2 * WORD)
        code.jump_if(R1, "!=", R2, "unread")
        code.store(FP, _LEFT, R1)
        self._formats(site, given["data"])
        self._zeroes()
        code.label("unread")
        code.do(R8, "=", _UNREAD)
        code.label("compared")
        code.store(FP, CONDITION_SLOT, R8)
        reads.update(CONTENTS, _KEY, CONDITION_SLOT)

    def note(self, registers: Mapping[str, str]) -> None:
        """Record what was noted of the write whose end this is. registers: of the arguments."""
        code, reads, found = self._reads.code, self._reads, self._reads.code.new_label("found")
        reads.layout.content = at = reads.layout.room(WORD)
        for index, name in enumerate(("bs", "offset", "bytes")):
            reads.into(R1, InContext(registers[name]))
            code.store(FP, _KEY + WORD * index, R1)
        reads.look_up(CONTENTS, _KEY)
        code.do(R1, "=", _UNREAD)
        code.jump_if(R0, "==", 0, found)
        code.load(R1, R0, 0)
        code.label(found)
        code.store(R7, at, R1)

    def _formats(self, site: ContentSite, data: InContext) -> None:
        """Go to `compared` where a word is found, with its format in R8."""
        code, reads = self._reads.code, self._reads
        reads.to_frame(_NEXT, Plus(data, site.vectors), WORD, "unread")
        vector = Loaded(_NEXT, base=FP)
        reads.to_frame(_BASE, vector, _VECTOR, "unread")
        for at, words in groupby((word for word in _WORDS if word.at >= 0), lambda word: word.at):
            self._word(at, [*words])
        code.store(FP, SCRATCH_SLOT, 0)
        reads.to_frame(SCRATCH_SLOT, Plus(data, site.count), 4, "unread")
        code.load(R9, FP, SCRATCH_SLOT)
        code.do(R9, "-=", 1)
        code.do(R9, "<<=", _VECTOR.bit_length() - 1)
        code.load(R1, FP, _NEXT)
        code.do(R9, "+=", R1)
        code.store(FP, SCRATCH_SLOT, R9)
        reads.to_frame(_BASE, Loaded(SCRATCH_SLOT, base=FP), _VECTOR, "unread")
        for at, words in groupby((word for word in _WORDS if word.at < 0), lambda word: word.at):
            self._word(at, [*words])

    def _word(self, at: int, words: list[_Word]) -> None:
        """Compare the word at one place of the piece in the frame."""
        code, reads, next_ = self._reads.code, self._reads, self._reads.code.new_label("next")
        code.load(R9, FP, _LENGTH)
        code.jump_if(R9, "<", at + WORD if at >= 0 else -at, next_)
        if at >= 0:
            code.do(R9, "=", 0)
        code.load(R1, FP, _BASE)
        code.do(R9, "+=", R1)
        code.do(R9, "+=", at)
        # Where it is in memory: for the number of its sector, too.
        code.store(FP, _DATA, R9)
        reads.to_frame(SCRATCH_SLOT, Loaded(_DATA, base=FP), WORD, "unread")
        for word in words:
            other = code.new_label("other")
            code.load(R1, FP, SCRATCH_SLOT)
            code.do(R2, "=", word.mask)
            code.do(R1, "&=", R2)
            code.do(R2, "=", int.from_bytes(word.value, "little"))
            code.jump_if(R1, "!=", R2, other)
            code.do(R8, "=", word.format)
            if word.sector is not None:
                self._sector(word, word.sector, other)
            code.jump("compared")
            code.label(other)
        code.label(next_)

    def _sector(self, word: _Word, size: int, other: str) -> None:
        """Have R8 tell the first header of a GPT from its backup; other: where it is none here."""
        code, reads, first = self._reads.code, self._reads, self._reads.code.new_label("first")
        reads.to_frame(_DATA + WORD, Plus(Loaded(_DATA, base=FP), 24), WORD, "unread")
        code.load(R1, FP, _KEY + WORD)
        if word.at < 0:
            code.load(R2, FP, _KEY + 2 * WORD)
            code.do(R1, "+=", R2)
        code.do(R1, "+=", word.at)
        code.load(R2, FP, _DATA + WORD)
        code.jump_if(R2, "==", 1, first)
        code.do(R8, "=", _GPT_BACKUP)
        code.label(first)
        code.do(R2, "<<=", size.bit_length() - 1)
        code.jump_if(R1, "!=", R2, other)

    def _zeroes(self) -> None:
        """Go to `compared`, or on where there is more than can be compared."""
        code, reads, has = self._reads.code, self._reads, self._reads.code.new_label("has")
        less, small = code.new_label("less"), code.new_label("small")
        code.store(FP, _LENGTH, 0)
        for at in range(0, _CHUNK, WORD):
            code.store(FP, _DATA + at, 0)
        with reads.repeated(_ROUNDS, "unread"):
            code.load(R1, FP, _LENGTH)
            code.jump_if(R1, "!=", 0, has)
            reads.to_frame(_BASE, Loaded(_NEXT, base=FP), _VECTOR, "unread")
            code.load(R1, FP, _NEXT)
            code.do(R1, "+=", _VECTOR)
            code.store(FP, _NEXT, R1)
            code.label(has)
            code.load(R9, FP, _LENGTH)
            code.load(R1, FP, _LEFT)
            code.jump_if(R9, "<=", R1, less)
            code.do(R9, "=", R1)
            code.label(less)
            code.jump_if(R9, "<=", _CHUNK, small)
            code.do(R9, "=", _CHUNK)
            code.label(small)
            reads.to_frame(_DATA, Loaded(_BASE, base=FP), R9, "unread")
            # Only the words that were read now: what was before them is zero.
            code.do(R1, "=", 0)
            for at in range(0, _CHUNK, WORD):
                code.load(R2, FP, _DATA + at)
                code.do(R1, "|=", R2)
            code.do(R8, "=", _NONE)
            code.jump_if(R1, "!=", 0, "compared")
            for slot, operation in ((_BASE, "+="), (_LENGTH, "-="), (_LEFT, "-=")):
                code.load(R1, FP, slot)
                code.do(R1, operation, R9)
                code.store(FP, slot, R1)
            code.do(R8, "=", _ZEROES)
            code.load(R1, FP, _LEFT)
            code.jump_if(R1, "==", 0, "compared")


def content_of(number: int) -> Json:
    """What the event says of a number that was noted."""
    if _UNREAD < number < len(_NOTED):
        return _NOTED[number]
    return unavailable("the data was not compared: it is large, or not in one piece with its write")
