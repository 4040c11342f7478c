"""The traced process as GDB has it: settings, symbols, memory, registers, types.

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
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import gdb

from virtrace.binary import ctype as c
from virtrace.binary import pack
from virtrace.binary.abi import Abi
from virtrace.binary.elf import unreadable
from virtrace.binary.reader import Binary, open_trusted
from virtrace.binary.source import source_name
from virtrace.binary.stand_in import stand_in
from virtrace.engine.tracer import Entered
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import Memory
from virtrace.image.model import Module, Program
from virtrace.image.process import Process, inspect, read_status

WORD = (1 << 64) - 1
# GDB's threads end in a fraction of this on a busy machine; others may be somebody's own.
_WORKERS_END_SECONDS = 2.0
_NO_SUCH_ARGUMENT = "the function has no such argument here"

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
                    "install the package that owns it again",
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


def register(frame: gdb.Frame, name: str) -> int:
    return int(frame.read_register(name)) & WORD


def number(value: gdb.Value) -> int:
    """An integer, pointer or boolean in a register or in memory, as 64 bits."""
    try:
        if value.is_optimized_out:
            raise Unavailable("optimized out")
        return int(value) & WORD
    except gdb.MemoryError as error:
        raise Unavailable(str(error)) from error
    except gdb.error as error:
        raise Unavailable(f"GDB cannot tell: {error}") from error


_INTEGERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_ENUM)


def c_type(gdb_type: gdb.Type) -> c.CType:
    """The type as plain data. What a pointer points to is looked up when it is asked for."""
    stripped = gdb_type.strip_typedefs()
    code = stripped.code
    if code == gdb.TYPE_CODE_PTR:
        target = stripped.target()
        # Not of other types of a byte: those are numbers, in no string's order.
        is_char = target.strip_typedefs().unqualified().name == "char"
        return c.Pointer(lambda: c_type(target), string=is_char, size=stripped.sizeof)
    if code == gdb.TYPE_CODE_BOOL:
        return c.Boolean(stripped.sizeof)
    if code in _INTEGERS:
        return c.Integer(stripped.sizeof, _is_signed(stripped))
    if code == gdb.TYPE_CODE_ARRAY:
        low, high = stripped.range()
        assert low is not None
        assert high is not None
        return c.Array(c_type(stripped.target()), high - low + 1)
    if code == gdb.TYPE_CODE_STRUCT and stripped.fields():
        return _struct(stripped)
    return c.Opaque(str(stripped), stripped.sizeof)


def _is_signed(scalar: gdb.Type) -> bool:
    # Type.is_signed came with GDB 12.
    return int(gdb.Value(-1).cast(scalar)) < 0


def _struct(struct: gdb.Type) -> c.Struct:
    fields = []
    for field in struct.fields():
        assert field.bitpos is not None
        assert field.type is not None
        kind = c.Opaque("bit fields") if field.bitsize else c_type(field.type)
        fields.append(c.Field(field.name or "", field.bitpos // 8, kind))
    return c.Struct(struct.name or struct.tag or "struct", struct.sizeof, tuple(fields))


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


class Thread(Protocol):
    """One that stands at a probe. frame: GDB's, which takes long to make."""

    memory: Memory
    sp: int

    @property
    def frame(self) -> gdb.Frame: ...

    def register(self, name: str) -> int:
        """By GDB's name."""


class KnownFunction(Protocol):
    """One compiled body of a function, of which debug info or a symbol pack tells all.

    entry: its first instruction. pc: where its arguments can be read, which is the same in
    optimized code and behind the prologue in other code.
    """

    entry: int
    pc: int
    returns: c.CType

    @property
    def arguments(self) -> Mapping[str, c.CType]:
        """In the order of the declaration."""

    def argument(self, thread: Thread, name: str, entered: Entered | None = None) -> int:
        """Unavailable where it cannot be known. entered: behind the entry, what was there."""

    def renamed(self, names: Iterable[str]) -> KnownFunction:
        """The same with other names for the arguments, in their order."""

    def statements(self) -> Iterable[Statement]:
        """Those that a debugger walks through with `next`, functions inlined there apart."""


@dataclass(frozen=True)
class Statement:
    """declared: the line of the function's declaration.

    known: the function as it is there, with the local variables among its arguments.
    """

    file: str
    line: int
    declared: int
    known: KnownFunction


class PackedFunction:
    """A body that a symbol pack describes."""

    def __init__(self, body: pack.Body, returns: c.CType, base: int, abi: Abi) -> None:
        self.entry = self.pc = base + body.entry
        self.returns = returns
        self._body = body
        self._base = base
        self._abi = abi
        self._know(body.arguments)

    def _know(self, variables: pack.Variables) -> None:
        self.places = {name: place for name, (_, place) in variables.items()}
        self.arguments = {name: ctype for name, (ctype, _) in variables.items()}

    def argument(self, thread: Thread, name: str, entered: Entered | None = None) -> int:
        place = self.places.get(name, pack.Nowhere(_NO_SUCH_ARGUMENT))
        if isinstance(place, pack.InRegister):
            return thread.register(place.name)
        if isinstance(place, pack.OnStack):
            end = entered.frame_end if entered else self._abi.sp_after_return(thread.sp)
            return c.integer(thread.memory.read(end + place.offset, self._abi.word))
        if isinstance(place, pack.Constant):
            return place.value & WORD
        if isinstance(place, pack.AtEntry):
            if entered is None or place.name not in entered.registers:
                raise Unavailable(f"what {place.name} held at the entry is not known")
            return entered.registers[place.name]
        raise Unavailable(place.why)

    def renamed(self, names: Iterable[str]) -> PackedFunction:
        other = copy(self)
        other._know(dict(zip(names, self._body.arguments.values())))
        return other

    def statements(self) -> Iterator[Statement]:
        for line in self._body.lines:
            here = copy(self)
            here.pc = self._base + line.address
            here._know(line.variables)
            yield Statement(self._body.file, line.number, self._body.declared, here)


class DebugFunction:
    """A body that debug info describes."""

    def __init__(self, block: gdb.Block, pc: int) -> None:
        self._block = block
        function = block.function
        assert function is not None
        assert function.type is not None
        self.pc = pc
        self.entry = int(function.value().address)  # type: ignore[arg-type]
        self._symbols = {symbol.name: symbol for symbol in block if symbol.is_argument}
        returned = function.type.target()
        self.returns: c.CType = c_type(returned)

    @property
    def arguments(self) -> Mapping[str, c.CType]:
        return {name: c_type(symbol.type) for name, symbol in self._symbols.items() if symbol.type}

    def argument(self, thread: Thread, name: str, entered: Entered | None = None) -> int:
        if name not in self._symbols:
            raise Unavailable(_NO_SUCH_ARGUMENT)
        try:
            value = thread.frame.read_var(self._symbols[name])
        except gdb.error as error:
            raise Unavailable(f"GDB cannot tell: {error}") from error
        return number(value)

    def renamed(self, names: Iterable[str]) -> DebugFunction:
        other = copy(self)
        other._symbols = dict(zip(names, self._symbols.values()))
        return other

    def statements(self) -> Iterator[Statement]:
        function = self._block.function
        assert function is not None
        own = _statements_of_file(function.symtab.filename)
        for pc in self._where_lines_begin(own):
            blocks = outward(pc)
            inlined = [block for block in blocks if block.function is not None][:-1]
            file, line = function.symtab.filename, own.get(pc)
            if inlined:
                # At its beginning a debugger shows where it is called; the rest is not ours.
                outermost = inlined[-1]
                if _identity(outermost) in map(_identity, outward(pc - 1)):
                    continue
                assert outermost.function is not None
                file, line = outermost.function.symtab.filename, outermost.function.line
                blocks = blocks[blocks.index(outermost) + 1 :]
            if line is not None:
                here = copy(self)
                here.pc = pc
                # Variables of inner blocks hide those of outer ones.
                here._symbols = {
                    symbol.name: symbol
                    for block in reversed(blocks)
                    for symbol in block
                    if symbol.is_argument or symbol.is_variable
                }
                yield Statement(source_name(file), line, function.line, here)

    def _where_lines_begin(self, own: Mapping[int, int]) -> list[int]:
        """Every address in this function where its line table has a row.

        own: the statements of its file.
        """
        found = {*self._rows_from(self.entry), *self._rows_from(self._block.start)}
        last = max((own[pc] for pc in found if pc in own), default=0)
        assert self._block.function is not None
        lines = range(self._block.function.line, last + 1)
        # What is split off lies elsewhere, with rows of the same lines.
        for pc, line in own.items():
            if line in lines and pc not in found:
                found.update(self._rows_from(pc))
        return sorted(found)

    def _rows_from(self, pc: int) -> Iterator[int]:
        while (blocks := outward(pc)) and _identity(blocks[-1]) == _identity(self._block):
            yield pc
            last = gdb.find_pc_line(pc).last
            if last is None:
                return
            pc = last + 1


def outward(pc: int) -> list[gdb.Block]:
    """The blocks around an address, from the innermost to that of its function."""
    return enclosing(gdb.block_for_pc(pc))


def enclosing(block: gdb.Block | None) -> list[gdb.Block]:
    """A block and those around it, to that of its function."""
    blocks = []
    while block is not None and not block.is_static and not block.is_global:
        blocks.append(block)
        block = block.superblock
    return blocks


def _identity(block: gdb.Block) -> tuple[int, int, str]:
    """Blocks of older GDBs do not compare."""
    return block.start, block.end, block.function.name if block.function else ""


# Index, line and address.
_ROW = re.compile(r"\d+ +(\d+) +(0x[0-9a-f]+)")


def _statements_of_file(file: str) -> dict[int, int]:
    """The line of each statement, by its address: those rows of GDB's table that begin one.

    GDB's Python gives every row, and does not tell them apart.
    """
    statements = {}
    column = 0
    pattern = re.sub(r"([.*^$\[\]\\])", r"\\\1", file)
    for row in gdb.execute(f"maintenance info line-table {pattern}$", to_string=True).split("\n"):
        if row.startswith("INDEX"):
            column = row.index("IS-STMT")
        elif row[column : column + 1] == "Y" and (found := _ROW.match(row)):
            # Of several at an address the last one counts.
            statements[int(found[2], 16)] = int(found[1])
    return statements


def debug_functions(name: str) -> tuple[list[DebugFunction], list[str]]:
    """The bodies that debug info has for a C function, and the functions it is inlined into.

    A clone that the compiler made (.constprop, .isra) is a body like any other, with the
    arguments that it kept.
    """
    bodies = []
    inlined = set()
    for pc in _breakpoint_addresses(name):
        functions = [block for block in outward(pc) if block.function is not None]
        names = [block.function.name for block in functions if block.function is not None]
        if names[:1] != [name]:
            continue
        if len(functions) == 1:
            bodies.append(DebugFunction(functions[0], pc))
        elif names[1] != name:
            # Of its own body only the part that GCC split off is meant.
            inlined.add(names[1])
    return bodies, sorted(inlined)


def _breakpoint_addresses(name: str) -> list[int]:
    """Where GDB itself would stop in a C function: behind the prologue, but for optimized code.

    There the arguments can be read at the first instruction; which of the two it is, only a
    breakpoint tells.
    """
    assert name.isidentifier()
    try:
        gdb.decode_line(name)
    except gdb.error:
        return []
    return _addresses(gdb.Breakpoint(function=name, internal=True))


def location_addresses(location: str) -> list[int]:
    """Where a breakpoint at a location, as `break` takes it, stops; none where GDB finds none."""
    try:
        return _addresses(gdb.Breakpoint(location, internal=True))
    except gdb.error:
        return []


def _addresses(probe: gdb.Breakpoint) -> list[int]:
    try:
        if hasattr(probe, "locations"):
            return [location.address for location in probe.locations]
        # Before GDB 13 only its text has them, and some twice: the breakpoint's, its locations'.
        shown = gdb.execute(f"maintenance info breakpoints {probe.number}", to_string=True)
        addresses = re.findall(r"\b0x[0-9a-f]{8,}\b", shown)
        return [int(address, 16) for address in dict.fromkeys(addresses)]
    finally:
        probe.delete()


def static_probe_addresses(usdt: str) -> list[int]:
    """Every place that GDB has for a static probe, given as PROVIDER:NAME."""
    provider, name = map(re.escape, usdt.split(":"))
    shown = gdb.execute(f"info probes stap ^{provider}$ ^{name}$", to_string=True)
    return [int(address, 16) for address in re.findall(r"^stap\s.*?\s(0x[0-9a-f]+)", shown, re.M)]
