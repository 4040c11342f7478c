"""Entry point: finds the subcommand, and says in one place what went wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from virtrace import __version__
from virtrace.cli import (
    bundle,
    diff,
    doctor,
    explain,
    export,
    import_,
    lab,
    pack,
    recipe,
    record,
    replay,
    rescue,
    show,
)
from virtrace.errors import INTERRUPTED, VirtraceError

# Each module has add_parser(subparsers), which sets run=function(args) -> exit status.
COMMANDS = (
    *(record, show, explain, diff, export, import_, bundle, replay, recipe, doctor, pack, rescue),
    lab,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virtrace",
        description="Trace libvirt from its API down to the QMP text that QEMU answered.",
    )
    parser.add_argument("--version", action="version", version=f"virtrace {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    traced: list[str] = []
    # argparse has no notion of another command's line at the end of its own.
    if words[:1] in (["record"], ["replay"]) and "--" in words:
        end = words.index("--")
        words, traced = words[:end], words[end + 1 :]
    args = build_parser().parse_args(words, argparse.Namespace(traced=traced))
    try:
        status: int = args.run(args)
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
