"""Entry point: finds the subcommand, and says in one place what went wrong."""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from virtrace import __version__
from virtrace.errors import INTERRUPTED, VirtraceError

# Each is a module of this package that has add_parser(subparsers), which sets
# run=function(args) -> exit status. It is imported where it is asked for: what a command needs
# can take longer to import than another takes to run.
COMMANDS = {
    "record": "trace a daemon by a recipe",
    "show": "show a trace as call trees",
    "explain": "say where each number came from, and why it surprises",
    "diff": "say what two traces differ in, and why",
    "export": "a trace for other tools: time lines, a table, a picture",
    "import": "make a trace of what a compiled recipe printed",
    "bundle": "one file for a bug report, without what is private; or check one",
    "replay": "trace this host's daemon by the recipe of a trace",
    "recipe": "list, show and check recipes",
    "doctor": "say whether tracing will work here, how deep, and what to do for more",
    "pack": "make a symbol pack: a few KB of debug info for hosts that have none",
    "rescue": "take breakpoints out of a daemon that a killed debugger left there",
    "lab": "a private, real libvirtd with a running guest, to trace",
}


class _Commands:
    """What add_parser of a command is given; adds what `virtrace --help` says of it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        return self._parsers.add_parser(name, help=COMMANDS[name], **settings)


def _module(command: str) -> str:
    return f"virtrace.cli.{command}{'_' if keyword.iskeyword(command) else ''}"


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """command: the one whose options are asked for; None: all of them are."""
    parser = argparse.ArgumentParser(
        prog="virtrace",
        description="Trace libvirt from its API down to the QMP text that QEMU answered.",
    )
    parser.add_argument("--version", action="version", version=f"virtrace {__version__}")
    commands = _Commands(parser)
    for name in COMMANDS:
        if command in (None, name):
            importlib.import_module(_module(name)).add_parser(commands)
        else:
            commands.add_parser(name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    traced: list[str] = []
    # argparse has no notion of another command's line at the end of its own.
    if words[:1] in (["record"], ["replay"]) and "--" in words:
        end = words.index("--")
        words, traced = words[:end], words[end + 1 :]
    handled = _handled if argv is None else None
    args = build_parser(words[0] if words else "").parse_args(
        words, argparse.Namespace(traced=traced, handled=handled)
    )
    return _handled(lambda: args.run(args))


def _handled(work: Callable[[], int]) -> int:
    """Its exit status; what goes wrong is said."""
    try:
        status = work()
        sys.stdout.flush()
        return status
    except VirtraceError as error:
        if os.environ.get("VIRTRACE_DEBUG") == "1":
            raise
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
