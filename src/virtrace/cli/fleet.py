"""``virtrace fleet``: what many hosts say, and which say something else than the others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from virtrace.errors import ANSWER_IS_NO, DONE, IncompleteError, TraceError
from virtrace.files import write_new
from virtrace.fleet.compare import Comparer
from virtrace.fleet.format import fleet_record
from virtrace.fleet.read import files_below, read_all
from virtrace.fleet.text import fleet_lines
from virtrace.printing import print_lines
from virtrace.record.progress import Progress
from virtrace.report.highlight import style_for
from virtrace.wording import count


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "fleet",
        description="Compare what many hosts say: which differ from the others and in what, the "
        "groups of each answer, how the numbers are spread, and which files say nothing.",
        epilog="Exit status: 0 none differs, 1 some differ, 2 no file could be read, 4 some files "
        "could not be read.",
    )
    parser.add_argument(
        "files",
        metavar="FILE|FOLDER",
        nargs="+",
        help="a trace (.jsonl), a snapshot, a bundle, the output of `virtrace doctor --json`, or a "
        "folder of these",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form.add_argument(
        "--html", metavar="OUT", type=Path, help="write one page for a browser to this new file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    paths = files_below(args.files)
    comparer = Comparer(paths)
    with Progress("fleet") as progress:
        for number, read in enumerate(read_all(paths), 1):
            comparer.take(read)
            progress.show(f"{number:,} of {count(len(paths), 'file')} read")
    fleet = comparer.compared()
    if not fleet.kinds:
        name, why = fleet.left_out[0]
        raise TraceError(f"no file could be read, such as {name}: {why}", "name other files")
    if args.json:
        print_lines(json.dumps(fleet_record(fleet), indent=2).split("\n"))
    elif args.html:
        # Imported late: the rest does without Jinja2.
        from virtrace.fleet.page import fleet_page

        write_new(args.html, "the page", [fleet_page(fleet)])
        print(
            f"wrote {args.html}; like the files, it can contain secrets, and only you can read it"
        )
    else:
        print_lines(fleet_lines(fleet, style_for(sys.stdout)))
    if fleet.left_out:
        sys.stdout.flush()
        name, why = fleet.left_out[0]
        raise IncompleteError(
            f"{count(len(fleet.left_out), 'file')} could not be read, such as {name}: {why}",
            "what is shown of the others is complete",
        )
    return ANSWER_IS_NO if fleet.odd else DONE
