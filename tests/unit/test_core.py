"""Core files: refused if they are none, and bounded in time and memory if they are hostile."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import cast

import pytest
import zstandard

from tests.support.command import at_a_terminal, virtrace
from tests.support.taken import taken_by
from virtrace.errors import TargetError, Unavailable
from virtrace.image import packed_core
from virtrace.image.core import CoreImage
from virtrace.image.packed_core import format_of, unpacking
from virtrace.image.unwind import Unwinder

STACK, PC = 1 << 40, 1 << 41
SECONDS, BYTES = 10.0, 300 << 20
_RSP, _RIP = 19, 16  # in struct user_regs_struct, words


def written(folder: Path, threads: int, stack: bytes = bytes(64), machine: int = 62) -> Path:
    """A core of threads that all have the same stack, and are at code that no file has."""
    words = [0] * 27
    words[_RSP], words[_RIP] = STACK, PC
    notes = b"".join(
        struct.pack("<III8s", 5, 336, 1, b"CORE") + struct.pack("<32xI76x27Q8x", tid, *words)
        for tid in range(1, threads + 1)
    )
    notes_at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 4, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0),
    )
    segments = (
        (4, 0, notes_at, 0, 0, len(notes), 0, 1),
        (1, 6, notes_at + len(notes), STACK, 0, len(stack), len(stack), 1),
    )
    file = folder / "core"
    table = b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
    file.write_bytes(header + table + notes + stack)
    return file


def test_a_small_core(tmp_path: Path) -> None:
    stack = os.urandom(4096)
    image = CoreImage(written(tmp_path, 2, stack))
    assert image.pid is None
    assert image.signal is None
    assert image.program.modules == ()
    assert [thread.tid for thread in image.threads()] == [1, 2]
    thread = image.threads()[0]
    assert (thread.registers["rsp"], thread.registers["rip"]) == (STACK, PC)
    assert thread.stack.data == stack
    assert image.memory.read(STACK + 7, 9) == stack[7:16]
    for address, size in (STACK - 1, 2), (STACK + 4095, 2), (0, 1):
        with pytest.raises(
            Unavailable, match=f"the core does not contain the memory at {address:#x}"
        ):
            image.memory.read(address, size)
    found = Unwinder(image).backtrace(thread)
    assert [frame.pc for frame in found.frames] == [PC]
    assert found.ended == f"the code at {PC:#x} is in no file"


def test_registers_of_another_processor_are_not_guessed(tmp_path: Path) -> None:
    [thread] = CoreImage(written(tmp_path, 1, machine=183)).threads()
    assert thread.waits_in is None
    with pytest.raises(Unavailable, match="aarch64"):
        _ = thread.registers["rsp"]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(100), None])
def test_what_is_no_core_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = Path("/bin/true") if content is None else tmp_path / "core"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TargetError, match="is not an intact core file"):
        CoreImage(file)


def packed(file: Path, how: str) -> Path:
    """The same file, compressed by one of the programs."""
    made = file.with_name(f"{file.name}.{how}")
    made.write_bytes(subprocess.run([how, "-c", file], check=True, capture_output=True).stdout)
    return made


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd", "lz4"])
def test_a_compressed_core_is_read_as_the_plain_one(how: str, tmp_path: Path) -> None:
    # Zeros in between, which take no space.
    stack = os.urandom(70_000) + bytes(3 << 20) + os.urandom(5000)
    file = written(tmp_path, 3, stack)
    plain, image = CoreImage(file), CoreImage(packed(file, how))
    assert image.threads() == plain.threads()
    assert image.memory.read(STACK, len(stack)) == stack


def test_without_the_module_a_program_unpacks_zstandard(tmp_path: Path) -> None:
    file = packed(written(tmp_path, 3), "zstd")
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from virtrace.image.core import CoreImage; from pathlib import Path\n"
        f"print(len(CoreImage(Path({str(file)!r})).threads()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_without_the_program_the_remedy_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packed(written(tmp_path, 1), "lz4")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="the program lz4 is not here") as refused:
        CoreImage(file)
    assert "lz4 -dc FILE >core" in refused.value.remedy


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd", "lz4"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_core_is_refused(how: str, damage: str, tmp_path: Path) -> None:
    file = packed(written(tmp_path, 3, os.urandom(300_000)), how)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[9:200] = bytes(191)
    file.write_bytes(content)
    with pytest.raises(TargetError, match="is damaged or cut short"):
        CoreImage(file)


@pytest.mark.parametrize("how", ["gzip", "xz", "zstd", "lz4"])
def test_unpacking_reports_how_far_it_is(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_core, "_PAUSE", 0.0)
    lines: list[str] = []
    CoreImage(packed(written(tmp_path, 1, os.urandom(3 << 20)), how), progress=lines.append)
    shares = [int(line.removesuffix(" % unpacked")) for line in lines]
    assert shares == sorted(shares)
    assert any(0 < each < 100 for each in shares)
    assert shares[-1] == 100


def test_unpacking_shows_that_on_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "core.gz"
    # Also of several members in a row.
    file.write_bytes(gzip.compress(bytes(64 << 20), 1) * 8)
    *shown, rest = at_a_terminal("snapshot", "--core", file).decode().split("\r\x1b[K")
    assert any(re.fullmatch(r"core\.gz: \d+ % unpacked", line) for line in shown)
    # The line is gone before the answer.
    assert rest.startswith("virtrace: ")
    assert "unpacked" not in rest
    # Not where nobody looks.
    assert "% unpacked" not in virtrace("snapshot", "--core", file).stderr


def test_a_core_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    """1 GiB of zeros over and over, 9 times."""
    file = tmp_path / "core.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    frame = b"".join(packer.compress(bytes(1 << 24)) for _ in range(64)) + packer.flush()
    file.write_bytes(frame * 9)
    assert file.stat().st_size < 2 << 20
    taken = taken_by(lambda: refusal(file))
    assert "expands to more than 8 GiB" in str(taken.result)
    assert taken.size < BYTES


def test_zeros_take_no_space(tmp_path: Path) -> None:
    file = tmp_path / "core.zst"
    file.write_bytes(zstandard.compress(b"core" + bytes(64 << 20) + b"end"))
    with file.open("rb") as packed_file:
        found = format_of(packed_file)
        assert found == "zstd"
        with unpacking("core.zst", packed_file, found)(print) as plain:
            status = os.fstat(plain.fileno())
            assert status.st_size == (64 << 20) + 7
            assert status.st_blocks * 512 < 1 << 20
            assert plain.read(4) == b"core"
            # No other process can open it.
            assert status.st_nlink == 0


def test_a_core_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "core.xz"
    packer = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    file.write_bytes(packer.compress(b"\x7fELF" + bytes(1000)) + packer.flush())
    assert "is not an intact core file" in refusal(file)
    # The size of the dictionary is one byte of the block's header, which has a checksum.
    content = bytearray(file.read_bytes())
    at = content.index(b"\x21\x01", 12) + 2
    content[at] = 40 - 4
    size = (content[12] + 1) * 4
    content[12 + size - 4 : 12 + size] = zlib.crc32(content[12 : 12 + size - 4]).to_bytes(
        4, "little"
    )
    file.write_bytes(content)
    assert "cannot be read within" in refusal(file)


def refusal(file: Path) -> str:
    try:
        CoreImage(file)
    except TargetError as error:
        # Not with its traceback, which would keep the child.
        return error.what
    return "accepted"


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "core")
    with pytest.raises(TargetError, match="is not a regular file"):
        CoreImage(tmp_path / "core")


def test_threads_without_number_are_read_within_bounds(tmp_path: Path) -> None:
    """Every one with a stack of a mebibyte, 8 GiB in all."""
    file = written(tmp_path, 1 << 13, bytes(1 << 20))

    def work() -> tuple[int, float, int]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = CoreImage(file)
        unwinder = Unwinder(image)
        count = len([unwinder.backtrace(thread) for thread in image.threads()])
        after = resource.getrusage(resource.RUSAGE_SELF)
        return count, after.ru_utime + after.ru_stime, after.ru_maxrss - before << 10

    taken = taken_by(work)
    assert taken.failure == ""
    count, seconds, size = cast("list[int]", taken.result)
    assert count == 1 << 13
    # What the child takes that reads the core, and what its reader takes.
    assert max(taken.size, size) < BYTES
    assert taken.seconds + seconds < SECONDS
