"""``virtrace recipe``: which recipes there are, and what one would find on a daemon."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virtrace import wording
from virtrace.cli.arguments import add_daemon, add_json
from virtrace.errors import ANSWER_IS_NO, DONE, NOT_TRACED, UsageError, typed
from virtrace.files import write_new
from virtrace.printing import print_lines
from virtrace.recipe import catalogue
from virtrace.recipe.loader import dumps, read
from virtrace.report import text
from virtrace.report.highlight import Style, style_for
from virtrace.report.lines import fold
from virtrace.report.pieces import attached, not_found_and_needed, words
from virtrace.trace.format import Header

if TYPE_CHECKING:
    from virtrace.cli.results import (
        RecipeCheckResult,
        RecipeCompileResult,
        RecipeListResult,
        RecipeNewResult,
        RecipeShowResult,
    )
    from virtrace.image.model import Program


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recipe = subparsers.add_parser(
        "recipe",
        description="A recipe says what to trace; docs/recipes.md has the format.",
    )
    actions = recipe.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the shipped recipes, a line each")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="print a recipe's file, as a start for one of your own")
    show.set_defaults(run=_show)
    checking = actions.add_parser(
        "check",
        help="read a recipe, and say what it would find on a daemon",
        description="Read a recipe and say what is wrong with it. With a daemon, say what each of "
        "its probes and values would resolve to there; the daemon is not stopped.",
        epilog="Exit status: 0 sound, 1 a probe that is not optional was not found, 2 not a "
        "recipe, 3 the daemon cannot be traced.",
    )
    checking.set_defaults(run=_check)
    for action in (show, checking):
        action.add_argument("recipe", metavar="RECIPE", help="a shipped recipe, or a file")
    new = actions.add_parser(
        "new",
        help="write a recipe for a function of libvirt's API",
        description="Write a recipe for a function of libvirt's API, with the driver's method and "
        "the functions that it calls, as found in the daemon's files. The daemon is not stopped. "
        "Prune the recipe, and see what it finds: virtrace recipe check FILE.",
    )
    new.set_defaults(run=_new)
    new.add_argument("function", metavar="FUNCTION", help="such as virDomainGetBlockInfo")
    new.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write to this new file instead of standard output",
    )
    compiling = actions.add_parser(
        "compile",
        help="write a script for a host where nothing may be installed",
        description="Write a script that traces by a recipe with nothing but Python and the "
        "kernel, and only files of the same build. What it writes becomes a trace by "
        "`virtrace import`.",
    )
    compiling.set_defaults(run=_compile)
    compiling.add_argument("recipe", metavar="RECIPE", help="a shipped recipe, or a file")
    compiling.add_argument("--to", choices=["python"], required=True, help="what runs it")
    compiling.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="must not exist"
    )
    only = "default: the only one that runs"
    for action, default in ((checking, ""), (new, only), (compiling, only)):
        add_daemon(action, default, files=True)
    for name, action in actions.choices.items():
        add_json(action, f"recipe {name}")


def _list(args: argparse.Namespace) -> int:
    recipes = [catalogue.find_recipe(name) for name in catalogue.shipped()]
    result: RecipeListResult = {
        "recipes": [{"name": recipe.name, "summary": recipe.summary} for recipe in recipes]
    }
    args.result = result
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.summary}")
    return DONE


def _show(args: argparse.Namespace) -> int:
    recipe = catalogue.find_recipe(args.recipe)
    result: RecipeShowResult = {"recipe": dict(recipe.raw)}
    args.result = result
    text = read(catalogue.file_of(args.recipe)).decode()
    print_lines(text.removesuffix("\n").split("\n"))
    if recipe.used:
        points = dumps({"points": recipe.raw["points"][: recipe.used]}).decode()
        print_lines(["", "# The points of the fragments that it uses:"])
        print_lines(f"# {line}" for line in points.removesuffix("\n").split("\n"))
    return DONE


def _check(args: argparse.Namespace) -> int:
    recipe = catalogue.find_recipe(args.recipe)
    result: RecipeCheckResult = {
        "name": recipe.name,
        "spans": len({span.name for span in recipe.spans}),
        "points": len({point.name for point in recipe.points}),
        "program": None,
        "levels": None,
        "missing": [],
    }
    args.result = result
    if args.pid is None and args.process is None and args.against is None:
        spans = wording.count(result["spans"], "span")
        points = wording.count(result["points"], "point")
        more = "with -p PID or --against BINARY: what they find there"
        print(f"{recipe.name} is sound: {spans}, {points}; {more}")
        return DONE
    # Not above: to read a recipe takes less time than these imports.
    from virtrace.engines.uprobes.coroutines import without_return_probes
    from virtrace.record.debug_info import fetch_debug_files
    from virtrace.record.header import NO_ENGINE, header_record, needed_but_missing
    from virtrace.record.resolution import resolve_without_gdb

    daemon_part = recipe.part(recipe.of[0])
    process = _process(args, daemon_part.required_modules)
    if len(recipe.of) > 1:
        is_daemon = process.module(daemon_part.modules[0]) is not None
        recipe = daemon_part if is_daemon else recipe.part(recipe.of[1])
    folder = catalogue.file_of(args.recipe).parent
    plan = resolve_without_gdb(recipe, process, fetch_debug_files(process, recipe), [folder])
    plan = without_return_probes(process, plan)
    header = header_record(recipe, process, plan, NO_ENGINE, time.monotonic_ns())
    missing = needed_but_missing(recipe, header)
    result["program"] = header["target"]["program"]
    result["levels"] = {probe["name"]: probe["level"] for probe in header["probes"]}
    result["missing"] = [*missing]
    print_lines(_found(header, missing, style_for(sys.stdout)))
    return ANSWER_IS_NO if missing else DONE


def _new(args: argparse.Namespace) -> int:
    from virtrace.cli import new_recipe

    text = new_recipe.new_recipe(args.function, _process(args))
    result: RecipeNewResult = {"file": str(args.output) if args.output else None, "text": text}
    args.result = result
    if args.output is None:
        print_lines(text.removesuffix("\n").split("\n"))
        return DONE
    write_new(args.output, "the recipe", [text])
    pid = f" -p {args.pid}" if args.pid is not None else ""
    print(f"{args.output}: prune it, then: virtrace recipe check {typed(args.output)}{pid}")
    return DONE


def _compile(args: argparse.Namespace) -> int:
    from virtrace.engines.uprobes.compile import script
    from virtrace.engines.uprobes.run import resolve
    from virtrace.record.debug_info import fetch_debug_files
    from virtrace.record.header import needed_but_missing

    recipe = catalogue.find_recipe(args.recipe)
    if recipe.is_for_kernel:
        raise UsageError(
            f"{recipe.name} has a condition or a stack, which a compiled script does not record",
            f"virtrace record {recipe.name}",
        )
    process = _process(args, recipe.required_modules)
    packs = catalogue.file_of(args.recipe).parent
    resolved = resolve(recipe, process, fetch_debug_files(process, recipe), [packs])
    write_new(args.output, "the script", script(resolved, recipe.name, process))
    missing = needed_but_missing(recipe, resolved.header)
    result: RecipeCompileResult = {"file": str(args.output), "missing": [*missing]}
    args.result = result
    print_lines(text.lacking(missing, style_for(sys.stdout)))
    command = f"python3 {typed(args.output.name)} PID OUTPUT"
    print(f"{args.output}: as root, on the daemon's host: {command}")
    print("then, here or there: virtrace import OUTPUT -o TRACE")
    return NOT_TRACED if missing else DONE


def _process(args: argparse.Namespace, modules: Collection[str] = ()) -> Program:
    from virtrace.cli.record import chosen_pid
    from virtrace.targets.processes import check_traceable, installed

    if args.against is not None:
        return installed(args.against)
    return check_traceable(chosen_pid(args, modules))


def _found(header: Header, missing: Sequence[str], style: Style) -> Iterator[str]:
    if missing:
        verdict = not_found_and_needed(missing)
    else:
        verdict = words("every probe that is not optional was found", "bold")
    yield from fold([(f"{header['recipe']['name']}:", "bold"), *verdict], style)
    yield from fold(attached(header), style)
    yield from text.levels(header, style)
