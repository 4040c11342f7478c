"""``virtrace rescue``: remove what a killed debugger left in a daemon."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from virtrace.binary import x86_64
from virtrace.cli.arguments import add_json
from virtrace.errors import ANSWER_IS_NO, DONE, TargetError
from virtrace.guard import journal, restore
from virtrace.guard.journal import PatchedBytes
from virtrace.image.memory import ProcessMemory, open_memory
from virtrace.image.model import Module
from virtrace.image.process import Process, describe_process, inspect, read_status

if TYPE_CHECKING:
    from virtrace.cli.results import RescueResult


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "rescue",
        description="Report what a killed debugger left in process PID, and remove it after you "
        "agree. It is found by the journal that virtrace keeps while it traces, and by comparing "
        "the code in memory with its files, so that breakpoints of other debuggers are found too.",
        epilog="Exit status: 0 nothing is left, 1 something is left, 3 it cannot be determined.",
    )
    parser.add_argument("pid", metavar="PID", type=int, help="the daemon")
    parser.add_argument("--yes", action="store_true", help="restore without asking")
    add_json(parser, "rescue")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    process = inspect(args.pid)
    status = read_status(args.pid)
    if status is not None and status["TracerPid"] != "0":
        raise TargetError(
            f"process {args.pid} is traced by {describe_process(int(status['TracerPid']))}, "
            "whose breakpoints may be wanted",
            "end that tracer first (in GDB: `detach`, `quit`), which removes them",
        )
    memory = open_memory(args.pid, writable=True)
    try:
        return _rescue(process, memory, args)
    finally:
        memory.close()


def _rescue(process: Process, memory: ProcessMemory, args: argparse.Namespace) -> int:
    found, unread = left_behind(process, memory)
    for error in unread:
        print(f"virtrace: not examined: {error.what}", file=sys.stderr)
    status = read_status(process.pid)
    stopped = status is not None and status["State"].startswith("T")
    result: RescueResult = {
        "pid": process.pid,
        "places": [
            {
                "where": _where(process, place),
                "address": f"{place.address:#x}",
                "is_now": place.written.hex(),
                "should_be": place.was.hex(),
            }
            for place in found
        ],
        "stopped": stopped,
        "unread": [error.what for error in unread],
        "restored": False,
    }
    args.result = result
    if not found and not stopped:
        if unread:
            raise TargetError(
                f"cannot tell whether anything is left in process {process.pid}: not all of its "
                "files can be read",
                "run as root on the host; or restart the daemon (guests keep running)",
            )
        print(f"nothing is left in process {process.pid}, and it is not stopped")
        return DONE
    if found:
        count = f"{len(found)} locations" if len(found) > 1 else "one location"
        print(f"a killed debugger left {count} of process {process.pid} ({process.exe}) modified;")
        print("a thread that reaches a breakpoint there ends the process")
        for place in found:
            print(f"  {_where(process, place):<40} {place.written.hex()} -> {place.was.hex()}")
    if stopped:
        print(f"process {process.pid} ({process.exe}) is stopped (state T): it answers no call")
    agreed = args.yes
    if not agreed and args.outcome is None and sys.stdin.isatty():
        answer = input("restore it, and resume the process? [y/N] ")
        agreed = answer.strip().lower() in ("y", "yes")
    if not agreed:
        print(f"nothing was changed; to do it: virtrace rescue {process.pid} --yes")
        return ANSWER_IS_NO
    try:
        restore.write_back(memory, found)
    except OSError as error:
        raise TargetError(
            f"process {process.pid} cannot be written to: {error.strerror}",
            "the kernel may forbid it (proc_mem.force_override=); attach a GDB and detach it, or "
            "restart the daemon",
        ) from error
    restore.resume(process.pid)
    result["restored"] = True
    print("restored; the process runs")
    return DONE


def left_behind(
    process: Process, memory: ProcessMemory
) -> tuple[list[PatchedBytes], list[TargetError]]:
    """Return what to restore, and the errors for files that cannot be compared, each once."""
    found: dict[int, PatchedBytes] = {}
    unread: dict[str, TargetError] = {}
    entries = journal.read_journal(process)
    left = entries.still_in_place(memory) if entries is not None else []
    for module in process.modules:
        here = {place.address: place for place in left if module.contains(place.address)}
        try:
            if module.elf.machine == x86_64.ABI.machine and x86_64.ABI.breakpoint is not None:
                compared = module.elf.breakpoints(module.base, x86_64.ABI.breakpoint)
                raised = {module.base + probe.semaphore for probe in module.elf.stap_probes()}
                # An entry of the journal counts only if the file agrees.
                here = {address: place for address, place in here.items() if address in raised}
                here.update(
                    (address, PatchedBytes(address, was, x86_64.ABI.breakpoint))
                    for address, was in compared
                )
        except TargetError as error:
            unread[error.what] = error
        found.update(here)
    return [found[address] for address in sorted(found)], [*unread.values()]


def _where(process: Process, place: PatchedBytes) -> str:
    def holds(module: Module) -> bool:
        return module.contains(place.address)

    module = next(filter(holds, process.modules), None)
    if module is None:
        return f"{place.address:#x}"
    return f"{module.name}+{place.address - module.base:#x}"
