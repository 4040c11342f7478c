"""``virtrace bundle``: one file for a bug report, without what is private; and its check."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, cast

from virtrace.bundle import archive, verify
from virtrace.bundle.collect import PAGE, Bundle, make
from virtrace.bundle.files import opened
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.report import REPORT
from virtrace.cli.arguments import add_json
from virtrace.cli.progress import steps
from virtrace.cli.without_rights import run_in_child
from virtrace.engines.gdb.launch import backtrace
from virtrace.errors import ANSWER_IS_NO, DONE, UsageError, typed
from virtrace.files import exists, open_input, write_new
from virtrace.host.daemon import gather, gather_beside
from virtrace.host.facts import HostFacts
from virtrace.image.process import inspect
from virtrace.report.highlight import Style, paint, safe, style_for
from virtrace.report.lines import copyable, labelled
from virtrace.report.pieces import words
from virtrace.snapshot.document import snapshot_of
from virtrace.snapshot.format import Snapshot, is_snapshot, read_snapshot
from virtrace.snapshot.take import take
from virtrace.targets.processes import require_target
from virtrace.trace.bundle_reader import FOLDER, TRACE
from virtrace.trace.format import Header, Record
from virtrace.trace.reader import TraceStream, require_whole

if TYPE_CHECKING:
    from virtrace.cli.results import Absent, BundleMakeResult, BundleVerifyResult

_MAP_FORMAT = "virtrace-bundle-map"
_PIECE = 1 << 20
# Seconds until progress is shown.
_PATIENCE = 1.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bundle",
        default_action="make",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Put a trace or a snapshot, its explanation and what maintainers ask for into\n"
        "one file without private data, or check such a file.",
        usage="%(prog)s [make] FILE -o OUT [-p PID] [--snapshot] [--backtrace] [--keep KIND]...\n"
        "       %(prog)s [make] FILE --preview [--keep KIND]...\n"
        "       %(prog)s verify BUNDLE",
    )
    # Or they would take the usage above for the name of the program.
    actions = parser.add_subparsers(metavar="ACTION", required=True, prog=parser.prog)
    kinds = "\n".join(f"  {kind:<9} {about}" for kind, about in KINDS.items())
    making = actions.add_parser(
        "make",
        help="make a bundle; `make` may be left out",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Names, addresses, paths and secrets become pseudonyms, and the finished file\n"
        "is searched for all of them: if one is found, nothing is written.",
        epilog=f"kinds, which --keep leaves as they are:\n{kinds}\n\n"
        "Exit status: 0 written; 2 nothing written; 4 written, but the trace is incomplete.",
    )
    making.add_argument("file", metavar="FILE", help="a trace (.jsonl) or a snapshot")
    output = making.add_mutually_exclusive_group(required=True)
    output.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="the bundle; beside it OUT.map.json, what its pseudonyms stand for, for you alone",
    )
    output.add_argument(
        "--preview", action="store_true", help="write nothing; show what the bundle would contain"
    )
    making.add_argument("-p", "--pid", type=int, help="the daemon, if not the one that was traced")
    making.add_argument(
        "--snapshot",
        action="store_true",
        help="with a trace: add a snapshot of the daemon, which is not stopped for it",
    )
    making.add_argument(
        "--backtrace",
        action="store_true",
        help="add `thread apply all bt`, for which the daemon is stopped",
    )
    making.add_argument(
        "--keep", metavar="KIND", action="append", default=[], choices=KINDS, help="see below"
    )
    add_json(making, "bundle make")
    making.set_defaults(run=run)
    verifying = actions.add_parser(
        "verify",
        help="check a bundle",
        description="Check that a bundle holds what its manifest lists, unchanged.",
        epilog="Exit status: 0 whole; 1 not whole; 2 not a bundle.",
    )
    verifying.add_argument("file", metavar="BUNDLE", help="a bundle (.tar.gz)")
    add_json(verifying, "bundle verify")
    verifying.set_defaults(run=_run_verify)


def run(args: argparse.Namespace) -> int:
    output: Path | None = args.output
    map_file = output and output.with_name(output.name.removesuffix(".tar.gz") + ".map.json")
    for path, what in ((output, "the bundle"), (map_file, "the map")):
        if path is not None and path.exists():
            raise exists(path, what)
    with ExitStack() as resources:
        step = resources.enter_context(steps(_PATIENCE, sys.stderr))
        step("reading the file")
        file = resources.enter_context(open_input(args.file))
        trace = None
        if is_snapshot(file, args.file):
            facts = _facts_beside(args, read_snapshot(file, args.file))
        else:
            trace = resources.enter_context(TraceStream(args.file, file))
            _require_original(args.file, trace.header)
            step("asking the host")
            facts = gather(
                trace,
                args.pid,
                backtrace if args.backtrace else None,
                _snapshot if args.snapshot else None,
            )
        bundle = make(trace, facts, args.keep, step)
        step("packing it")
        packed = resources.enter_context(TemporaryFile(prefix="virtrace-"))
        archive.pack_into(packed, bundle.files)
        _keep(bundle, packed, output, map_file)
        result: BundleMakeResult = {
            "file": str(output) if output else None,
            "map": str(map_file) if map_file else None,
            "hidden": _hidden(bundle),
            "released": sorted(bundle.names.keep),
            "absent": _absent(bundle),
        }
        args.result = result
        if trace is not None:
            require_whole(trace, args.file)
    return DONE


def _require_original(path: str, content: Header | Snapshot) -> None:
    if "redacted" in content:
        raise UsageError(f"{path} is from a bundle already", "name the file that was recorded")


def _facts_beside(args: argparse.Namespace, snapshot: Snapshot) -> HostFacts:
    _require_original(args.file, snapshot)
    if args.backtrace or args.snapshot:
        raise UsageError(
            "--backtrace and --snapshot are for the bundle of a trace",
            f"leave them out: {args.file} is a snapshot, and has the stacks",
        )
    return gather_beside(cast("Record", snapshot), args.pid)


def _snapshot(pid: int) -> Record:
    """Take a snapshot of a daemon. Raises: TargetError."""
    process = require_target(inspect(pid))
    return cast("Record", snapshot_of(take(process), process, "process"))


def _run_verify(args: argparse.Namespace) -> int:
    return run_in_child(args, [args.file], partial(_verify, args), kind="the bundle")


def _keep(bundle: Bundle, packed: BinaryIO, output: Path | None, map_file: Path | None) -> None:
    """Write a bundle, or show it if there is no output."""
    if output is None or map_file is None:
        for line in _preview(bundle, style_for(sys.stdout)):
            print(line)
        return
    # First the map: without it nobody can find out what a pseudonym stands for.
    write_new(map_file, "the map", [_map(bundle)])
    try:
        packed.seek(0)
        write_new(output, "the bundle", iter(partial(packed.read, _PIECE), b""))
    except BaseException:
        map_file.unlink()
        raise
    for line in _written(bundle, output, map_file, output.stat().st_size):
        print(line)


def _map(bundle: Bundle) -> bytes:
    record = {"format": _MAP_FORMAT, "version": 1, "pseudonyms": bundle.names.map()}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def _written(bundle: Bundle, output: Path, map_file: Path, size: int) -> Iterator[str]:
    style = style_for(sys.stdout)
    yield f"wrote {output} ({size / 1e6:.2f} MB), to be attached to a report"
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(_hidden(bundle).items()))
    yield from labelled("hidden", words(told or "nothing was private"), style)
    if bundle.names.keep:
        yield from labelled("released", words(", ".join(sorted(bundle.names.keep))), style)
    absent = _absent(bundle)
    for why in dict.fromkeys(each["why"] for each in absent):
        names = ", ".join(each["name"] for each in absent if each["why"] == why)
        yield from labelled("without", words(f"{names}: {why}"), style)
    yield copyable("map", str(map_file), style)
    yield from labelled("", words("what the pseudonyms stand for; keep it to yourself"), style)
    report = f"{FOLDER}{REPORT}"
    yield copyable("read it", f"tar -xOzf {typed(output)} {report}", style)


def _hidden(bundle: Bundle) -> dict[str, int]:
    return {kind: len(names) for kind, names in bundle.names.map().items()}


def _absent(bundle: Bundle) -> list[Absent]:
    absent: list[Absent] = json.loads(bundle.files[archive.MANIFEST])["absent"]
    return absent


def _preview(bundle: Bundle, style: Style) -> Iterator[str]:
    """Every file as text, its pseudonyms marked; but for the page, which is made of the trace."""
    for name in sorted(bundle.files, key=lambda name: (name == TRACE, name)):
        content = opened(bundle.files, name)
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        yield paint(f"==> {name} ({size:,} bytes) <==", "bold", style)
        if name == PAGE:
            yield "the same, for a browser"
            continue
        for line in content:
            parts = bundle.names.marked(line.decode("utf-8", "surrogatepass").rstrip("\n"))
            yield "".join(
                (paint(safe(text, style), "cyan", style) if style.color else f"[[{text}]]")
                if is_pseudonym
                else safe(text, style)
                for text, is_pseudonym in parts
            )
        yield ""


def _verify(args: argparse.Namespace, files: Sequence[BinaryIO], _: int) -> int:
    problems = verify.problems(args.file, files[0])
    result: BundleVerifyResult = {"problems": problems}
    args.result = result
    for problem in problems:
        print(f"not as it should be: {problem}")
    if problems:
        return ANSWER_IS_NO
    print(f"{args.file}: every file is there, as it was written")
    return DONE
