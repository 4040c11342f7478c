"""Unpack a compressed core, as systemd-coredump stores them, into a file without a name.

A core has to be read at any place. The file may be a stranger's: a child without rights unpacks
it, within bounds of memory, time and disk. What Python lacks a module for, a program unpacks, which
has no rights either.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from virtrace.confined import Bounds, Tell, started
from virtrace.errors import TargetError

# How a compressed file begins.
_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_BEGINNING = max(map(len, _FORMATS))
# A core of libvirtd has 0.2 to 2 GiB, most of them zeros, which take no space on a disk.
LARGEST = 8 << 30
# Of the free space, at most.
_SHARE = 2
_PIECE, _BLOCK = 1 << 20, 1 << 16
# Zstandard makes up to 128 KiB of each 4 bytes.
_FED = 1 << 11
# Memory that a Zstandard file may require.
_MAX_WINDOW = 128 << 20
# Seconds between two reports of progress.
_PAUSE = 0.1
BOUNDS = Bounds(memory=512 << 20, processor_seconds=300, seconds=300, file_size=LARGEST)
# Of the programs; /tmp can be memory.
_FOLDER = "/var/tmp"


def _folder() -> str:
    return os.environ.get("TMPDIR", _FOLDER)


def format_of(file: BinaryIO) -> str | None:
    """Return how a file is compressed; None if it is not."""
    beginning = os.pread(file.fileno(), _BEGINNING, 0)
    return next((name for magic, name in _FORMATS.items() if beginning.startswith(magic)), None)


def unpacking(name: str, file: BinaryIO, packed: str) -> Callable[[Tell], BinaryIO]:
    """Open what unpacks a file, with our rights; return what unpacks it without any.

    name: of the file, for messages. packed: as of format_of. It reports how far it has come.
    Raises: TargetError if nothing here unpacks it. The same, and OSError, when it is unpacked.
    """
    output = TemporaryFile(prefix="virtrace-", dir=_folder())  # noqa: SIM115
    space = os.fstatvfs(output.fileno())
    room = space.f_bavail * space.f_frsize // _SHARE
    program: subprocess.Popen[bytes] | None = None
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
    zstandard = _zstandard() if packed == "zstd" else None
    if packed == "gzip":
        pieces = _read(gzip.GzipFile(fileobj=file))
    elif packed == "xz":
        pieces = _read(lzma.LZMAFile(file))  # noqa: SIM115
    elif zstandard is not None:
        pieces = _of_zstandard(zstandard, file)
        errors = (*errors, zstandard.ZstdError)
    else:
        program = _program(name, file, packed)
        pieces = _read(program.stdout)

    def unpack(tell: Tell) -> BinaryIO:
        try:
            checked = _checked(name, pieces, errors)
            _copy(name, _telling(checked, file, tell), output, room)
        except OSError as error:
            raise TargetError(
                f"{name} cannot be unpacked in {_folder()}: {error.strerror}",
                "name a folder with more space in TMPDIR",
            ) from error
        if program is not None and program.wait() != 0:
            raise TargetError(
                f"{name} is damaged or cut short: {packed} does not accept it",
                "take a fresh copy of the file",
            )
        return output

    return unpack


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def _program(name: str, file: BinaryIO, packed: str) -> subprocess.Popen[bytes]:
    path = shutil.which(packed)
    if path is None:
        raise TargetError(
            f"{name} is compressed, and the program {packed} is not here to unpack it",
            f"install {packed}, or unpack the core elsewhere: `{packed} -dc FILE >core`",
        )
    return started([path, "-dc"], file, BOUNDS)


def _read(source: Any) -> Iterator[bytes]:
    return iter(partial(source.read, _PIECE), b"")


def _of_zstandard(zstandard: Any, file: BinaryIO) -> Iterator[bytes]:
    """Its own reader takes a file that is cut short for a whole one."""
    unpacker: Any = None
    while data := file.read(_FED):
        while data:
            if unpacker is None or unpacker.eof:
                options = {"max_window_size": _MAX_WINDOW}
                unpacker = zstandard.ZstdDecompressor(**options).decompressobj()
            yield unpacker.decompress(data)
            data = unpacker.unused_data
    if unpacker is None or not unpacker.eof:
        raise EOFError("it has no end")


def _checked(
    name: str, pieces: Iterator[bytes], errors: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    """Yield the pieces. errors: what they raise where the file is damaged."""
    try:
        yield from pieces
    except errors as error:
        raise TargetError(
            f"{name} is damaged or cut short: {error}", "take a fresh copy of the file"
        ) from error


def _telling(pieces: Iterator[bytes], file: BinaryIO, tell: Tell) -> Iterator[bytes]:
    """Yield the pieces, and report now and then how much of the file they took."""
    size, due = os.fstat(file.fileno()).st_size, time.monotonic() + _PAUSE
    for piece in pieces:
        yield piece
        if time.monotonic() >= due:
            due = time.monotonic() + _PAUSE
            # A program that unpacks it shares the position.
            position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            tell(f"{100 * position // max(size, 1)} % unpacked")


def _copy(name: str, pieces: Iterator[bytes], output: BinaryIO, room: int) -> None:
    """Write all pieces; blocks of zeros take no space. room: bytes that may."""
    size = written = 0
    descriptor = output.fileno()
    for piece in pieces:
        if size + len(piece) > LARGEST:
            raise TargetError(
                f"{name} expands to more than {LARGEST >> 30} GiB, more than any core of a daemon",
                "if you trust it, unpack it yourself and name the result",
            )
        for at in range(0, len(piece), _BLOCK):
            block = piece[at : at + _BLOCK]
            if block.count(0) != len(block):
                written += len(block)
                if written > room:
                    raise TargetError(
                        f"{name} takes more than half of the space that is free in {_folder()}",
                        "name a folder with more space in TMPDIR",
                    )
                os.pwrite(descriptor, block, size + at)
        size += len(piece)
    os.ftruncate(descriptor, size)
