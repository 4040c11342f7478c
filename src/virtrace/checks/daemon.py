"""Checks a daemon: whether it can be traced, and what a trace of it would show."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from virtrace.binary.debuginfo import how_to_trust, install_command
from virtrace.errors import TargetError
from virtrace.image.model import Program
from virtrace.image.process import Process, inspect, place_of
from virtrace.recipe import catalogue
from virtrace.recipe.model import DriverMethod
from virtrace.recipe.selection import Limits
from virtrace.record.check import Check, Section
from virtrace.record.header import NO_ENGINE, header_record
from virtrace.record.resolution import resolve_without_gdb
from virtrace.targets import LIBVIRT, target_of
from virtrace.targets.hazards import Look
from virtrace.targets.processes import check_traceable, installed
from virtrace.trace.format import Header

# What a daemon with a QEMU driver is checked for.
RECIPE = "blockinfo"
LIBRARY = "libvirt.so.0"
DRIVER = "libvirt_driver_qemu.so"
LIBRARY_FOLDERS = ("/usr/lib64", "/usr/lib/*-linux-gnu*", "/usr/lib", "/usr/local/lib*")

API_ONLY = "API only (level symbol)"
# What a trace shows, by the level of the driver's method, and whether the driver has the USDT
# probes of its monitor.
REACH = {
    ("dwarf", True): "full chain (levels dwarf and usdt)",
    ("pack", True): "full chain (levels pack and usdt)",
    ("pack", False): "full chain but for the QMP text (level pack)",
    ("dwarf", False): "full chain but for the QMP text (level dwarf)",
    ("inferred", True): "full chain but for what cannot be proven without debug info "
    "(levels inferred, symbol and usdt)",
    ("inferred", False): "functions and the API's values (levels inferred and symbol)",
    ("missing", True): "API and QMP text (levels symbol and usdt), more with debug info",
    ("missing", False): API_ONLY,
}


def no_daemon_section() -> Section:
    """The section for a host where no daemon runs: what a daemon of its files would give."""
    checks = [
        Check(
            "problem",
            "no libvirt daemon is running",
            f"{LIBVIRT.start}; or start a private one: virtrace lab up",
        )
    ]
    library = _installed_library()
    if library is None:
        return Section("Daemon", checks)
    try:
        program = installed(library)
        plan = _plan(program)
    except TargetError as error:
        return Section("Daemon", [*checks, Check("note", error.what, error.remedy)])
    reach = f"with a daemon of the files below, a trace gives: {_reach(plan)}"
    return Section("Daemon", [*checks, Check("note", reach), *_module_checks(program)], None, plan)


def daemon_section(pid: int) -> Section:
    """Check whether a process can be traced, and what a trace would show."""
    title = f"Daemon {pid}"
    checks: list[Check] = []
    try:
        check_traceable(pid)
    except TargetError as error:
        checks.append(Check("problem", error.what, error.remedy))
    try:
        process = inspect(pid)
        target = target_of(process)
    except TargetError:
        return Section(title, checks)  # check_traceable has reported the same.
    version = target.version_of(process) or "of unknown version"
    place = place_of(pid)
    where = f", in {place}" if place else ""
    checks.append(Check("ok", f"{process.exe}, {target.name} {version}{where}"))
    checks += [
        Check("note", hazard.what, hazard.remedy)
        for hazard in Look(process, target).hazards(Limits().stop_ms)
    ]
    library = process.module(LIBRARY)
    if library is None:
        return Section(title, checks, "recipes of your own")
    able, unable = _recipes(process)
    checks.append(Check("ok", f"recipes: {', '.join(able)}"))
    checks += [
        Check("note", f"not {', '.join(names)}: {module} is not loaded")
        for module, names in unable.items()
    ]
    if DRIVER not in LIBVIRT.daemons.get(os.path.basename(process.exe), [DRIVER]):
        checks += _module_checks(process)
        return Section(title, checks, f"recipes {', '.join(able)}")
    program: Program = process
    try:
        if process.module(DRIVER) is None:
            program = installed(process.root / library.path.lstrip("/"))
            checks.append(_not_loaded(process, program))
        checks += _module_checks(program)
        plan = _plan(program)
    except TargetError as error:
        return Section(title, [*checks, Check("problem", error.what, error.remedy)])
    return Section(title, checks, _reach(plan), plan)


def _not_loaded(process: Process, on_disk: Program) -> Check:
    if on_disk.module(DRIVER) is None:
        return Check(
            "problem",
            f"{process.exe} has not loaded {DRIVER}, and it is not on disk",
            "name a daemon that drives QEMU (libvirtd or virtqemud), or install its driver: "
            f"{install_command(process.root)} libvirt-daemon-driver-qemu",
        )
    return Check(
        "note",
        f"{DRIVER} is not loaded by {process.exe} yet; looked at on disk",
        "call the daemon once, such as with `virsh list`",
    )


def _plan(program: Program) -> Header:
    """The header that a trace of the program would have."""
    recipe = catalogue.find_recipe(RECIPE)
    plan = resolve_without_gdb(recipe, program, {}, [])
    return header_record(recipe, program, plan, NO_ENGINE, time.monotonic_ns())


def _reach(plan: Header) -> str:
    recipe = catalogue.find_recipe(RECIPE)
    levels = {probe["name"]: probe["level"] for probe in plan["probes"]}
    has_probes = all(levels[point.name] == "usdt" for point in recipe.points if point.usdt)
    method = next(span for span in recipe.spans if isinstance(span.find, DriverMethod))
    return REACH[levels[method.name], has_probes]


def _recipes(process: Process) -> tuple[list[str], dict[str, list[str]]]:
    """Return the recipes whose modules are loaded, and the others by a module that is not."""
    able: list[str] = []
    unable: dict[str, list[str]] = {}
    for name in catalogue.shipped():
        modules = catalogue.find_recipe(name).required_modules
        missing = next((module for module in modules if process.module(module) is None), None)
        if missing is None:
            able.append(name)
        else:
            unable.setdefault(missing, []).append(name)
    return able, unable


def _module_checks(program: Program) -> Iterator[Check]:
    """Check the modules that shipped recipes need."""
    recipes = map(catalogue.find_recipe, catalogue.shipped())
    for name in dict.fromkeys(name for recipe in recipes for name in recipe.required_modules):
        module = program.module(name)
        if module is None:
            continue
        yield Check("ok", f"{module.path}, build-id {module.build_id or 'none'}")
        if module.deleted:
            yield Check("ok", f"{module.path} has been replaced since: what is mapped can be read")
        probes = [probe for probe in module.elf.stap_probes() if probe.provider == "libvirt"]
        if probes:
            yield Check("ok", f"{name} has {len(probes)} USDT probes")
        elif name == DRIVER:
            yield Check(
                "note",
                f"{name} has no USDT probes: no QMP text",
                "use your distribution's libvirt, built with -Ddtrace=enabled",
            )
        debug = program.debug_info(module)
        if debug is not None:
            where = "in the file itself" if debug is module.elf else str(debug.path)
            yield Check("ok", f"{name} has debug info: {where}")
        elif not module.elf.is_trusted:
            yield Check(
                "note",
                f"users other than root can have written {module.path}: its debug info is not read",
                how_to_trust(module.path),
            )


def _installed_library() -> Path | None:
    folders = (folder.lstrip("/") for folder in LIBRARY_FOLDERS)
    found = (sorted(Path("/").glob(f"{folder}/{LIBRARY}")) for folder in folders)
    return next((file for files in found for file in files), None)
