"""``virtrace doctor``: will tracing work here, how deep, and what to do for more."""

from __future__ import annotations

import argparse
import json
import sys

from virtrace.checks import format as report_format
from virtrace.checks.daemon import RECIPE, daemon_section, no_daemon_section
from virtrace.checks.host import (
    engine_section,
    missing_engines_section,
    permission_section,
    verdict,
)
from virtrace.engines import ENGINES
from virtrace.errors import DONE
from virtrace.printing import print_lines
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.targets.processes import find_daemons


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        description="Check GDB, permissions, the daemon and its debug info. Nothing is changed.",
    )
    parser.add_argument(
        "-p", dest="pid", metavar="PID", type=int, help="the daemon (default: each that runs)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON document, for scripts and `virtrace fleet`",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    general = [*map(engine_section, ENGINES), permission_section()]
    missing = missing_engines_section()
    if missing is not None:
        general.append(missing)
    pids = [daemon.pid for daemon in find_daemons()] if args.pid is None else [args.pid]
    daemons = [daemon_section(pid) for pid in pids] or [no_daemon_section()]
    status, answer = verdict(general, daemons)
    if args.json:
        report = report_format.report(status == DONE, answer, [*general, *daemons])
        print_lines(json.dumps(report, indent=2).split("\n"))
        return status
    print(answer)
    for section in [*general, *daemons]:
        print(f"{section.title}:")
        for check in section.checks:
            print_lines(check.lines())
        if section.plan is not None:
            print(f"  recipe {RECIPE} there:")
            style = style_for(sys.stdout)
            print_lines(f"  {line}" for line in text.levels(section.plan, style))
    return status
