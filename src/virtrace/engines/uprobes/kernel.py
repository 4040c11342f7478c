"""What the kernel is asked for: bpf(2), perf_event_open(2), and the memory of a ring buffer.

Sources: <linux/bpf.h>, <linux/perf_event.h>, Documentation/bpf/ringbuf.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HASH, ARRAY, RINGBUF, LRU_HASH = 1, 2, 27, 9  # BPF_MAP_TYPE_...

# By machine: numbers of the system calls bpf and perf_event_open.
_CALLS = {"x86_64": (321, 298)}
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD = 0, 1, 2, 5
_INFO_BY_FD, _LINK_CREATE, _ENABLE_STATS = 15, 28, 32
_PROG_TYPE_KPROBE = 2
_NOEXIST = 1
_TRACE_UPROBE_MULTI = 48
_F_SLEEPABLE = 1 << 4
_F_UPROBE_MULTI_RETURN = 1
# What reads a process's memory is for programs under a licence compatible with the GPL.
_LICENCE = b"Dual MIT/GPL"
_MAX_LOG = 1 << 20
_ATTRIBUTES = 128

_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_PERF_FLAG_FD_CLOEXEC = 1 << 3
_PERF_ATTRIBUTES = 112
_PERF_DISABLED = 1
_SEMAPHORE_SHIFT = 32
_UPROBE_TYPE = Path("/sys/bus/event_source/devices/uprobe/type")

# Of <linux/bpf.h>, struct bpf_prog_info: run_time_ns, run_cnt.
_PROG_INFO_TIMES = 192
_PROG_INFO = 232

_libc = ctypes.CDLL(None, use_errno=True)


class KernelError(OSError):
    """The kernel refused. log: the verifier's, of a program."""

    log = ""


def is_supported_machine() -> bool:
    return platform.machine() in _CALLS


def lift_memory_limit() -> None:
    """Before Linux 5.11, maps and programs count as locked memory."""
    with suppress(ValueError, OSError):
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))


def create_map(kind: int, key: int, value: int, entries: int, name: str) -> int:
    """Return the descriptor of a new map. key, value: their sizes, bytes. Raises: KernelError."""
    return _bpf(
        _MAP_CREATE, struct.pack("<7I16s", kind, key, value, entries, 0, 0, 0, name.encode()[:15])
    )


def look_up(descriptor: int, key: bytes, size: int) -> bytes:
    """Return a value of a map. size: of the value, bytes. Raises: KernelError."""
    keys, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size)
    _bpf(
        _MAP_LOOKUP,
        struct.pack("<IIQQQ", descriptor, 0, ctypes.addressof(keys), ctypes.addressof(value), 0),
    )
    return value.raw


def add_missing(descriptor: int, key: bytes, value: bytes) -> None:
    """Add a value to a map that does not have the key. Raises: KernelError."""
    keys, values = (ctypes.create_string_buffer(each, len(each)) for each in (key, value))
    addresses = ctypes.addressof(keys), ctypes.addressof(values)
    try:
        _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", descriptor, 0, *addresses, _NOEXIST))
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise


def load(code: bytes, name: str, *, sleepable: bool, multi: bool) -> int:
    """Load a program and return its descriptor.

    sleepable: it may wait for a page of the process. multi: it is for ``attach_multi``.
    Raises: KernelError with the verifier's log.
    """

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        instructions = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(_LICENCE)
        return _bpf(
            _PROG_LOAD,
            struct.pack(
                "<IIQQIIQII16sII",
                _PROG_TYPE_KPROBE,
                len(code) // 8,
                ctypes.addressof(instructions),
                ctypes.addressof(licence),
                1 if log else 0,
                len(log) if log else 0,
                ctypes.addressof(log) if log else 0,
                0,
                _F_SLEEPABLE if sleepable else 0,
                name.encode()[:15],
                0,
                _TRACE_UPROBE_MULTI if multi else 0,
            ),
        )

    try:
        return attempt(None)
    except KernelError as error:
        log = ctypes.create_string_buffer(_MAX_LOG)
        try:
            return attempt(log)
        except KernelError as again:
            # ENOSPC: the log is longer than the buffer, which has its beginning.
            error.log = log.value.decode(errors="replace")
            raise error from again


@dataclass(frozen=True)
class Place:
    """Where a uprobe goes.

    path: of the file. offset: in the file, bytes. semaphore: the file offset of a static probe's
    counter; 0: it has none. at_return: at the return of the function there.
    """

    path: str
    offset: int
    semaphore: int = 0
    at_return: bool = False


def attach(program: int, place: Place, pid: int) -> int:
    """Attach a program by a perf event, kept to one process; closing the descriptor detaches it.

    Raises: KernelError.
    """
    name = ctypes.create_string_buffer(os.fsencode(place.path))
    attributes = struct.pack(
        "<IIQQQQQIIQQ",
        int(_UPROBE_TYPE.read_text()),
        _PERF_ATTRIBUTES,
        int(place.at_return) | place.semaphore << _SEMAPHORE_SHIFT,
        1,
        0,
        0,
        _PERF_DISABLED,
        0,
        0,
        ctypes.addressof(name),
        place.offset,
    )
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTRIBUTES)
    number = _CALLS[platform.machine()][1]
    event = _checked(_libc.syscall(number, buffer, pid, -1, -1, _PERF_FLAG_FD_CLOEXEC))
    try:
        _checked(_libc.ioctl(event, _IOC_SET_BPF, program))
        _checked(_libc.ioctl(event, _IOC_ENABLE, 0))
    except KernelError:
        os.close(event)
        raise
    return event


def attach_multi(program: int, place: Place, pid: int) -> int:
    """Attach a program by a link of uprobe_multi (Linux 6.6 and later), as ``attach``.

    Raises: KernelError.
    """
    name = ctypes.create_string_buffer(os.fsencode(place.path))
    offset, semaphore = ctypes.c_uint64(place.offset), ctypes.c_uint64(place.semaphore)
    return _bpf(
        _LINK_CREATE,
        struct.pack(
            "<IIIIQQQQIII",
            program,
            0,
            _TRACE_UPROBE_MULTI,
            0,
            ctypes.addressof(name),
            ctypes.addressof(offset),
            ctypes.addressof(semaphore) if place.semaphore else 0,
            0,
            1,
            _F_UPROBE_MULTI_RETURN if place.at_return else 0,
            pid,
        ),
    )


@contextmanager
def statistics() -> Iterator[None]:
    """Have the kernel count how often and how long programs run (Linux 5.8 and later)."""
    try:
        descriptor = _bpf(_ENABLE_STATS, struct.pack("<I", 0))
    except KernelError:
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def run_time(program: int) -> tuple[int, int]:
    """Return how long a program ran, in ns, and how often. Raises: KernelError."""
    info = ctypes.create_string_buffer(_PROG_INFO)
    _bpf(_INFO_BY_FD, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    nanoseconds, runs = struct.unpack_from("<QQ", info.raw, _PROG_INFO_TIMES)
    return nanoseconds, runs


_BUSY, _DISCARDED = 1 << 31, 1 << 30
_RING_HEADER = 8


class RingBuffer:
    """A ring buffer of the kernel, of which this process is the only reader.

    size: of its data, bytes: a power of two and a multiple of the page size.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = create_map(RINGBUF, 0, 0, size, "virtrace_ring")
        self._consumer_page = mmap.mmap(
            self.descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        # The data twice in a row, so that every record is in one piece.
        self._pages = mmap.mmap(
            self.descriptor,
            mmap.PAGESIZE + 2 * size,
            mmap.MAP_SHARED,
            mmap.PROT_READ,
            offset=mmap.PAGESIZE,
        )
        self._consumer = memoryview(self._consumer_page).cast("Q")
        whole = memoryview(self._pages)
        self._producer = whole[:8].cast("Q")
        self._data = whole[mmap.PAGESIZE :]
        self._headers = self._data.cast("I")

    def records(self) -> Sequence[memoryview]:
        """Return the records that are whole; they stay as they are until ``release``."""
        position, mask = self._consumer[0], self.size - 1
        end = self._producer[0]
        data, headers = self._data, self._headers
        found = []
        while position < end:
            at = position & mask
            header = headers[at >> 2]
            if header & _BUSY:
                break
            length = header & ~_DISCARDED
            if not header & _DISCARDED:
                found.append(data[at + _RING_HEADER : at + _RING_HEADER + length])
            position += (_RING_HEADER + length + 7) & ~7
        self._next = position
        return found

    def release(self) -> None:
        """Let the kernel overwrite what ``records`` returned last."""
        self._consumer[0] = self._next


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    number = _CALLS[platform.machine()][0]
    return _checked(_libc.syscall(number, command, buffer, len(buffer)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise KernelError(number, os.strerror(number))
    return result
