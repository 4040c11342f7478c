"""Pretty-printers for libvirt's structs: numbers with units, and backing chains on request.

A pointer to one of the structs is printed with a one-line summary. The printers read memory when a
value is printed; what cannot be read is reported within the value, as GDB itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Union

import gdb
import gdb.printing

from virtrace.printing import safe
from virtrace.report.units import humanized, quantity
from virtrace.wording import count

# Of one disk, and of one domain. GDB itself shows no more than `print elements` children, 200
# unless set otherwise, and an ellipsis for the rest.
_MOST_IMAGES = 100
_MOST_DISKS = 64

_SCALARS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_ENUM)

# What a printer shows of a member: GDB's value, or text of ours.
Child = tuple[str, Union[gdb.Value, str]]


def register_printers() -> None:
    """Register the printers for all files; `info pretty-printer` lists them as virtrace."""
    _Chain()
    gdb.printing.register_pretty_printer(None, _Printers(), replace=True)


class _Chain(gdb.Parameter):
    """The backing chain of a virStorageSource, a virDomainDiskDef, or the disks of a virDomainObj.

    At most 100 images and 64 disks; a circular chain ends with a note.
    """

    set_doc = "Set whether printing a struct follows backing chains."
    show_doc = "Show whether printing a struct follows backing chains."

    def __init__(self) -> None:
        super().__init__("virtrace chain", gdb.COMMAND_TRACEPOINTS, gdb.PARAM_BOOLEAN)
        self.value = False

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, value: str) -> str:
        return f"Backing chains are {'' if value == 'on' else 'not '}followed."


class _Printers(gdb.printing.PrettyPrinter):
    def __init__(self) -> None:
        kinds = [gdb.printing.SubPrettyPrinter(name) for name in _SUMMARIES]
        super().__init__("virtrace", kinds)

    # The base class is declared to give nothing but None.
    def __call__(self, value: gdb.Value) -> _Struct | _Pointer | None:  # type: ignore[override]
        name = _struct_name(value.type)
        if name is None and value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR:
            name = _struct_name(value.type.strip_typedefs().target())
            printer: type[_Struct | _Pointer] = _Pointer
        else:
            printer = _Struct
        kinds = self.subprinters or ()
        if name is None or not any(one.name == name and one.enabled for one in kinds):
            return None
        return None if value.is_optimized_out else printer(value, name)


def _struct_name(ctype: gdb.Type) -> str | None:
    """Return the type's name or tag that has a printer; `typedef struct {` has no tag."""
    while True:
        name = (ctype.name or "").split(" ")[-1].lstrip("_")
        if ctype.code == gdb.TYPE_CODE_STRUCT:
            return name if name in _SUMMARIES and ctype.fields() else None
        if ctype.code != gdb.TYPE_CODE_TYPEDEF:
            return None
        target = ctype.target()
        if name in _SUMMARIES and target.code == gdb.TYPE_CODE_STRUCT and target.fields():
            return name
        ctype = target


class _Pointer:
    """The address, and a one-line summary of the struct."""

    def __init__(self, value: gdb.Value, name: str) -> None:
        self._value = value
        self._name = name

    def to_string(self) -> str:
        return _summary(self._value, self._name)


class _Struct:
    """The members with units, and the backing chain if `set virtrace chain on`."""

    def __init__(self, value: gdb.Value, name: str) -> None:
        self._value = value
        self._name = name

    def to_string(self) -> str | None:
        return None

    def children(self) -> Iterator[Child]:
        for field in self._value.type.strip_typedefs().fields():
            if field.name:
                yield field.name, _with_unit(field.name, self._value[field])
        if gdb.parameter("virtrace chain"):
            yield from _guarded(_CHAINS.get(self._name, _no_chain), self._value)


def _with_unit(name: str, value: gdb.Value) -> gdb.Value | str:
    if value.type.strip_typedefs().code not in _SCALARS or _format_is_wanted():
        return value
    try:
        number = int(value)
    except gdb.error:
        return value
    return quantity(name, number) if humanized(name, number) else value


def _format_is_wanted() -> bool:
    """Whether a format such as print/x was asked for, which only GDB itself can apply."""
    return hasattr(gdb, "print_options") and "format" in gdb.print_options()


def _summary(pointer: gdb.Value, name: str) -> str:
    address = f"{int(pointer):#x}"
    if int(pointer) == 0:
        return address
    try:
        # GDB writes control characters as escapes, but not what is unseen or turns text.
        return safe(f"{address} {_SUMMARIES[name](pointer.dereference())}", unicode=True)
    except gdb.error as error:
        return f"{address} unavailable: {error}"


def _of_stats(stats: gdb.Value) -> str:
    names = ["capacity", "physical"]
    if stats["wr_highest_offset_valid"]:
        names.append("wr_highest_offset")
    return ", ".join(f"{name} {quantity(name, int(stats[name]))}" for name in names)


def _of_source(source: gdb.Value) -> str:
    words = [str(source["type"]), _text(source["path"]), _format(source["format"])]
    capacity = int(source["capacity"])
    if capacity:
        words.append(f"capacity {quantity('capacity', capacity)}")
    return " ".join(filter(None, words))


def _of_disk(disk: gdb.Value) -> str:
    return f"{_text(disk['dst'])} {_summary(disk['src'], 'virStorageSource')}"


def _of_domain(domain: gdb.Value) -> str:
    definition = domain["def"].dereference()
    disks = count(int(definition["ndisks"]), "disk")
    return f"{_text(definition['name'])} id {int(definition['id'])}, {disks}"


def _text(pointer: gdb.Value) -> str:
    """Return a string as GDB shows it and as long, or GDB's error for the address."""
    return pointer.format_string().partition(" ")[2]


def _format(value: gdb.Value) -> str:
    try:
        return str(value.cast(gdb.lookup_type("virStorageFileFormat")))
    except gdb.error:
        return f"format {int(value)}"


_SUMMARIES: dict[str, Callable[[gdb.Value], str]] = {
    "qemuBlockStats": _of_stats,
    "virStorageSource": _of_source,
    "virDomainDiskDef": _of_disk,
    "virDomainObj": _of_domain,
}


def _guarded(chain: Callable[[gdb.Value], Iterator[Child]], value: gdb.Value) -> Iterator[Child]:
    try:
        yield from chain(value)
    except gdb.error as error:
        yield "[chain]", f"unavailable: {error}"


def _no_chain(_: gdb.Value) -> Iterator[Child]:
    return iter(())


def _images(source: gdb.Value, before: str = "") -> Iterator[Child]:
    """Yield the backing images, the nearest first."""
    seen = {int(source.address)} if source.address is not None else set()
    image = source["backingStore"]
    for depth in range(1, _MOST_IMAGES + 1):
        address = int(image)
        if address == 0:
            return
        name = f"[{before}backing {depth}]"
        if address in seen:
            yield name, f"{address:#x} again: this chain goes in a circle"
            return
        seen.add(address)
        yield name, _summary(image, "virStorageSource")
        image = image.dereference()["backingStore"]
    yield f"[{before}backing]", f"more than {_MOST_IMAGES}: not followed"


def _images_of_disk(disk: gdb.Value) -> Iterator[Child]:
    if int(disk["src"]):
        yield from _images(disk["src"].dereference())


def _images_of_domain(domain: gdb.Value) -> Iterator[Child]:
    definition = domain["def"].dereference()
    disks = int(definition["ndisks"])
    for i in range(min(disks, _MOST_DISKS)):
        disk = definition["disks"][i]
        yield f"[disk {i}]", _summary(disk, "virDomainDiskDef")
        source = disk.dereference()["src"]
        if int(source):
            yield from _images(source.dereference(), f"disk {i} ")
    if disks > _MOST_DISKS:
        yield "[disk]", f"{disks} in all: the first {_MOST_DISKS} are shown"


_CHAINS: dict[str, Callable[[gdb.Value], Iterator[Child]]] = {
    "virStorageSource": _images,
    "virDomainDiskDef": _images_of_disk,
    "virDomainObj": _images_of_domain,
}
