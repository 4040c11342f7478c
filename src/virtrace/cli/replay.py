"""``virtrace replay``: trace a daemon of this host by the recipe of a trace."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

from virtrace import engines
from virtrace.analysis.explain.registry import load_explainers
from virtrace.cli import diff
from virtrace.cli.arguments import add_daemon, add_json
from virtrace.cli.record import add_limits, chosen_pid, limits_of, option, recorded
from virtrace.cli.without_rights import header_by_child, run_in_child
from virtrace.errors import DONE, INTERRUPTED, UsageError
from virtrace.recipe import catalogue, loader, selection
from virtrace.recipe.model import Recipe
from virtrace.recipe.selection import Selection
from virtrace.record.job import Job
from virtrace.trace.format import Event, Header
from virtrace.trace.format import Selection as SelectionRecord
from virtrace.trace.reader import TraceStream
from virtrace.trace.writer import default_path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "replay",
        description="Trace a daemon of this host with the recipe in FILE, with the filters and "
        "limits of that trace, and compare the new trace with it. The command that was traced is "
        "run again only after you agree. If COMMAND is given, it is run instead.",
        epilog="Exit status: that of record; if everything was traced, that of diff.",
        usage="%(prog)s FILE [-p PID | --process NAME] [-o OUT] [--where KEY=VALUE]... "
        "[--max-stop-ms N] [--max-load PERCENT] [--max-events N] [--max-bytes N] [--json] "
        "[-- COMMAND...]",
    )
    parser.add_argument(
        "file", metavar="FILE", help="a trace (.jsonl), a bundle or a recipe (.yaml)"
    )
    add_daemon(parser, "default: the only one that runs")
    parser.add_argument("-o", "--output", metavar="OUT", help="the new trace, a new file")
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="instead of the value that the trace had for KEY, for example domain=other",
    )
    add_limits(parser)
    add_json(parser, "replay")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.file in catalogue.shipped() or args.file.endswith((".yaml", ".yml")):
        recipe = catalogue.find_recipe(args.file)
        selected = selection.parse_selection(recipe, args.where, None, None)
        packs = [catalogue.file_of(args.file).parent]
        return _record(args, recipe, selected, args.traced, packs)[0]
    return _again(header_by_child(args.file), args)


def _record(
    args: argparse.Namespace,
    recipe: Recipe,
    selected: Selection,
    command: Sequence[str],
    packs: Sequence[Path] = (),
) -> tuple[int, Path]:
    """Return the exit status and the new trace."""
    pid = chosen_pid(args, recipe.required_modules)
    output = Path(args.output or default_path(recipe.name, pid))
    limits = limits_of(args)
    job = Job(recipe, pid, output, selected, limits, command=command, packs=packs)
    given = {name: option(args, name) for name in selection.LIMITS}
    try:
        return recorded(args, job, engines.chosen(engines.AUTO), given), output
    finally:
        if args.result is not None:
            args.result["equal"] = None


def _again(header: Header, args: argparse.Namespace) -> int:
    everything: SelectionRecord = {"where": {}, "calls": None, "seconds": None}
    was = header.get("selection", everything)
    # A stranger's, which the loader checks.
    recipe = loader.from_document(header["recipe"], f"the recipe in {args.file}")
    given = selection.filters(recipe, args.where)
    _require_names(header, given)
    # By key: the old value of a filter, where it is replaced.
    old_values = {key: str(was["where"][key]) for key in given if key in was["where"]}
    new_names = {value: given[key] for key, value in old_values.items()}
    command = args.traced or (
        [] if args.outcome else _agreed(_renamed(header.get("command"), new_names))
    )
    where = [f"{key}={value}" for key, value in {**was["where"], **given}.items()]
    selected = selection.parse_selection(recipe, where, _text(was["calls"]), _text(was["seconds"]))
    status, output = _record(args, recipe, selected, command)
    if status not in (DONE, INTERRUPTED):
        return status
    print()
    paths = args.file, str(output)

    def compared(spill: IO[bytes], files: Sequence[BinaryIO], _: int) -> int:
        with TraceStream(paths[0], files[0]) as old, TraceStream(paths[1], files[1]) as new:
            as_if = _AsIf(old, old_values, given)
            found = diff.compared(as_if, new, paths, spill)
            if args.result is not None:
                args.result["equal"] = found.equal
            return diff.report(found, paths)

    with TemporaryFile(prefix="virtrace-") as spill:
        differs = run_in_child(args, paths, partial(compared, spill), prepare=load_explainers)
    return status or differs


def _require_names(header: Header, given: Mapping[str, str]) -> None:
    """Raises: UsageError if a bundle's filters are pseudonyms that nothing replaces here."""
    was = header["selection"]["where"] if "redacted" in header and "selection" in header else {}
    missing = [key for key in was if key not in given]
    if missing:
        asked = ", ".join(f"{key}={was[key]}" for key in missing)
        raise UsageError(
            f"the bundle was recorded with {asked}, which may be a pseudonym",
            f"say what it is here: {' '.join(f'--where {key}={key.upper()}' for key in missing)}",
        )


class _AsIf:
    """A trace in which the values of filters are replaced, to compare it with the new one."""

    def __init__(self, trace: TraceStream, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        self._trace = trace
        self._old = old
        self._new = new

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trace, name)

    def __iter__(self) -> Iterator[Event]:
        for event in self._trace:
            values = {
                key: self._new[key] if key in self._old and str(value) == self._old[key] else value
                for key, value in event.values.items()
            }
            yield event._replace(values=values)


def _renamed(command: object, names: Mapping[str, str]) -> list[str]:
    """Split the command; words that are a filter's old value are replaced by the new one."""
    if not isinstance(command, str):
        return []
    try:
        return [names.get(word, word) for word in shlex.split(command)]
    except ValueError:
        return []


def _agreed(command: list[str]) -> list[str]:
    """Return the command if the user agrees: a stranger may have written it into the file."""
    if not command or not sys.stdin.isatty():
        return []
    print("the traced command was:")
    print(f"  {shlex.join(command)}")
    answer = input("run it again, here and as this user? [y/N] ")
    return command if answer.strip().lower() in ("y", "yes") else []


def _text(number: object) -> str | None:
    return None if number is None else str(number)
