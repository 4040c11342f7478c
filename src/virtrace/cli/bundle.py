"""``virtrace bundle``: one file for a bug report, without what is private; and its check."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from virtrace.bundle import archive, verify
from virtrace.bundle.collect import PAGE, Bundle, make
from virtrace.bundle.files import opened
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.report import REPORT
from virtrace.cli.apart import apart
from virtrace.cli.bundle_facts import gather
from virtrace.errors import ANSWER_IS_NO, DONE, UsageError, typed
from virtrace.report.highlight import Style, paint, safe, style_for
from virtrace.report.lines import copyable, labelled
from virtrace.report.pieces import words
from virtrace.trace.archive import FOLDER, TRACE
from virtrace.trace.reader import TraceStream, require_whole

_MAP_FORMAT = "virtrace-bundle-map"
# After so long a user wants to know that something is going on, in seconds.
_PATIENCE = 1.0


def add_parser(subparsers: Any) -> None:
    kinds = "\n".join(f"  {kind:<9} {about}" for kind, about in KINDS.items())
    parser = subparsers.add_parser(
        "bundle",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Put a trace, its explanation and what maintainers ask for into one file.\n"
        "Names, addresses, paths and secrets become pseudonyms, and the finished file\n"
        "is searched for all of them: where one is found, nothing is written.",
        epilog=f"kinds, each of which --keep releases:\n{kinds}\n\n"
        "Exit status: 0 written, or verified; 1 verified and not whole; 2 nothing written,\n"
        "or no bundle; 4 written, but the trace is incomplete.",
        usage="%(prog)s FILE -o OUT [-p PID] [--backtrace] [--keep KIND]...\n"
        "       %(prog)s FILE --preview [--keep KIND]...\n"
        "       %(prog)s verify BUNDLE",
    )
    parser.add_argument("file", metavar="FILE", nargs="+", help="a trace (.jsonl)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="the bundle; beside it OUT.map.json, what its pseudonyms stand for, for you alone",
    )
    parser.add_argument("-p", "--pid", type=int, help="the daemon, if another than the traced one")
    parser.add_argument(
        "--backtrace",
        action="store_true",
        help="add `thread apply all bt`, for which the daemon stands still",
    )
    parser.add_argument(
        "--keep", metavar="KIND", action="append", default=[], choices=KINDS, help="see below"
    )
    parser.add_argument(
        "--preview", action="store_true", help="write nothing; show what would leave"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.file[0] == "verify" and len(args.file) == 2:
        return apart(args, args.file[1:], partial(_verify, args.file[1]), kind="the bundle")
    if len(args.file) != 1 or args.preview is (args.output is not None):
        raise UsageError(
            "a trace, and either -o OUT.tar.gz or --preview",
            "virtrace bundle FILE -o OUT.tar.gz; virtrace bundle verify BUNDLE",
        )
    output: Path | None = args.output
    map_file = output and output.with_name(output.name.removesuffix(".tar.gz") + ".map.json")
    for path, what in ((output, "the bundle"), (map_file, "the map")):
        if path is not None and path.exists():
            raise archive.exists(path, what)
    with ExitStack() as held, _progress() as step:
        step("reading the trace")
        trace = held.enter_context(TraceStream(args.file[0]))
        if "redacted" in trace.header:
            raise UsageError(
                f"{args.file[0]} is from a bundle already", "name the trace that was recorded"
            )
        step("asking the host")
        facts = gather(trace, args.pid, with_backtrace=args.backtrace)
        bundle = make(trace, facts, args.keep, step)
        step("packing it")
        packed = held.enter_context(TemporaryFile(prefix="virtrace-"))
        archive.pack_into(packed, bundle.files)
        return _keep(args.file[0], trace, bundle, packed, output, map_file)


def _keep(
    path: str,
    trace: TraceStream,
    bundle: Bundle,
    packed: BinaryIO,
    output: Path | None,
    map_file: Path | None,
) -> int:
    """Write it, or show it where there is no output."""
    if output is None or map_file is None:
        for line in _preview(bundle, style_for(sys.stdout)):
            print(line)
        require_whole(trace, path)
        return DONE
    # First the map: without it nobody can ever tell what a pseudonym stands for.
    archive.write(map_file, "the map", _map(bundle))
    try:
        archive.write(output, "the bundle", packed)
    except BaseException:
        map_file.unlink()
        raise
    for line in _written(bundle, output, map_file, output.stat().st_size):
        print(line)
    require_whole(trace, path)
    return DONE


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says what is being done, once it takes long."""
    start, doing = time.monotonic(), "starting"

    def say() -> None:
        passed = time.monotonic() - start
        print(f"[{passed:6.1f} s] {doing}", file=sys.stderr, flush=True)

    def step(what: str) -> None:
        nonlocal doing
        doing = what
        if not timer.is_alive():
            say()

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield step
    finally:
        timer.cancel()


def _map(bundle: Bundle) -> bytes:
    record = {"format": _MAP_FORMAT, "version": 1, "pseudonyms": bundle.names.map()}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def _written(bundle: Bundle, output: Path, map_file: Path, size: int) -> Iterator[str]:
    style = style_for(sys.stdout)
    yield f"wrote {output} ({size / 1e6:.2f} MB), to be attached to a report"
    replaced = {kind: len(names) for kind, names in bundle.names.map().items()}
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(replaced.items()))
    yield from labelled("hidden", words(told or "nothing was private"), style)
    if bundle.names.keep:
        yield from labelled("released", words(", ".join(sorted(bundle.names.keep))), style)
    absent = json.loads(bundle.files[archive.MANIFEST])["absent"]
    for why in dict.fromkeys(each["why"] for each in absent):
        names = ", ".join(each["name"] for each in absent if each["why"] == why)
        yield from labelled("without", words(f"{names}: {why}"), style)
    yield copyable("map", str(map_file), style)
    yield from labelled("", words("what the pseudonyms stand for; keep it to yourself"), style)
    report = f"{FOLDER}{REPORT}"
    yield copyable("read it", f"tar -xOzf {typed(output)} {report}", style)


def _preview(bundle: Bundle, style: Style) -> Iterator[str]:
    """Every file as text, its pseudonyms marked; but for the page, which is made of the trace."""
    for name in sorted(bundle.files, key=lambda name: (name == TRACE, name)):
        content = opened(bundle.files, name)
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        yield paint(f"==> {name} ({size:,} bytes) <==", "bold", style)
        if name == PAGE:
            yield "the trace, for a browser"
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


def _verify(path: str, files: Sequence[BinaryIO], _: int) -> int:
    problems = verify.problems(path, files[0])
    for problem in problems:
        print(f"not as it should be: {problem}")
    if problems:
        return ANSWER_IS_NO
    print(f"{path}: every file is there, as it was written")
    return DONE
