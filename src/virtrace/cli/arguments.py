"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_json(parser: argparse.ArgumentParser, command: str) -> None:
    """Add --json, for a command that sets `args.result`. command: its words."""
    parser.add_argument(
        "--json",
        dest="outcome",
        action="store_const",
        const=command,
        help="print one JSON document of the outcome; all text goes to standard error",
    )


def add_daemon(parser: argparse.ArgumentParser, default: str = "", *, files: bool = False) -> None:
    """Add -p PID and --process NAME, of which at most one may be given.

    default: the daemon without either, for the help.
    files: also add --against BINARY.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-p", "--pid", type=int, help=f"the daemon{default and f'; {default}'}")
    group.add_argument("--process", metavar="NAME", help="the daemon of this name")
    if files:
        group.add_argument(
            "--against",
            metavar="BINARY",
            type=Path,
            help="installed files, without a running daemon: libvirtd, libvirt.so.0 or a driver, "
            "and the others",
        )
