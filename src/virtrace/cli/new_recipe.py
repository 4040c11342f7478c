"""Makes a recipe for a public API from its binaries: the driver's method and its callees."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from virtrace.binary import x86_64
from virtrace.binary.ctype import Boolean, Integer, Pointer, Struct
from virtrace.binary.functions import Callee
from virtrace.errors import TargetError, UsageError
from virtrace.image.model import Module, Program
from virtrace.recipe import catalogue, draft, loader, path
from virtrace.recipe.draft import Item
from virtrace.recipe.model import CalledBy, DriverMethod, Recipe, Span
from virtrace.recipe.prototype import Parameter, Prototype, normal_type
from virtrace.targets import LIBVIRT
from virtrace.targets.libvirt import public_api

if TYPE_CHECKING:
    from virtrace.binary.dwarf import Declared

QEMU = "libvirt_driver_qemu.so"
# Each span has two breakpoints.
MAX_CALLEES = 20
# A function that the driver names more often is of general use.
MAX_USES = 50
# Prefixes of functions that identify a caller; others are called everywhere.
_TELLING = ("qemu", "vir")
_SECRET = "password"


@dataclass(frozen=True)
class _Noted:
    """A span, and a comment on it."""

    span: Span
    note: str = ""

    def item(self) -> Item:
        span = self.span
        data: dict[str, Any] = {"prototype": str(span.prototype), "module": span.module}
        if span.root:
            data["root"] = True
        if isinstance(span.find, DriverMethod):
            data["find"] = {"driver_method": span.find.api}
        elif span.find is not None:
            data["find"] = {"called_by": span.find.caller, "calls": span.find.calls}
        for key, captures in (("enter", span.enter), ("exit", span.exit)):
            if captures:
                data[key] = {name: capture.text for name, capture in captures.items()}
        return Item(data, [self.note])


def new_recipe(api: str, process: Program) -> str:
    """Return the recipe's text. Raises UsageError: the process has no such function."""
    libvirt = process.module(LIBVIRT.module)
    assert libvirt is not None
    address = libvirt.elf.exported_function(api)
    if address is None:
        raise _unknown(api, libvirt, LIBVIRT.version_of(process))
    found = [_root(api, address, libvirt, process)]
    method = _method(found[0].span, process)
    if isinstance(method, str):
        driver, left_out = None, [f"The driver's method was not found: {method}."]
    else:
        driver = method.driver
        callees, left_out = _callees(method)
        found += [method.noted, *callees]
    return draft.recipe_text(
        api,
        f"{api}: what it was asked and what it answered, the driver's method, and what that\n"
        "calls, with the errors on the way.",
        _try(api),
        [noted.item() for noted in found],
        head=_head(api, process, driver),
        left_out=left_out,
        points=_points(driver),
    )


def _unknown(api: str, libvirt: Module, version: str | None) -> UsageError:
    exported = {name for _, _, name in libvirt.elf.exported_functions()}
    close = difflib.get_close_matches(api, sorted(exported & {*public_api.functions()}), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "name a function of libvirt's API"
    if api in public_api.functions():
        hint = f"it came with a later version; {hint}" if close else "it came with a later version"
    return UsageError(f"libvirt {version or ''} of {libvirt.path} exports no {api}", hint)


def _root(api: str, address: int, libvirt: Module, process: Program) -> _Noted:
    declared = public_api.functions().get(api)
    note = ""
    if declared is None and (described := _declared([address], libvirt, process)):
        declared = prototype_of(described[address])
    if declared is None:
        declared = Prototype(api, "void", ())
        note = (
            "Its arguments and result are unknown: it is not in the public API that this virtrace "
            "knows. Write its arguments into the prototype, and what to capture of them."
        )
    return _Noted(replace(_span(declared, LIBVIRT.module), root=True), note)


@dataclass(frozen=True)
class _Method:
    """The driver's method, and what is known about its driver.

    declared: declarations of it and of its callees, by address, if there is debug info.
    known: spans of shipped recipes, by address.
    """

    noted: _Noted
    driver: Module
    address: int
    callees: Sequence[Callee]
    declared: dict[int, Declared]
    known: dict[int, Span]


def _method(root: Span, process: Program) -> _Method | str:
    """Find the driver's method; return the reason if there is none."""
    find = DriverMethod(root.function)
    why = f"no loaded driver checks access for {find.api}"
    # Several drivers may implement it: QEMU's is preferred.
    drivers = [one for one in process.modules if one.name.startswith("libvirt_driver_")]
    for driver in sorted(drivers, key=lambda one: (one.name != QEMU, one.name)):
        try:
            methods = driver.elf.callers_of(LIBVIRT.check_of(find.api))
        except TargetError as error:
            why = error.what
            continue
        if len(methods) > 1:
            why = f"{len(methods)} functions of {driver.name} check access for {find.api}"
        if len(methods) != 1:
            continue
        [address] = methods
        known = _known(driver)
        callees = driver.elf.callees(address)
        within = [address, *(one.address for one in callees if one.address is not None)]
        declared = _declared(within, driver, process)
        note = "The driver's method, found by its access check."
        span = _named(declared.get(address), known.get(address), driver.name)
        if span is None:
            assert root.prototype is not None
            span = _span(replace(root.prototype, name=f"method_of_{root.function}"), driver.name)
            note += (
                " Its name is unknown. Its declaration is assumed to be that of the API: a "
                "captured argument is right only as far as both agree."
            )
        span = replace(span, find=find, root=False, lines=None)
        noted = _Noted(span, note)
        return _Method(noted, driver, address, callees, declared, known)
    return why


def _callees(method: _Method) -> tuple[list[_Noted], list[str]]:
    """Return the callees that are worth tracing, and comments on the others."""
    exported = _exported_in_catalogue()
    driver = method.driver.name
    # By name: if the compiler cloned a function, its first body.
    found: dict[str, _Noted] = {}
    imported: list[str] = []
    common: list[str] = []
    unclear: list[str] = []
    for callee in method.callees:
        declared = method.declared.get(callee.address) if callee.address is not None else None
        if callee.name is None:
            noted = _static(callee, declared, method)
            if noted is None:
                unclear.append(f"+{callee.address:#x}")
                continue
        elif method.driver.elf.uses(callee.name) > MAX_USES:
            common.append(callee.name)
            continue
        elif callee.name in exported:
            noted = _Noted(exported[callee.name])
        elif callee.address is None:
            if callee.name.startswith(_TELLING) and not callee.name.endswith("EnsureACL"):
                imported.append(callee.name)
            continue
        elif declared is not None:
            noted = _Noted(_span(prototype_of(declared), driver))
        else:
            noted = _Noted(_span(Prototype(callee.name, "void", ()), driver))
        found.setdefault(noted.span.name, noted)
    common = [name for name in common if name.startswith(_TELLING)]
    left = _left_out(method.noted.span.function, found, unclear, imported, common)
    return [*found.values()][:MAX_CALLEES], [*left]


def _left_out(
    method_name: str,
    found: Mapping[str, _Noted],
    unclear: Sequence[str],
    imported: Sequence[str],
    common: Sequence[str],
) -> Iterator[str]:
    if len(found) > MAX_CALLEES:
        rest = ", ".join([*found][MAX_CALLEES:])
        yield f"{method_name} also calls: {rest}."
    spans = [noted.span for noted in found.values()]
    if any(span.prototype == Prototype(span.function, "void", ()) for span in spans):
        yield (
            "Spans `void NAME(void)` are functions whose declaration is unknown: they show when "
            "the function ran, and how long. To capture arguments, write them into the prototype."
        )
    if unclear:
        yield (
            f"Static functions that {method_name} calls and that cannot be identified by an "
            f"exported function that they call: {', '.join(unclear)}."
        )
    if imported:
        yield (
            f"{method_name} also calls, in libvirt.so.0: {', '.join(imported)}. A span for one of "
            "these: `prototype: void NAME(void)`, `module: libvirt.so.0`."
        )
    if common:
        yield f"It also calls {', '.join(common)}, which much other code calls, too."


def _static(callee: Callee, declared: Declared | None, method: _Method) -> _Noted | None:
    """Return a span for a static function; None if nothing identifies it."""
    assert callee.address is not None
    shipped = method.known.get(callee.address)
    calls = _calls(callee.address, shipped, method)
    if calls is None:
        return None
    driver = method.driver.name
    span = _named(declared, shipped, driver)
    note = "" if span else "Its name is unknown."
    span = span or _span(Prototype(f"static_calling_{calls}", "void", ()), driver)
    find = CalledBy(method.noted.span.name, calls)
    return _Noted(replace(span, find=find, root=False, lines=None), note)


def _named(declared: Declared | None, shipped: Span | None, driver: str) -> Span | None:
    """Prefer the name in debug info, but a shipped recipe's captures: those were tested."""
    if declared is None or (shipped is not None and shipped.function == declared.name):
        return shipped
    return _span(prototype_of(declared), driver)


def _calls(address: int, shipped: Span | None, method: _Method) -> str | None:
    """Return the exported function that identifies it among the callees of the method."""
    names = [
        callee.name
        for callee in method.driver.elf.callees(address)
        if callee.name is not None and callee.name.startswith(_TELLING)
    ]
    # The rarest identifies best; that of a shipped recipe was tested with other versions too.
    names.sort(key=lambda name: (method.driver.elf.uses(name), name))
    if shipped is not None and isinstance(shipped.find, CalledBy):
        names.insert(0, shipped.find.calls)
    for name in names:
        with suppress(TargetError):
            if method.driver.elf.called_by(method.address, name) == [address]:
                return name
    return None


@cache
def _shipped() -> list[Recipe]:
    return [*map(catalogue.find_recipe, catalogue.shipped())]


def _exported_in_catalogue() -> dict[str, Span]:
    """Return the spans of the catalogue that need only a symbol, by function."""
    return {
        span.function: replace(span, root=False)
        for recipe in _shipped()
        for span in recipe.spans
        if span.prototype is not None and span.find is None and span.name == span.function
    }


def _known(driver: Module) -> dict[int, Span]:
    """Return the static functions that shipped recipes find in this file, by address."""
    found: dict[int, Span] = {}
    for recipe in _shipped():
        addresses: dict[str, int] = {}
        for span in recipe.spans:
            if span.find is None or span.module != driver.name:
                continue
            with suppress(TargetError):
                if isinstance(span.find, DriverMethod):
                    candidates = driver.elf.callers_of(LIBVIRT.check_of(span.find.api))
                elif span.find.caller in addresses:
                    caller = addresses[span.find.caller]
                    candidates = driver.elf.called_by(caller, span.find.calls)
                else:
                    continue
                if len(candidates) == 1:
                    addresses[span.name] = candidates[0]
                    found.setdefault(candidates[0], span)
    return found


def _declared(addresses: Sequence[int], module: Module, process: Program) -> dict[int, Declared]:
    debug = process.debug_info(module)
    if debug is None:
        return {}
    # Imported late: it takes longer than all other imports of a command.
    from virtrace.binary.dwarf import declarations

    return declarations(debug.path, addresses, x86_64.ABI)


def prototype_of(declared: Declared) -> Prototype:
    """Return as much as a recipe can read: up to an argument that is not passed like a number."""

    def is_plain(spelled: str) -> bool:
        return isinstance(LIBVIRT.type_named(normal_type(spelled)), (Integer, Boolean, Pointer))

    if declared.returns != "void" and not is_plain(declared.returns):
        # The address of the result may be a hidden first argument.
        return Prototype(declared.name, "void", ())
    plain = takewhile(lambda one: one[1] and is_plain(one[0]), declared.parameters)
    return Prototype(
        declared.name,
        normal_type(declared.returns),
        # A type without a name in C, for example the target of a function pointer.
        tuple(
            Parameter(name, "void *" if type_.startswith("unnamed ") else normal_type(type_))
            for type_, name in plain
        ),
    )


def _span(prototype: Prototype, module: str) -> Span:
    enter, exit_ = captures(prototype)
    return Span(
        name=prototype.name,
        function=prototype.name,
        module=module,
        prototype=prototype,
        enter={name: path.parse_path(text) for name, text in enter.items()},
        exit={name: path.parse_path(text) for name, text in exit_.items()},
    )


def captures(prototype: Prototype) -> tuple[dict[str, str], dict[str, str]]:
    """Return captures at entry and return, chosen by the types alone."""
    enter: dict[str, str] = {}
    exit_: dict[str, str] = {}
    if isinstance(LIBVIRT.type_named(prototype.returns), (Integer, Boolean, Pointer)):
        exit_["result"] = path.RETURN
    for parameter, following in zip(prototype.parameters, [*prototype.parameters[1:], None]):
        name, type_ = parameter.name, parameter.type
        ctype = LIBVIRT.type_named(type_)
        if name == _SECRET:
            continue
        if isinstance(ctype, (Integer, Boolean)) or type_ == "char *":
            enter[name] = name
        elif type_ == "virDomain *":
            enter.setdefault("domain", f"{name}->name")
        elif type_ == "virTypedParameter *" and following and following.type in ("int", "int *"):
            side = enter if following.type == "int" else exit_
            side[name] = f"typed({name}, {following.name})"
        elif type_ == "virDomainStatsRecord ***" and prototype.returns == "int":
            exit_[name] = f"records({name}, {path.RETURN})"
        elif isinstance(ctype, Pointer) and _is_read(type_[:-1].strip()):
            exit_.setdefault(name, f"*{name}")
    return enter, exit_


def _is_read(target: str) -> bool:
    """Whether a pointer's target is a value: not a buffer or a struct of unknown layout."""
    ctype = LIBVIRT.type_named(target)
    if isinstance(ctype, Integer):
        return ctype.size > 1
    return isinstance(ctype, (Boolean, Struct)) or target == "char *"


def _head(api: str, process: Program, driver: Module | None) -> Iterator[str]:
    version = LIBVIRT.version_of(process) or "of unknown version"
    yield f"Written by `virtrace recipe new {api}` for libvirt {version}:"
    for module in filter(None, (process.module(LIBVIRT.module), driver)):
        how = "with debug info" if process.debug_info(module) else "without debug info"
        yield f"{module.name}, build-id {(module.build_id or 'none')[:12]}, {how}."
    yield "Remove what does not help: each span is hit twice in each of its calls."


def _points(driver: Module | None) -> Iterator[Item]:
    has_qmp = driver is not None and any(
        probe.name == "qemu_monitor_send_msg" for probe in driver.elf.stap_probes()
    )
    for name in ("qmp", "error") if has_qmp else ("error",):
        yield from map(Item, loader.fragment(name))


def _try(api: str) -> str:
    for recipe in _shipped():
        if api in {root.function for root in recipe.roots}:
            return recipe.try_
    return f"what makes a client call {api}"
