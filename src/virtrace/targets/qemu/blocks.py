"""QEMU's block nodes, without debug info: where they are, and how far each was written.

The offsets come from QEMU's own code. Functions that it exports (for its modules) read a field and
return it; the one that raises the high-water mark does so in one known way. The code by which QEMU
answers query-blockstats must read the mark from the same place, under its name in QMP. What the
code does not show in exactly that way is unavailable.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from virtrace.binary.ctype import CType, Field, Integer, Opaque, Pointer, Struct, Text
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import Memory, ProcessMemory
from virtrace.image.model import Module, Program
from virtrace.image.process import Process
from virtrace.recipe.model import BLOCK_NODES
from virtrace.targets.qemu.guests import Guest, disks_of, node_names
from virtrace.targets.target import Standing

NODE, BACKEND, _CHILD = "BlockDriverState", "BlockBackend", "BdrvChild"
MODULE = "qemu-system-x86_64"
_WORD = 8
# char node_name[32].
_NAME = 32
_MOST_NODES = 10_000
ATTEMPTS = 5
# Bytes of the function that raises the mark.
_WINDOW = 1 << 12
# endbr64, lea OFFSET(%rdi),%rax, xor %edi,%edi, ret
_RETURNS_FIELD = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?\x48\x8d\x87(?P<offset>.{4})(?:\x31\xff)?\xc3", re.S
)
# mov HEAD(%rip),%rax; mov OFFSET(%rbx or %rdi),%rax
_LOADS_HEAD = re.compile(rb"\x48\x8b\x05(?P<offset>.{4})", re.S)
_LOADS_NEXT = re.compile(rb"\x48\x8b[\x83\x87](?P<offset>.{4})", re.S)
# stat64_max(): mov OFFSET(BASE),%rax; lea OFFSET(BASE),REGISTER; cmp; jae; nop; lock cmpxchg
_RAISES = re.compile(
    rb"[\x48\x49]\x8b[\x80-\x87]\x24?(?P<offset>.{4})"
    rb"[\x48\x49\x4c\x4d]\x8d[\x80-\xbf]\x24?(?P=offset)"
    rb".{3}(?:\x73.|\x0f\x83.{4}).{0,8}?\xf0[\x48-\x4f]\x0f\xb1",
    re.S,
)
# Offsets of a byte or four: [BASE+OFFSET], BASE rax to r15, with the register rdx.
_FIELD = rb"(?:[\x50-\x57]\x24?(?P<short>.)|[\x90-\x97]\x24?(?P<long>.{4}))"
# As QEMU makes the text of a QMP reply: lea FIELD(STATISTICS),%rdx; mov ..; lea NAME(%rip),%rsi
VISITS = re.compile(
    rb"[\x48\x49]\x8d" + _FIELD + rb"(?:[\x48-\x4f]\x89.){0,2}\x48\x8d\x35(?P<name>.{4})", re.S
)
# As it answers query-blockstats: mov MARK(NODE),%rdx; mov ..(..),%rax; mov ..; mov
# %rdx,FIELD(STATISTICS), which is rax
_REPORTS = re.compile(
    rb"[\x48\x49]\x8b[\x90-\x97]\x24?(?P<mark>.{4})"
    rb"[\x48\x49]\x8b[\x40-\x47]\x24?.(?:[\x48-\x4f]\x89[\xc0-\xff]){0,2}\x48\x89" + _FIELD,
    re.S,
)
# Whose policy counts: mov WRITES(%rdi),%eax; test %sil,%sil; cmovne READS(%rdi),%eax
_POLICY = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?\x8b\x87(?P<write>.{4})\x40\x84\xf6\x0f\x45\x87(?P<read>.{4})", re.S
)
# mov ROOT(%rdi),%rax; test %rax,%rax; je; mov (%rax),%rax
_ROOT = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?\x48\x8b\x47(?P<offset>.)\x48\x85\xc0\x74.\x48\x8b\x00", re.S
)
_INT = 4
_REPORTED = b"wr_highest_offset\0"
# lea TARGET(%rip),REGISTER
_LOADS_ADDRESS = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?P<at>.{4})", re.S)
_DISPLACEMENT = struct.Struct("<i")
# Exported functions that have a coroutine do the work, and load the address of the static function
# in which it begins.
_STARTERS = {
    **{
        name: f"coroutine of {name}"
        for name in (
            *("blk_aio_pwritev", "blk_aio_preadv", "blk_aio_pdiscard", "blk_aio_flush"),
            *("blk_pwrite", "blk_pread", "blk_pdiscard", "blk_flush", "bdrv_flush"),
            *("job_start", "aio_task_pool_start_task"),
        )
    },
    "qemu_coroutine_new": "start of the coroutine",
}


@dataclass(frozen=True)
class NodeLayout:
    """head: of the list of all nodes, an address of the file. The others: offsets in a node."""

    head: int
    next: int
    name: int
    mark: int


@dataclass(frozen=True)
class BackendLayout:
    """Offsets in what a device has of its disk. root: the child that leads to its node."""

    root: int
    on_read_error: int
    on_write_error: int


class BlockLayer:
    """What is known of a QEMU's block layer (Knowledge of targets.target)."""

    def struct(self, program: Program, name: str) -> CType:
        module = program.module(MODULE)
        if module is None or name not in (NODE, BACKEND, _CHILD):
            return Opaque(name)
        if name == _CHILD:
            return self._child(program)
        try:
            if name == BACKEND:
                return self._backend(program, backend_layout(module))
            layout = node_layout(module)
        except Unavailable:
            return Opaque(name)
        fields = (
            Field("node_name", layout.name, Text(_NAME)),
            Field("wr_highest_offset", layout.mark, Integer(_WORD)),
        )
        return Struct(NODE, max(field.offset for field in fields) + _NAME, fields)

    def _child(self, program: Program) -> CType:
        """Its first member, on QEMU 5.2 to 11.1 (include/block/block_int-common.h)."""
        node = Pointer(lambda: self.struct(program, NODE))
        return Struct(_CHILD, _WORD, (Field("bs", 0, node),))

    def _backend(self, program: Program, layout: BackendLayout) -> CType:
        fields = (
            Field("root", layout.root, Pointer(lambda: self._child(program))),
            Field("on_read_error", layout.on_read_error, Integer(_INT)),
            Field("on_write_error", layout.on_write_error, Integer(_INT)),
        )
        return Struct(BACKEND, max(field.offset for field in fields) + _WORD, fields)

    def functions(self, program: Program) -> Mapping[int, str]:
        module = program.module(MODULE)
        return {} if module is None else entries(module)

    def standing(self, kind: str, process: Process, guest: Guest | None) -> Sequence[Standing]:
        if kind != BLOCK_NODES:
            raise Unavailable(f"what {kind} a QEMU has is not known")
        nodes = read_nodes(process)
        disks = {} if guest is None else disks_of(guest)
        return [
            Standing(name, mark, {"node": name, "mark": mark, **disks.get(name, {})})
            for name, mark in nodes.items()
        ]


@cache
def node_layout(module: Module) -> NodeLayout:
    """Read it from the code. Raises: Unavailable."""
    try:
        return _layout(module)
    except TargetError as error:
        raise Unavailable(f"QEMU's block nodes are not understood: {error.what}") from error


@cache
def backend_layout(module: Module) -> BackendLayout:
    """Read it from the code. Raises: Unavailable.

    The code by which QEMU decides what to do about an error must read the policy from where the
    exported accessor does.
    """
    try:
        decides, tells = (
            _POLICY.match(function(module, name)[1])
            for name in ("blk_get_error_action", "blk_get_on_error")
        )
        root = _ROOT.match(function(module, "blk_bs")[1])
    except TargetError as error:
        raise Unavailable(f"QEMU's disks are not understood: {error.what}") from error
    if root is None or decides is None or tells is None or decides.groups() != tells.groups():
        raise Unavailable("the code of this build does not show where a disk keeps its policy")
    return BackendLayout(root["offset"][0], number(decides["read"]), number(decides["write"]))


def _layout(module: Module) -> NodeLayout:
    at, code = function(module, "bdrv_next_node")
    heads = {at + found.end() + number(found["offset"]) for found in _LOADS_HEAD.finditer(code)}
    nexts = {number(found["offset"]) for found in _LOADS_NEXT.finditer(code)}
    named = _RETURNS_FIELD.match(function(module, "bdrv_get_node_name")[1])
    names = set() if named is None else {number(named["offset"])}
    at, _ = function(module, "bdrv_co_pwritev_part")
    writers = module.elf.called_by(at, "bdrv_set_dirty")
    code = (module.elf.content(writers[0], _WINDOW) or b"") if len(writers) == 1 else b""
    marks = {number(found["offset"]) for found in _RAISES.finditer(code)}
    layout = NodeLayout(
        _only(heads, "the list of nodes"),
        _only(nexts, "the next node"),
        _only(names, "a node's name"),
        _only(marks, "a node's high-water mark"),
    )
    if layout.mark not in _reported_marks(module):
        raise Unavailable(
            "the code of this build does not show that QMP reports the high-water mark from where "
            "writes raise it"
        )
    return layout


def _reported_marks(module: Module) -> set[int]:
    """Offsets in a node of what query-blockstats reports as its mark, beside its name.

    Raises: Unavailable, TargetError.
    """
    at, code = function(module, "visit_type_BlockDeviceStats_members")
    fields = {
        field_of(found)
        for found in VISITS.finditer(code)
        if module.elf.content(at + found.end() + number(found["name"]), len(_REPORTED)) == _REPORTED
    }
    at, _ = function(module, "qmp_query_blockstats")
    reporters = set(module.elf.called_by(at, "bdrv_get_node_name")).intersection(
        module.elf.called_by(at, "bdrv_get_specific_stats")
    )
    return {
        number(found["mark"])
        for reporter in reporters
        for found in _REPORTS.finditer(module.elf.content(reporter, _WINDOW) or b"")
        if len(fields) == 1 and field_of(found) in fields
    }


def field_of(found: re.Match[bytes]) -> int:
    return int.from_bytes(found["short"] or found["long"], "little")


@cache
def entries(module: Module) -> Mapping[int, str]:
    """Names of the static functions in which coroutines begin, by their addresses in the file."""
    found = {}
    for starter, name in _STARTERS.items():
        try:
            at, code = function(module, starter)
            targets = {
                at + load.end() + number(load["at"]) for load in _LOADS_ADDRESS.finditer(code)
            }
            functions = [one for one in targets if module.elf.function_around(one) == one]
        except (TargetError, Unavailable):
            continue
        if len(functions) == 1:
            found[functions[0]] = name
    return found


def read_nodes(process: Process) -> Mapping[str, int]:
    """The high-water mark of each node, by its name, from the memory of a running QEMU.

    Each node that the command line defines and that can be there must be among them.
    Raises: Unavailable.
    """
    module = main_module(process)
    layout = node_layout(module)
    with memory_of(process) as memory:
        found: Mapping[str, int] = {}
        for _ in range(ATTEMPTS):
            before, found = found, dict(_nodes(memory, module.base + layout.head, layout))
            # A list that changes while it is read can lead to a node that is gone.
            if found and [*before] == [*found]:
                break
        else:
            raise Unavailable("its list of nodes changes all the time, or is empty")
    if node_names(process.pid).isdisjoint(found):
        raise Unavailable("no node that its command line names was found in its memory")
    return found


def _nodes(memory: Memory, head: int, layout: NodeLayout) -> Iterator[tuple[str, int]]:
    for node in listed(memory, head, layout.next, _MOST_NODES, "nodes"):
        name = memory.read(node + layout.name, _NAME).partition(b"\0")[0]
        if not (name and name.isascii() and name.decode("ascii").isprintable()):
            raise Unavailable(f"what should be a node's name is {name!r}")
        yield name.decode("ascii"), word(memory, node + layout.mark)


def main_module(process: Process) -> Module:
    """Raises: Unavailable."""
    module = process.module(MODULE)
    if module is None:
        raise Unavailable(f"process {process.pid} has no {MODULE} loaded")
    return module


@contextmanager
def memory_of(process: Process) -> Iterator[ProcessMemory]:
    """Raises: Unavailable."""
    try:
        memory = ProcessMemory(process.pid)
    except OSError as error:
        raise Unavailable(f"its memory cannot be read: {error.strerror}") from error
    try:
        yield memory
    finally:
        memory.close()


def listed(memory: Memory, head: int, following: int, most: int, what: str) -> Iterator[int]:
    """The addresses of what is in a linked list. following: offset of the next one's address.

    Raises: Unavailable if there are more than so many, as in a list that changes.
    """
    place = word(memory, head)
    for _ in range(most):
        if place == 0:
            return
        yield place
        place = word(memory, place + following)
    raise Unavailable(f"it has more than {most:,} {what}, or its list of {what} changes")


def word(memory: Memory, address: int) -> int:
    return int.from_bytes(memory.read(address, _WORD), "little")


def function(module: Module, name: str) -> tuple[int, bytes]:
    """The address and the code of an exported function. Raises: Unavailable, TargetError."""
    for start, end, exported in module.elf.exported_functions():
        if exported == name:
            code = module.elf.content(start, end - start)
            if code:
                return start, code
    raise Unavailable(f"this build of QEMU does not export {name}")


def _only(found: set[int], what: str) -> int:
    if len(found) != 1:
        raise Unavailable(f"the code of this build does not show where {what} is")
    return found.pop()


def number(raw: bytes) -> int:
    return int(_DISPLACEMENT.unpack(raw)[0])
