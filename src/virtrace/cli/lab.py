"""`virtrace lab`: a private, real libvirtd to try things on."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import textwrap
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from virtrace import engines
from virtrace.cli.arguments import add_json
from virtrace.cli.progress import steps
from virtrace.cli.record import recorded
from virtrace.confined import Tell
from virtrace.errors import ANSWER_IS_NO, DONE
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.lab.folder import default_folder
from virtrace.lab.guest import LAST_SECTOR_DISK
from virtrace.lab.scenarios import SCENARIOS, Scenario
from virtrace.printing import print_lines
from virtrace.recipe import catalogue, selection
from virtrace.record.job import Job
from virtrace.trace.writer import default_path

if TYPE_CHECKING:
    from virtrace.cli.results import LabResult

RECIPE = "blockinfo"
RELEASES = ("bullseye", "bookworm", "trixie", "sid")
_INDENT = " " * 22


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lab = subparsers.add_parser(
        "lab",
        description="A private, real libvirtd with a running guest. It runs without root's "
        "rights in a folder of its own and touches nothing of the host's libvirt.",
    )
    actions = lab.add_subparsers(metavar="ACTION", required=True)

    up = actions.add_parser("up", help="start the lab")
    _add_dir(up)
    _add_build(up)
    up.set_defaults(run=_up)

    down = actions.add_parser("down", help="stop the lab and remove its folder")
    _add_dir(down)
    down.set_defaults(run=_down)

    status = actions.add_parser("status", help="show what runs; exit status 1 if the lab is not up")
    _add_dir(status)
    status.set_defaults(run=_status)

    scenarios = "\n".join(line for each in SCENARIOS.values() for line in _help_of(each))
    run = actions.add_parser(
        "run",
        help="start a lab for one scenario, trace it, stop the lab",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Start a lab in a temporary folder, set up one scenario, trace domblkinfo for "
        "its disk, stop the lab.",
        epilog="scenarios, each with the output of domblkinfo (on libvirt 7.0.0, 9.0.0, "
        f"11.3.0 and 12.8.0):\n{scenarios}",
    )
    run.add_argument("scenario", metavar="SCENARIO", choices=list(SCENARIOS), help="see below")
    run.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the trace file (default: as for `virtrace record`)",
    )
    _add_build(run)
    run.set_defaults(run=_run)
    for name, action in actions.choices.items():
        add_json(action, f"lab {name}")


def _add_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        default=default_folder(),
        help="the lab's folder (default: %(default)s); each lab needs its own",
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    build = parser.add_mutually_exclusive_group()
    build.add_argument(
        "--debug-info",
        action="store_true",
        help="run libvirt 9.0.0 with debug info; built at first use (minutes)",
    )
    build.add_argument(
        "--release",
        choices=RELEASES,
        help="run libvirt and QEMU of this Debian release, in a root file system of its own "
        "(needs root); created at first use (a minute, 1 GB)",
    )


def _help_of(scenario: Scenario) -> list[str]:
    answer = textwrap.wrap(scenario.answer, 96, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return [f"  {scenario.name:<17} {scenario.about}", *answer]


def _up(args: argparse.Namespace) -> int:
    with steps() as step:
        lab = Lab(args.dir, args.debug_info, args.release, step)
        step("the lab is up" if lab.up() else "the lab is already up")
    args.result = _result(lab)
    print_lines(_describe(args.result))
    guest = lab.guests[0].name
    print("next:")
    print(f"  virtrace record {RECIPE} -p {lab.pid}")
    print(f"  {shlex.join(lab.virsh_command('domblkinfo', guest, LAST_SECTOR_DISK))}")
    print(f"  {shlex.join(_lab_command('down', lab))}")
    return DONE


def _lab_command(action: str, lab: Lab) -> list[str]:
    other = [] if lab.folder == default_folder() else ["--dir", str(lab.folder)]
    return ["virtrace", "lab", action, *other]


def _down(args: argparse.Namespace) -> int:
    lab = Lab(args.dir)
    with steps() as step:
        if lab.down():
            step(f"the lab is down; {lab.folder} is removed")
        else:
            step(f"nothing to do: no lab of this user in {lab.folder}")
    args.result = _result(lab)
    return DONE


def _status(args: argparse.Namespace) -> int:
    lab = Lab(args.dir)
    args.result = _result(lab)
    if lab.is_up:
        print_lines(_describe(args.result))
        return DONE
    print(f"no lab of this user is up in {lab.folder}")
    if left := lab.processes:
        down = shlex.join(_lab_command("down", lab))
        print(f"its daemon is gone, but {len(left)} of its processes still run: {down} ends them")
    return ANSWER_IS_NO


def _result(lab: Lab) -> LabResult:
    up = lab.is_up
    result: LabResult = {
        "up": up,
        "folder": str(lab.folder),
        "pid": lab.pid if up else None,
        "exe": str(processes.executable(lab.pid)) if up else None,
        "uri": lab.uri if up else None,
        "guests": [],
        "left": 0 if up else len(lab.processes),
    }
    for guest in lab.guests if up else ():
        state = lab.virsh("domstate", guest.name)
        result["guests"].append(
            {
                "name": guest.name,
                "state": (state.stdout or state.stderr).strip(),
                "disks": [{"target": disk.target, "about": disk.about} for disk in guest.disks],
            }
        )
    return result


def _describe(result: LabResult) -> list[str]:
    lines = [
        f"daemon   pid {result['pid']}, {result['exe']}",
        f"folder   {result['folder']}",
        f"uri      {result['uri']}",
    ]
    for guest in result["guests"]:
        lines.append(f"guest    {guest['name']}, {guest['state']}")
        lines += [f"  {disk['target']}    {disk['about']}" for disk in guest["disks"]]
    return lines


def _run(args: argparse.Namespace) -> int:
    scenario = SCENARIOS[args.scenario]
    # Any end of this process, except by SIGKILL, also ends the lab.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_by_signal)
    folder = Path(tempfile.mkdtemp(prefix="virtrace-lab-", dir="/var/tmp"))
    with steps() as step:
        lab = Lab(folder, args.debug_info, args.release, step)
        try:
            lab.up()
            return _trace(lab, scenario, args, step)
        finally:
            lab.down()
            step(f"the lab is down; {lab.folder} is removed")


def _exit_by_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _trace(lab: Lab, scenario: Scenario, args: argparse.Namespace, step: Tell) -> int:
    step(f"{scenario.name}: {scenario.about}")
    scenario.set_up(lab)
    step(f"expected: {scenario.answer}")
    commands = [shlex.join(lab.virsh_command(*arguments)) for arguments in scenario.commands]
    for command in commands:
        step(f"tracing: {command}")
    recipe = catalogue.find_recipe(RECIPE)
    job = Job(
        recipe,
        lab.pid,
        args.output or default_path(RECIPE, lab.pid),
        selection.parse_selection(recipe, [], None, None),
        command=["sh", "-c", "; ".join(commands)],
        packs=[catalogue.file_of(RECIPE).parent],
    )
    return recorded(args, job, engines.chosen(engines.AUTO))
