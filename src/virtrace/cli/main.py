"""Entry point: runs the subcommand, and prints errors in one place."""

from __future__ import annotations

import argparse
import gc
import importlib
import keyword
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from virtrace import __version__
from virtrace.errors import BAD_INPUT, DONE, INTERRUPTED
from virtrace.printing import fail, gated

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# Each is a module of this package that has add_parser(subparsers), which sets
# run=function(args) -> exit status. It is imported where it is asked for: what a command needs
# can take longer to import than another takes to run.
COMMANDS = {
    "record": "trace a daemon with a recipe",
    "show": "show a trace as call trees",
    "snapshot": "say why a daemon hangs now, without stopping it",
    "explain": "explain what a trace means, and where its numbers came from",
    "diff": "compare two traces: what differs, and why",
    "fleet": "compare what many hosts say: which differ from the others, and in what",
    "export": "convert a trace for other tools: timelines, a table, pictures",
    "import": "make a trace from the output of a compiled recipe",
    "bundle": "make one file for a bug report, without private data; or check one",
    "replay": "trace a daemon of this host with the recipe of a trace",
    "recipe": "list, show, check, generate and compile recipes",
    "doctor": "check whether tracing works here, how much can be seen, and what is missing",
    "pack": "make symbol packs: a few KB of debug info for hosts that have none",
    "rescue": "remove breakpoints that a killed debugger left in a daemon",
    "lab": "run a private, real libvirtd with a guest, to trace",
}


class _Parser(argparse.ArgumentParser):
    """Prints its messages line by line, like all other output."""

    def __init__(self, *, default_action: str | None = None, **settings: Any) -> None:
        """default_action: the action of a command line that names none."""
        super().__init__(**settings)
        self._default_action = default_action
        # As of Python 3.14, which has colours of its own.
        self.color = False

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        for line in message.rstrip("\n").split("\n"):
            print(line, file=file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._default_action and args and args[0] not in (*self._actions_here(), "-h", "--help"):
            args = [self._default_action, *args]
        return super().parse_known_args(args, namespace)

    def _actions_here(self) -> Iterator[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if TYPE_CHECKING:
    _SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    # Not generic at run time.
    _SubParsers = argparse._SubParsersAction


class _Commands(_SubParsers):
    """The commands, each with its line in `virtrace --help`."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        return super().add_parser(name, help=COMMANDS[name], **settings)


def _module(command: str) -> str:
    return f"virtrace.cli.{command}{'_' if keyword.iskeyword(command) else ''}"


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """command: the command whose options are needed; None: those of all."""
    parser = _Parser(
        prog="virtrace",
        description="Trace libvirt from its API down to QEMU's QMP replies.",
    )
    parser.add_argument("--version", action="version", version=f"virtrace {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, action=_Commands)
    for name in COMMANDS:
        if command in (None, name):
            importlib.import_module(_module(name)).add_parser(commands)
        else:
            commands.add_parser(name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    _fill_gaps()
    with gated(sys.stdout, sys.stderr, sys.stdout):
        if argv is None:
            # What a command imports stays until its end: looking for garbage in it takes a tenth
            # of the time of a short command.
            gc.disable()
            return _handled(lambda: _run(sys.argv[1:], _handled))
        return _handled(lambda: _run(argv, None))


def _fill_gaps() -> None:
    """Keep files from taking the place of a closed standard stream; using it still fails."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _handled(work: Callable[[], int]) -> int:
    """Run the work and return its exit status; print errors."""
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        return DONE
    except MemoryError:
        # A child with little of it is known by that.
        raise
    except Exception as error:
        return fail(error)


def _run(line: Sequence[str], handled: Callable[[Callable[[], int]], int] | None) -> int:
    words, traced = list(line), list[str]()
    # argparse has no notion of another command's line at the end of its own.
    if words[:1] in (["record"], ["replay"]) and "--" in words:
        end = words.index("--")
        words, traced = words[:end], words[end + 1 :]
    args = build_parser(words[0] if words else "").parse_args(
        words,
        argparse.Namespace(traced=traced, handled=handled, outcome=None, result=None, error=None),
    )
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    if args.outcome is not None:
        from virtrace.cli import outcome

        return outcome.run(args, _handled)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
