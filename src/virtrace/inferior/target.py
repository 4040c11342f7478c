"""The traced process as GDB has it: settings, symbols, memory.

What comes from it leaves this module as plain data, and ``gdb.error`` as our own.

GDB finds the files of a process by their names, in its own root or with the help of a process
that it sends into the other: where the daemon lives in a container, or was upgraded since it
started, that can be another file, and breakpoints then go to wrong addresses. So GDB is given
no name at all. It gets copies, in memory, of just the modules that the recipe needs, as they
were read from the mapping itself, and reads them while the daemon still runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gdb

from virtrace.binary.headers import unreadable
from virtrace.binary.reader import Binary, open_trusted
from virtrace.binary.stand_in import stand_in
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Module, Program
from virtrace.image.process import Process, inspect, read_status

# GDB's threads end in a fraction of this on a busy machine; others may be somebody's own.
_WORKERS_END_SECONDS = 2.0

# As a trace needs them while it runs.
_SETTINGS = {
    "confirm": "off",
    "pagination": "off",
    "follow-fork-mode": "parent",
    "detach-on-fork": "on",
    "breakpoint pending": "off",
    # Also while all threads stand: what is not there at the end was taken away by somebody.
    "breakpoint always-inserted": "on",
    # A stranger's file can hold scripts, and name others.
    "auto-load gdb-scripts": "off",
    "auto-load python-scripts": "off",
    "auto-load guile-scripts": "off",
    "auto-solib-add": "off",
    # A stop of GDB's own would otherwise look for the source line to show.
    "print frame-info": "short-location",
    # A line for each child that the process makes, amid what is shown.
    "print inferior-events": "off",
}


# glibc, which had a library for threads before 2.34.
_WAITS = ("libc.", "libc-", "libpthread")
# Without debug info, be it from the network, as it takes long to read and would go on with it
# when the process stands.
_FOR_UNWINDING = {"debug-file-directory": "/dev/null", "debuginfod enabled": "off"}


@contextlib.contextmanager
def _changed(settings: Mapping[str, str]) -> Iterator[None]:
    """GDB's settings, as far as it has them; put back at the end."""
    before: dict[str, Any] = {}
    for name in settings:
        # A GDB without Guile does not know of its scripts.
        with contextlib.suppress(RuntimeError):
            before[name] = gdb.parameter(name)
    try:
        for name in before:
            gdb.execute(f"set {name} {settings[name]}")
        yield
    finally:
        for name, was in before.items():
            # GDB gives auto as None, and on and off as booleans.
            words = {None: "auto", True: "on", False: "off"}
            gdb.execute(f"set {name} {words.get(was, was)}")


@contextlib.contextmanager
def quiet_settings() -> Iterator[None]:
    """GDB's settings as a trace needs them; put back at the end."""
    # Any of GDB's worker threads could take a signal that ends the trace, and with it GDB.
    # There is no way but its text to learn how many it may have: a number, "unlimited", or in
    # newer versions "the default", which is what `unlimited` sets.
    shown = gdb.execute("maintenance show worker-threads", to_string=True)
    workers = re.search(r" is (\d+)", shown)
    try:
        gdb.execute("maintenance set worker-threads 0")
        _wait_for_workers()
        with _changed(_SETTINGS):
            yield
    finally:
        number = workers[1] if workers else "unlimited"
        gdb.execute(f"maintenance set worker-threads {number}")


def _wait_for_workers() -> None:
    """Until they have ended: GDB only tells them to, and what is sent to it now may meet one."""
    until = time.monotonic() + _WORKERS_END_SECONDS
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        if time.monotonic() > until:
            return
        time.sleep(0.001)


def attached_pid() -> int:
    """0 where GDB is attached to no process."""
    return gdb.selected_inferior().pid


@contextlib.contextmanager
def no_files() -> Iterator[None]:
    """GDB attached to nothing, and with no file of its own choice; put back at the end."""
    detach()
    # None, or what the user or GDB itself took for the program.
    program = gdb.current_progspace().filename  # type: ignore[union-attr]
    sysroot = gdb.parameter("sysroot")
    _quietly("file")
    # Below it there can be nothing: GDB opens no file of the process, and looks for none.
    _quietly("set sysroot /dev/null")
    try:
        yield
    finally:
        detach()
        _quietly("file")
        _quietly(f"set sysroot {sysroot}")
        if program is not None:
            with contextlib.suppress(gdb.error):
                _quietly(f"file {_quoted(program)}")


@contextlib.contextmanager
def symbols(
    process: Program,
    names: Iterable[str],
    debug_files: Mapping[str, str],
    unwinding: bool = False,
) -> Iterator[None]:
    """GDB with the symbols of these modules at the addresses they have in the process.

    debug_files: separate debug files in places of their own, by build-id. unwinding: with those
    of all other modules too, as far as they can be read.
    """
    with contextlib.ExitStack() as copies:
        wanted = [*filter(None, map(process.module, names))]
        for module in wanted:
            try:
                _add_symbols(process, module, debug_files, copies)
            except gdb.error as error:
                raise TargetError(
                    f"GDB cannot read {module.path}: {error}",
                    "reinstall the package that owns it",
                ) from error
        if unwinding:
            others = [module for module in process.modules if module not in wanted]
            # GDB looks for a frame's table from file to file, and reads all of each on its way,
            # while the process stands: those of waiting threads come first.
            others.sort(key=lambda module: not module.name.startswith(_WAITS))
            with _changed(_FOR_UNWINDING):
                for module in others:
                    with contextlib.suppress(TargetError, gdb.error):
                        if module.elf.is_trusted:
                            path = copies.enter_context(_copy(module.elf, module))
                            _quietly(f"add-symbol-file {path} -o {module.base:#x}")
        yield


def _add_symbols(
    process: Program,
    module: Module,
    debug_files: Mapping[str, str],
    copies: contextlib.ExitStack,
) -> None:
    if not module.elf.is_trusted:
        # All that GDB needs of it is where static probes are.
        path = copies.enter_context(_in_memory(stand_in(module.elf), module))
        _quietly(f"add-symbol-file {path} -o {module.base:#x}")
        return
    path = copies.enter_context(_copy(module.elf, module))
    # As long as there is no process, GDB reads code from files only beside a program: without
    # the code it takes a function's entry for the end of its prologue.
    _quietly(f"exec-file {path}")
    _quietly(f"add-symbol-file {path} -o {module.base:#x}")
    if has_debug_info(process, module.name):
        return
    its_path = debug_files.get(module.build_id or "")
    if its_path is None:
        # Where GDB does not look: in the root of the process.
        debug = process.debug_info(module)
        if debug is None:
            return
        inside = debug.path.is_relative_to(process.root)
        its_path = copies.enter_context(_copy(debug, module)) if inside else str(debug.path)
    objfile = gdb.lookup_objfile(path)
    assert objfile is not None
    objfile.add_separate_debug_file(its_path)


def _copy(elf: Binary, module: Module) -> contextlib.AbstractContextManager[str]:
    """_in_memory(), of a file that is trusted."""
    try:
        with open_trusted(elf.path) as file:
            return _in_memory(file.read(), module)
    except OSError as error:
        raise unreadable(elf.name, error) from error


@contextlib.contextmanager
def _in_memory(contents: bytes, module: Module) -> Iterator[str]:
    """Where GDB can open a copy in memory, for as long as that is needed."""
    descriptor = os.memfd_create(f"{module.base:x}")
    try:
        with open(descriptor, "wb", closefd=False) as copy:
            copy.write(contents)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def attach(process: Process, names: Iterable[str]) -> None:
    """Attach, and see that the process has in memory what was read of these modules.

    Nothing has been written to the process when this raises TargetError.
    """
    modules = [module for module in map(process.module, names) if module is not None]
    fingerprints = [(module, *module.elf.fingerprint) for module in modules]
    # What stood for the program is none.
    _quietly("exec-file")
    try:
        _quietly(f"attach {process.pid}")
    except gdb.error as error:
        raise TargetError(
            f"cannot attach to process {process.pid}: {error}", "run `virtrace doctor`"
        ) from error
    memory = InferiorMemory()
    for module, address, content in fingerprints:
        try:
            found = memory.read(module.base + address, len(content))
        except Unavailable:
            found = b""
        if found != content:
            raise process.has_other_file(module)


def _quietly(command: str) -> None:
    """Run a command of GDB; what it says about it, warnings too, is nothing for a user."""
    gdb.execute(command, to_string=True)


def _quoted(path: str) -> str:
    """For GDB's commands, which split their arguments as a shell does."""
    return re.sub(r"([^\w/.:+-])", r"\\\1", path)


def detach() -> None:
    """Leave the process running, with no breakpoint in it."""
    pid = attached_pid()
    if not pid:
        return
    if _ends(pid):
        # Its end is what this waits for. A detach fails, ends GDB 13 ("internal-error"), or hangs,
        # and so does any command as long as GDB believes that it is there.
        _quietly("kill")
    else:
        gdb.execute("detach")


def _ends(pid: int) -> bool:
    """Each of its threads has ended, or nothing can keep it from that."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(_thread_ends(read_status(int(thread))) for thread in threads)


def _thread_ends(status: Mapping[str, str] | None) -> bool:
    if status is None or status["State"].startswith(("Z", "X")):
        return True
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return bool(pending >> (signal.SIGKILL - 1) & 1)


def gone(process: Process, modules: Iterable[Module]) -> Module | None:
    """The first of its modules that the process does not have any more where it had it."""
    there = {(module.path, module.start) for module in inspect(process.pid).modules}
    return next((one for one in modules if (one.path, one.start) not in there), None)


def is_over(process: Process) -> bool:
    """It has ended, runs another program, or does not have all of its modules any more."""
    try:
        return gone(process, process.modules) is not None
    except TargetError:
        return True


class InferiorMemory:
    """The memory of the process as GDB gives it: with the code that its breakpoints replaced.

    Elsewhere image.memory.ProcessMemory reads faster, but what is there includes breakpoints.
    """

    def read(self, address: int, size: int) -> bytes:
        try:
            return bytes(gdb.selected_inferior().read_memory(address, size))
        except (gdb.MemoryError, OverflowError, ValueError) as error:
            raise Unavailable(f"cannot read memory at {address:#x}") from error


def has_debug_info(process: Program, module: str) -> bool:
    """Whether GDB has DWARF for the module, in it or in a separate file."""
    loaded = process.module(module)
    if loaded is None:
        return False
    # GDB knows the copy by its descriptor, which the kernel shows as a link to its name.
    copy = f"/memfd:{loaded.base:x} (deleted)"
    return loaded.elf.has_debug_info or any(
        objfile.owner is not None
        and objfile.owner.filename is not None
        and os.readlink(objfile.owner.filename) == copy
        for objfile in gdb.objfiles()
    )
