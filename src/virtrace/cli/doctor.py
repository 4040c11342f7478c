"""``virtrace doctor``: will tracing work here, how deep, and what to do for more."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from virtrace import engines
from virtrace.binary.debuginfo import how_to_trust, install_command
from virtrace.binary.reader import Binary, debug_file, read_by_child
from virtrace.engines import ENGINES
from virtrace.errors import DONE, NOT_TRACED, TargetError
from virtrace.image.process import (
    Process,
    can_trace_all,
    inspect,
    place_of,
    user_name,
    yama_refusal,
    yama_scope,
)
from virtrace.printing import print_lines
from virtrace.recipe import catalogue
from virtrace.recipe.model import DriverMethod, Recipe
from virtrace.recipe.selection import Limits
from virtrace.record.check import Check, Section
from virtrace.record.header import NO_ENGINE, header_record
from virtrace.record.resolution import resolve_without_gdb
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.targets import LIBVIRT
from virtrace.targets.hazards import Look
from virtrace.targets.processes import check_traceable, find_daemons

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


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        description="Looks at GDB, permissions, the daemon and its debug info. Touches nothing.",
    )
    parser.add_argument(
        "-p", dest="pid", metavar="PID", type=int, help="the daemon (default: each that runs)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    first, *others = map(engine_section, ENGINES)
    general = [first, permission_section(), *others]
    pids = [daemon.pid for daemon in find_daemons()] if args.pid is None else [args.pid]
    daemons = [daemon_section(pid) for pid in pids] or [no_daemon_section()]
    status, answer = verdict(general, daemons)
    print(answer)
    for section in [*general, *daemons]:
        print(f"{section.title}:")
        for item in section.checks:
            print_lines(item.lines())
        if section.plan is not None:
            print(f"  recipe {RECIPE} there:")
            style = style_for(sys.stdout)
            print_lines(f"  {line}" for line in text.levels(section.plan, style))
    return status


def verdict(general: Sequence[Section], daemons: Sequence[Section]) -> tuple[int, str]:
    """Exit status, and the line that says it all."""
    ready = [section for section in daemons if section.problem is None]
    first_problem = next((section.problem for section in general if section.problem), None)
    if first_problem is None and not ready:
        first_problem = daemons[0].problem
    if first_problem is not None:
        return NOT_TRACED, f"Tracing will not work here: {first_problem.text}"
    each = "; ".join(f"{section.title}: {section.reach}" for section in ready)
    which = ", on several daemons, so name one with -p" if len(ready) > 1 else ""
    return DONE, f"Tracing works here{which}. {each}"


def engine_section(name: str) -> Section:
    engine = engines.load(name)
    return Section(engine.title, [*engine.checks()])


def permission_section() -> Section:
    return Section("Permissions", list(_permission_findings()))


def _permission_findings() -> Iterator[Check]:
    user = user_name(os.geteuid())
    refusal = yama_refusal(yama_scope(), can_trace_all())
    if refusal is not None:
        yield Check("problem", refusal.what, refusal.remedy)
    if can_trace_all():
        yield Check("ok", f"{user}, with CAP_SYS_PTRACE: may trace the daemons of every user")
    else:
        yield Check(
            "note",
            f"{user}, without CAP_SYS_PTRACE: may trace only {user}'s own daemon (qemu:///session)",
            "run as root (sudo) for the system daemon",
        )


def no_daemon_section() -> Section:
    """For a host where no daemon runs: what its files promise, for when one does."""
    findings = [
        Check(
            "problem",
            "no libvirt daemon is running",
            f"{LIBVIRT.start}; or start a private one: virtrace lab up",
        )
    ]
    places = {LIBRARY: LIBRARY_FOLDERS, DRIVER: _driver_folders()}
    on_disk = {name: _on_disk(Path("/"), folders, name) for name, folders in places.items()}
    files = [(name, read_by_child(Path(path))) for name, path in on_disk.items() if path]
    modules, reach = _module_findings(files, Path("/"))
    if files:
        findings.append(Check("note", f"with a daemon of the files below, a trace gives: {reach}"))
    return Section("Daemon", findings + modules)


def daemon_section(pid: int) -> Section:
    title = f"Daemon {pid}"
    problem: list[Check] = []
    try:
        check_traceable(pid)
    except TargetError as error:
        problem.append(Check("problem", error.what, error.remedy))
    try:
        process = inspect(pid)
    except TargetError:
        return Section(title, problem)  # check_traceable has met the same
    library = process.module(LIBRARY)
    if library is None:
        return Section(title, problem)
    version = LIBVIRT.version_of(process) or "of unknown version"
    place = place_of(pid)
    found = [
        Check("ok", f"{process.exe}, libvirt {version}{f', in {place}' if place else ''}"),
        *(
            Check("ok", f"{module.path} has been replaced since: what is mapped can be read")
            for name in (LIBRARY, DRIVER)
            if (module := process.module(name)) and module.deleted and not problem
        ),
        *(
            Check("note", hazard.what, hazard.remedy)
            for hazard in Look(process, LIBVIRT).hazards(Limits().stop_ms)
        ),
    ]
    files = [(LIBRARY, library.elf)]
    driver = process.module(DRIVER)
    loads = LIBVIRT.daemons.get(os.path.basename(process.exe), [DRIVER])
    if driver is not None:
        files.append((DRIVER, driver.elf))
    elif DRIVER in loads:
        path = _on_disk(process.root, _driver_folders(os.path.dirname(library.path)), DRIVER)
        if path is None:
            problem.append(
                Check(
                    "problem",
                    f"{process.exe} has not loaded {DRIVER}, and it is not on disk",
                    "name the daemon that drives QEMU (libvirtd or virtqemud), or install its "
                    f"driver: {install_command(process.root)} libvirt-daemon-driver-qemu",
                )
            )
        else:
            problem.append(
                Check(
                    "note",
                    f"{DRIVER} is not loaded by {process.exe} yet; looked at on disk",
                    "call the daemon once, such as with `virsh list`",
                )
            )
            files.append((DRIVER, read_by_child(process.root / path.lstrip("/"), path)))
    plan = None
    if driver is not None and not any(check.kind == "problem" for check in problem):
        try:
            recipe = catalogue.find(RECIPE)
            resolved = resolve_without_gdb(recipe, process, {}, [])
            plan = header_record(recipe, process, resolved, NO_ENGINE, time.monotonic_ns())
        except TargetError as error:
            # Where GDB itself is the problem, its own section says so.
            found.append(Check("note", error.what, error.remedy))
    modules, reach = _module_findings(files, process.root, predict=plan is None)
    able, unable = _recipes(process)
    found.append(Check("ok", f"recipes: {', '.join(able)}"))
    found += [
        Check("note", f"not {', '.join(names)}: {module} is not loaded")
        for module, names in unable.items()
    ]
    if DRIVER not in loads:
        reach = f"{len(able)} recipes"
    if plan is not None:
        recipe = catalogue.find(RECIPE)
        levels = {probe["name"]: probe["level"] for probe in plan["probes"]}
        has_probes = all(levels[point.name] == "usdt" for point in recipe.points if point.usdt)
        method = next(span for span in recipe.spans if isinstance(span.find, DriverMethod))
        reach = REACH[levels[method.name], has_probes]
    return Section(title, [*problem, *found, *modules], reach, plan)


def _recipes(process: Process) -> tuple[list[str], dict[str, list[str]]]:
    """The shipped recipes whose modules are loaded, and the others by a module that is not."""
    able: list[str] = []
    unable: dict[str, list[str]] = {}
    for name in catalogue.shipped():
        modules = catalogue.find(name).required_modules
        missing = next((one for one in modules if process.module(one) is None), None)
        if missing is None:
            able.append(name)
        else:
            unable.setdefault(missing, []).append(name)
    return able, unable


def _module_findings(
    files: Sequence[tuple[str, Binary]], root: Path, predict: bool = True
) -> tuple[list[Check], str]:
    """files: by soname. Also says what a trace would reach.

    predict: no GDB says what it finds, so that the files have to tell what it would.
    """
    findings = []
    reach = API_ONLY
    recipe = catalogue.find(RECIPE)
    for name, elf in files:
        exported, static_probes = _needed(recipe, name)
        path = os.fspath(elf.name)
        try:
            missing = [symbol for symbol in exported if elf.exported_function(symbol) is None]
            probes = {probe.name for probe in elf.stap_probes() if probe.provider == "libvirt"}
            debug = None
            if elf.is_trusted:
                debug = (
                    elf
                    if elf.has_debug_info
                    else debug_file(elf.build_id, elf.debuglink, path, root=root)
                )
            build_id = elf.build_id
        except TargetError as error:
            findings.append(Check("problem", error.what, error.remedy))
            continue
        findings.append(Check("ok", f"{path}, build-id {build_id or 'none'}"))
        if missing:
            findings.append(
                Check(
                    "problem" if recipe.roots[0].function in missing else "note",
                    f"{name} does not export {', '.join(missing)}",
                )
            )
        else:
            findings.append(Check("ok", f"{name} exports {', '.join(exported)}"))
        absent = [probe for probe in static_probes if probe not in probes]
        if absent:
            findings.append(
                Check(
                    "note",
                    f"{name} has no USDT probe {', '.join(absent)}: no QMP text",
                    "use your distribution's libvirt, built with -Ddtrace=enabled",
                )
            )
        elif static_probes:
            findings.append(Check("ok", f"{name} has {len(probes)} USDT probes"))
        level = "missing"
        if debug is not None:
            level = "dwarf"
            where = "in the file itself" if debug is elf else str(debug.path)
            findings.append(Check("ok", f"{name} has debug info: {where}"))
        elif predict:
            findings.append(no_debug_info(name, root) if elf.is_trusted else _not_root_s(path))
            if name == DRIVER and (check := _inference(elf, recipe)):
                level = "inferred"
                findings.append(check)
        if name == DRIVER:
            reach = REACH[level, not absent]
    return findings, reach


def _needed(recipe: Recipe, module: str) -> tuple[list[str], list[str]]:
    """What a recipe needs of a module without debug info: exported functions, static probes."""
    spans = [span for span in recipe.spans if span.module == module and not span.optional]
    points = [point for point in recipe.points if point.module == module and not point.optional]
    exported = [span.function for span in spans if span.prototype and not span.find]
    exported += [point.prototype.name for point in points if point.usdt is None]
    return exported, [point.usdt.partition(":")[2] for point in points if point.usdt]


def _inference(driver: Binary, recipe: Recipe) -> Check | None:
    api = recipe.roots[0].function
    try:
        found = driver.callers_of(LIBVIRT.check_of(api))
    except TargetError:
        return None
    if len(found) != 1:
        return None
    return Check("ok", f"what {api} calls in {DRIVER} is found without debug info")


def _on_disk(root: Path, folders: Sequence[str], name: str) -> str | None:
    """Path inside root of the first file of that name; folders are patterns."""
    for folder in folders:
        for path in sorted(root.glob(f"{folder}/{name}".lstrip("/"))):
            return "/" + str(path.relative_to(root))
    return None


def _driver_folders(*libraries: str) -> list[str]:
    return [f"{folder}/libvirt/connection-driver" for folder in (*libraries, *LIBRARY_FOLDERS)]


def _not_root_s(path: str) -> Check:
    return Check(
        "note",
        f"others than root can have written {path}: its debug info is not read",
        how_to_trust(path),
    )


def no_debug_info(name: str, root: Path) -> Check:
    return Check(
        "note", f"{name} has no debug info on disk", LIBVIRT.how_to_get_debug_info(name, root)
    )
