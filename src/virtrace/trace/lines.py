"""The lines of a trace file: plain, compressed, or in a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from virtrace.errors import TraceError, typed
from virtrace.trace import bundle_reader
from virtrace.trace.compression import GZIP, ZSTD, Inflated

# The longest line: libvirt takes replies of QEMU up to 10 MiB, and version 1 has a reply as text
# and as JSON. A long one has to be looked at for how much it holds.
_LONGEST_LINE = 24 << 20
_LONG_LINE = 1 << 20
_MOST_VALUES = 500_000
_BUFFER = 1 << 16

WayToRead = Callable[[BinaryIO, "str | Path"], Iterable[bytes]]


def way_to_read(file: BinaryIO, path: str | Path) -> WayToRead:
    """Choose a reader by the content of a file, whatever its name."""
    try:
        beginning = file.read(len(ZSTD))
        file.seek(0)
    except OSError as error:
        raise unreadable(path, error) from error
    if beginning == ZSTD:
        return _zstd_lines
    if not beginning.startswith(GZIP):
        return plain_lines
    return _bundled_lines if bundle_reader.is_bundle(file, path) else _gzip_lines


def plain_lines(file: BinaryIO, path: str | Path) -> Iterable[bytes]:
    # Whatever is no text at all may be one line of gigabytes: do not read it.
    first = file.read(1)
    file.seek(0)
    return _bounded_lines(file, path) if first == b"{" else ()


def _gzip_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    return _bounded_lines(BufferedReader(Inflated(file, GZIP, path), _BUFFER), path)


def _zstd_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    return _bounded_lines(BufferedReader(Inflated(file, ZSTD, path), _BUFFER), path)


def _bundled_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    found = False
    for name, member in bundle_reader.BundleReader(file, path).members():
        if name == bundle_reader.TRACE:
            found = True
            yield from _bounded_lines(BufferedReader(member, _BUFFER), path)
    if not found:
        raise TraceError(
            f"{path} is a bundle without {bundle_reader.TRACE}",
            f"see what else is wrong with it: virtrace bundle verify {typed(path)}",
        )


def _bounded_lines(stream: BinaryIO | BufferedReader, path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a stranger's file. Raises: TraceError if one is too large."""
    while line := stream.readline(_LONGEST_LINE):
        if len(line) > _LONG_LINE:
            too_much = None
            if len(line) == _LONGEST_LINE:
                too_much = f"{_LONGEST_LINE >> 20} MiB"
            elif sum(map(line.count, (b",", b"[", b"{"))) > _MOST_VALUES:
                too_much = f"{_MOST_VALUES:,} values"
            if too_much:
                raise TraceError(
                    f"{path} has a line of more than {too_much}, which no trace has",
                    "ask for a fresh copy of the trace",
                )
        yield line


def unreadable(path: str | Path, error: OSError) -> TraceError:
    return TraceError(f"cannot read {path}: {error.strerror}", "check the disk that it is on")
