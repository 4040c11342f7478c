"""Whether a trace is of a process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from virtrace.trace.format import Header, LoadedModule

# The files of the C library before 2.34, by their sonames.
_OLD_C_LIBRARY = {
    soname: re.compile(rf"{name}-2\.\d+\.so")
    for soname, name in (("libc.so.6", "libc"), ("libpthread.so.0", "libpthread"))
}


def is_file_of(file: str, module: str) -> bool:
    """Whether a file of this name is the module that has that name or soname.

    ``libvirt.so.0`` is the file libvirt.so.0.9000.0; ``libc.so.6`` was libc-2.31.so before 2.34.
    """
    if module in _OLD_C_LIBRARY and _OLD_C_LIBRARY[module].fullmatch(file):
        return True
    return file == module or file.startswith(module + ".")


def modules_of(header: Header) -> Sequence[LoadedModule]:
    """Return the modules of all traced processes."""
    qemu = header.get("qemu")
    return [*header["target"]["modules"], *(() if qemu is None else qemu["modules"])]


def in_qemu(header: Header) -> Mapping[str, int]:
    """Return the names of probes in a QEMU that was traced with a daemon, with its pid."""
    qemu = header.get("qemu")
    return {} if qemu is None else dict.fromkeys(qemu["probes"], qemu["pid"])


def is_of_build(header: Header, build_id: Callable[[str], str | None]) -> bool:
    """Return whether a process has loaded the very files that the trace was recorded of.

    build_id: returns the build-id of the file that the process has loaded under a name, or None.
    A trace without any build-id is of no known process.
    """
    traced = {
        os.path.basename(module["path"]): module["build_id"]
        for module in header["target"]["modules"]
        if module["build_id"]
    }
    return bool(traced) and all(build_id(name) == id_ for name, id_ in traced.items())
