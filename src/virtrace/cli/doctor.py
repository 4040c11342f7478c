"""``virtrace doctor``: will tracing work here, how deep, and what to do for more."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtrace.binary.debuginfo import how_to_trust, install_command
from virtrace.binary.reader import Binary, debug_file, read_by_child
from virtrace.engines.gdb.launch import check
from virtrace.errors import DONE, NOT_TRACED, TargetError
from virtrace.image.process import (
    can_trace_all,
    inspect,
    place_of,
    user_name,
    yama_refusal,
    yama_scope,
)
from virtrace.printing import print_lines
from virtrace.recipe.selection import Limits
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.targets import LIBVIRT
from virtrace.targets.hazards import Look
from virtrace.targets.processes import check_traceable, find_daemons
from virtrace.trace.format import Record

OLDEST_GDB = (10, 0)
OLDEST_PYTHON = (3, 9)
GDB_SECONDS = 60
LENT = ("yaml", "pygments")

RECIPE, METHOD, QMP = "blockinfo", "qemuDomainGetBlockInfo", "qmp.send"
LIBRARY = "libvirt.so.0"
DRIVER = "libvirt_driver_qemu.so"
LIBRARY_FOLDERS = ("/usr/lib64", "/usr/lib/*-linux-gnu*", "/usr/lib", "/usr/local/lib*")
# What the blockinfo recipe stands on where there is no debug info.
EXPORTED = {
    LIBRARY: ("virDomainGetBlockInfo", "virErrorMsg"),
    DRIVER: ("qemuMonitorGetAllBlockStatsInfo",),
}
PROBES = {LIBRARY: (), DRIVER: ("qemu_monitor_send_msg", "qemu_monitor_recv_reply")}

API_ONLY = "API only (level symbol)"
# What a trace shows, by how the driver's static functions are found, and whether the driver
# has the USDT probes of its monitor.
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

# Run by GDB's own Python. A module that it lacks is tried again from our environment, as the
# scripts in gdb_scripts/ do.
ASK_PYTHON = """
import json, sys
answer = {"version": sys.version_info[:3], "modules": {}}
lacking = []
for name, folder in %r:
    try:
        __import__(name)
        answer["modules"][name] = "own"
    except ImportError:
        lacking.append((name, folder))
for name, folder in lacking:
    sys.path.append(folder)
    try:
        __import__(name)
        answer["modules"][name] = "lent"
    except Exception as error:
        answer["modules"][name] = repr(error)
print("virtrace-answer " + json.dumps(answer))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. kind: ``ok``, ``note`` (a trace can do without) or ``problem``."""

    kind: str
    text: str
    remedy: str | None = None

    def lines(self) -> Iterator[str]:
        yield f"  {self.kind:<8} {self.text}"
        if self.remedy is not None:
            yield f"  {'':<8} try: {self.remedy}"


@dataclass(frozen=True)
class Section:
    """Findings about one thing. reach: what a trace would show; None where it cannot tell.

    plan: what a trace's header would say of each probe.
    """

    title: str
    findings: Sequence[Finding]
    reach: str | None = None
    plan: Record | None = None

    @property
    def problem(self) -> Finding | None:
        return next((finding for finding in self.findings if finding.kind == "problem"), None)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        description="Looks at GDB, permissions, the daemon and its debug info. Touches nothing.",
    )
    parser.add_argument(
        "-p", dest="pid", metavar="PID", type=int, help="the daemon (default: each that runs)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    general = [gdb_section(), permission_section(), bpftrace_section()]
    pids = [daemon.pid for daemon in find_daemons()] if args.pid is None else [args.pid]
    daemons = [daemon_section(pid) for pid in pids] or [no_daemon_section()]
    status, answer = verdict(general, daemons)
    print(answer)
    for section in [*general, *daemons]:
        print(f"{section.title}:")
        for finding in section.findings:
            print_lines(finding.lines())
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


def gdb_section() -> Section:
    return Section("GDB", list(_gdb_findings()))


def _gdb_findings() -> Iterator[Finding]:
    gdb = shutil.which("gdb")
    install = f"{install_command(Path('/'))} gdb"
    if gdb is None:
        yield Finding("problem", "gdb is not on PATH", install)
        return
    folders = [(name, _folder_of(name)) for name in LENT]
    ask = "python exec(" + repr(ASK_PYTHON % (folders,)) + ")"
    try:
        result = subprocess.run(
            [gdb, "-nx", "-batch", "-ex", "show version", "-ex", ask],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GDB_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("problem", f"{gdb} does not run: {error}", install)
        return
    match = re.search(r"(\d+)\.(\d+)\S*$", result.stdout.partition("\n")[0])
    if match is None:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        yield Finding("problem", f"{gdb} does not run: {said}", install)
        return
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_GDB:
        yield Finding(
            "problem",
            f"{gdb} is version {match[0]}",
            f"install GDB {OLDEST_GDB[0]} or later and put it first on PATH",
        )
    else:
        yield Finding("ok", f"{gdb}, version {match[0]}")
    yield from _python_findings(result.stdout, result.stderr)


def _python_findings(stdout: str, stderr: str) -> Iterator[Finding]:
    match = re.search(r"^virtrace-answer (.*)$", stdout, re.MULTILINE)
    if match is None:
        said = stderr.strip().partition("\n")[0]
        yield Finding(
            "problem",
            f"this GDB has no usable Python: {said}",
            "install a GDB built with Python (on Debian and Ubuntu `gdb`, not `gdb-minimal`)",
        )
        return
    answer = json.loads(match[1])
    version = ".".join(str(part) for part in answer["version"])
    if tuple(answer["version"]) < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        yield Finding(
            "problem",
            f"the Python inside this GDB is {version}",
            f"install a GDB built with Python {oldest} or later",
        )
    else:
        yield Finding("ok", f"Python {version} inside GDB")
    for name, how in answer["modules"].items():
        if how == "own":
            yield Finding("ok", f"{name}: GDB's Python has it")
        elif how == "lent":
            yield Finding("ok", f"{name}: lent to GDB's Python from {_folder_of(name)}")
        else:
            yield Finding(
                "problem",
                f"{name}: GDB's Python cannot import it ({how})",
                "install virtrace with a Python close to the one inside GDB "
                f"(python{'.'.join(version.split('.')[:2])} -m venv)",
            )


def permission_section() -> Section:
    return Section("Permissions", list(_permission_findings()))


def _permission_findings() -> Iterator[Finding]:
    user = user_name(os.geteuid())
    refusal = yama_refusal(yama_scope(), can_trace_all())
    if refusal is not None:
        yield Finding("problem", refusal.what, refusal.remedy)
    if can_trace_all():
        yield Finding("ok", f"{user}, with CAP_SYS_PTRACE: may trace the daemons of every user")
    else:
        yield Finding(
            "note",
            f"{user}, without CAP_SYS_PTRACE: may trace only {user}'s own daemon (qemu:///session)",
            "run as root (sudo) for the system daemon",
        )


def bpftrace_problem() -> tuple[str, str] | None:
    """Why this host cannot do it, and what to do; None where it can."""
    if shutil.which("bpftrace") is None:
        return "bpftrace is not installed", "apt-get install bpftrace, or dnf install bpftrace"
    if os.geteuid() != 0:
        return "only root may set uprobes", "run as root (sudo)"
    for folder in ("/sys/bus/event_source/devices/uprobe", "/sys/fs/bpf"):
        if not os.path.isdir(folder):
            return f"this kernel offers no uprobes for BPF: {folder} is not there", (
                "run on the host, with a kernel of 4.20 or later"
            )
    return None


def bpftrace_section() -> Section:
    """The other engine: a trace can do without."""
    found = bpftrace_problem()
    if found is None:
        finding = Finding("ok", "`virtrace record --engine bpftrace` works here")
    else:
        finding = Finding("note", f"no `--engine bpftrace`: {found[0]}", found[1])
    return Section("bpftrace", [finding])


def no_daemon_section() -> Section:
    """For a host where no daemon runs: what its files promise, for when one does."""
    findings = [
        Finding(
            "problem",
            "no libvirtd or virtqemud is running",
            "start it (`virsh -c qemu:///system list` does, where systemd starts it on demand), "
            "or take a private one: virtrace lab up",
        )
    ]
    places = {LIBRARY: LIBRARY_FOLDERS, DRIVER: _driver_folders()}
    on_disk = {name: _on_disk(Path("/"), folders, name) for name, folders in places.items()}
    files = [(name, read_by_child(Path(path))) for name, path in on_disk.items() if path]
    modules, reach = _module_findings(files, Path("/"))
    if files:
        findings.append(
            Finding("note", f"with a daemon of the files below, a trace gives: {reach}")
        )
    return Section("Daemon", findings + modules)


def daemon_section(pid: int) -> Section:
    title = f"Daemon {pid}"
    problem: list[Finding] = []
    try:
        check_traceable(pid)
    except TargetError as error:
        problem.append(Finding("problem", error.what, error.remedy))
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
        Finding("ok", f"{process.exe}, libvirt {version}{f', in {place}' if place else ''}"),
        *(
            Finding("ok", f"{module.path} has been replaced since: what is mapped can be read")
            for name in (LIBRARY, DRIVER)
            if (module := process.module(name)) and module.deleted and not problem
        ),
        *(
            Finding("note", hazard.what, hazard.remedy)
            for hazard in Look(process, LIBVIRT).hazards(Limits().stop_ms)
        ),
    ]
    files = [(LIBRARY, library.elf)]
    driver = process.module(DRIVER)
    if driver is not None:
        files.append((DRIVER, driver.elf))
    else:
        path = _on_disk(process.root, _driver_folders(os.path.dirname(library.path)), DRIVER)
        if path is None:
            problem.append(
                Finding(
                    "problem",
                    f"{process.exe} has not loaded {DRIVER}, and it is not on disk",
                    "name the daemon that drives QEMU (libvirtd or virtqemud), or install its "
                    f"driver: {install_command(process.root)} libvirt-daemon-driver-qemu",
                )
            )
        else:
            problem.append(
                Finding(
                    "note",
                    f"{DRIVER} is not loaded by {process.exe} yet; looked at on disk",
                    "call the daemon once, such as with `virsh list`",
                )
            )
            files.append((DRIVER, read_by_child(process.root / path.lstrip("/"), path)))
    plan = None
    if driver is not None and not any(finding.kind == "problem" for finding in problem):
        try:
            plan = check(RECIPE, process)
        except TargetError as error:
            # Where GDB itself is the problem, its own section says so.
            found.append(Finding("note", error.what, error.remedy))
    modules, reach = _module_findings(files, process.root, predict=plan is None)
    if plan is not None:
        levels = {probe["name"]: probe["level"] for probe in plan["probes"]}
        reach = REACH[levels[METHOD], levels[QMP] == "usdt"]
    return Section(title, [*problem, *found, *modules], reach, plan)


def _module_findings(
    files: Sequence[tuple[str, Binary]], root: Path, predict: bool = True
) -> tuple[list[Finding], str]:
    """files: by soname. Also says what a trace would reach.

    predict: no GDB says what it finds, so that the files have to tell what it would.
    """
    findings = []
    reach = API_ONLY
    for name, elf in files:
        path = os.fspath(elf.name)
        try:
            missing = [symbol for symbol in EXPORTED[name] if elf.exported_function(symbol) is None]
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
            findings.append(Finding("problem", error.what, error.remedy))
            continue
        findings.append(Finding("ok", f"{path}, build-id {build_id or 'none'}"))
        if missing:
            findings.append(
                Finding(
                    "problem" if name == LIBRARY else "note",
                    f"{name} does not export {', '.join(missing)}",
                )
            )
        else:
            findings.append(Finding("ok", f"{name} exports {', '.join(EXPORTED[name])}"))
        absent = [probe for probe in PROBES[name] if probe not in probes]
        if absent:
            findings.append(
                Finding(
                    "note",
                    f"{name} has no USDT probe {', '.join(absent)}: no QMP text",
                    "use your distribution's libvirt, built with -Ddtrace=enabled",
                )
            )
        elif PROBES[name]:
            findings.append(Finding("ok", f"{name} has {len(probes)} USDT probes"))
        level = "missing"
        if debug is not None:
            level = "dwarf"
            where = "in the file itself" if debug is elf else str(debug.path)
            findings.append(Finding("ok", f"{name} has debug info: {where}"))
        elif predict:
            findings.append(no_debug_info(name, root) if elf.is_trusted else _not_root_s(path))
            if name == DRIVER and (finding := _inference(elf)):
                level = "inferred"
                findings.append(finding)
        if name == DRIVER:
            reach = REACH[level, not absent]
    return findings, reach


def _inference(driver: Binary) -> Finding | None:
    api = EXPORTED[LIBRARY][0]
    try:
        found = driver.callers_of(LIBVIRT.check_of(api))
    except TargetError:
        return None
    if len(found) != 1:
        return None
    return Finding("ok", f"what {api} calls in {DRIVER} is found without debug info")


def _on_disk(root: Path, folders: Sequence[str], name: str) -> str | None:
    """Path inside root of the first file of that name; folders are patterns."""
    for folder in folders:
        for path in sorted(root.glob(f"{folder}/{name}".lstrip("/"))):
            return "/" + str(path.relative_to(root))
    return None


def _driver_folders(*libraries: str) -> list[str]:
    return [f"{folder}/libvirt/connection-driver" for folder in (*libraries, *LIBRARY_FOLDERS)]


def _folder_of(name: str) -> str:
    """Where our own Python has this package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a dependency of this package
        raise TargetError(f"the Python package {name} is missing", "install virtrace again")
    return str(Path(spec.origin).parent.parent)


def _not_root_s(path: str) -> Finding:
    return Finding(
        "note",
        f"others than root can have written {path}: its debug info is not read",
        how_to_trust(path),
    )


def no_debug_info(name: str, root: Path) -> Finding:
    remedy = LIBVIRT.how_to_get_debug_info(name, root)
    return Finding("note", f"{name} has no debug info on disk", remedy)
