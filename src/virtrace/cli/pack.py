"""``virtrace pack``: what traces need of debug info, for hosts that have none."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from virtrace import __version__, files
from virtrace.binary import abi, x86_64
from virtrace.binary.debuginfo import fetch
from virtrace.binary.pack import (
    CACHE,
    AtEntry,
    Constant,
    Function,
    InRegister,
    OnStack,
    Pack,
    Place,
    encode_pack,
    file_name,
    load_pack,
)
from virtrace.binary.reader import Binary, debug_file, read_by_child
from virtrace.cli.arguments import add_json
from virtrace.errors import DONE, TargetError, UsageError
from virtrace.plan.debug_info import described
from virtrace.printing import print_lines
from virtrace.recipe import catalogue
from virtrace.recipe.model import Recipe
from virtrace.record.progress import Progress

if TYPE_CHECKING:
    from virtrace.cli.results import MadePack, PackMakeResult, PackShowResult

_ELF_MAGIC = b"\x7fELF"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = subparsers.add_parser(
        "pack",
        description="A symbol pack holds what recipes need of the debug info of one build. A "
        "trace uses the one that it finds beside its recipe or in the cache.",
    )
    actions = pack.add_subparsers(metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="make packs of debug info",
        description="Make packs of debug info: of a binary that has it, of a separate .debug "
        "file, of a binary whose debug info is installed or on a debuginfod server, or of all "
        "in a folder (a debug package, unpacked).",
    )
    make.add_argument("sources", metavar="SOURCE", type=Path, nargs="+")
    make.add_argument(
        "--recipe",
        metavar="RECIPE",
        action="append",
        help="for this recipe's functions (default: those of every shipped recipe)",
    )
    make.add_argument(
        "--for",
        metavar="FILE",
        dest="other",
        type=Path,
        help="for this other build of the same code: SOURCE's code must be the same, byte by byte",
    )
    make.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, help="folder (default: the user's cache)"
    )
    add_json(make, "pack make")
    make.set_defaults(run=_make)
    show = actions.add_parser("show", help="say what a pack holds")
    show.add_argument("file", metavar="PACK", type=Path)
    add_json(show, "pack show")
    show.set_defaults(run=_show)


def _make(args: argparse.Namespace) -> int:
    recipes = [catalogue.find_recipe(name) for name in args.recipe or catalogue.shipped()]
    files = [file for source in args.sources for file in _files(source)]
    if args.other is not None and len(files) != 1:
        raise UsageError("--for takes one SOURCE", "name the one binary with the same code")
    made = [_make_one(file, recipes, args.other, args.output) for file in files]
    result: PackMakeResult = {"packs": [pack for pack in made if pack is not None]}
    args.result = result
    if not result["packs"]:
        raise TargetError(
            f"no function of {', '.join(recipe.name for recipe in recipes)} is in the debug info",
            "name the debug info of libvirt.so.0 or libvirt_driver_qemu.so, or other recipes",
        )
    return DONE


def _files(source: Path) -> Iterator[Path]:
    """The file itself; of a folder every file in it that has debug info."""
    if not source.is_dir():
        yield source
        return
    for folder, _, names in os.walk(source):
        for file in sorted(Path(folder, name) for name in names):
            if file.is_file() and not file.is_symlink() and _has_debug_info(file):
                yield file


def _has_debug_info(file: Path) -> bool:
    with files.open_regular(file) as stream:
        if stream.read(len(_ELF_MAGIC)) != _ELF_MAGIC:
            return False
    return read_by_child(file).has_debug_info


def _make_one(
    file: Path, recipes: Sequence[Recipe], other: Path | None, output: Path | None
) -> MadePack | None:
    """Make a pack. Returns None if the file has none of the functions."""
    elf = read_by_child(file)
    if not abi.convention_of_file(elf).is_known:
        raise TargetError(
            f"{file} is code for {elf.machine}, and packs are made for {x86_64.ABI.machine} only",
            "on other processors install the debug info itself",
        )
    target = elf if other is None else read_by_child(other)
    if other is not None:
        _require_same_code(elf, target)
    if target.build_id is None:
        raise TargetError(
            f"{target.path} has no build-id, by which a pack is found", "link it with --build-id"
        )
    debug = _debug_info(elf)
    with Progress(debug.name) as progress:
        functions, structs = described(debug, recipes, abi.convention_of_file(elf), progress.show)
    if not functions:
        print(f"{debug}: no function of the recipes")
        return None
    build_id = read_by_child(debug).build_id
    origin = f"{debug.name}, build-id {build_id}, by virtrace {__version__}"
    data = encode_pack(target.build_id, target.machine, origin, functions, structs)
    place = _keep(output, file_name(target.build_id), data)
    made = json.loads(data)
    counted = ", ".join(f"{len(made[kind])} {kind}" for kind in ("functions", "structs"))
    print(f"{place}: {counted}, {len(data)} bytes")
    return {
        "file": place,
        "functions": len(made["functions"]),
        "structs": len(made["structs"]),
    }


def _require_same_code(elf: Binary, other: Binary) -> None:
    code, others = elf.code_digests(), other.code_digests()
    if not code:
        raise TargetError(
            f"{elf.path} has no code to compare with that of {other.path}",
            "name the binary that belongs to it: its debug info is found by itself",
        )
    for name in sorted({*code, *others}):
        if code.get(name) != others.get(name):
            raise TargetError(
                f"{elf.path} and {other.path} are not the same code: they differ in {name}",
                f"make the pack of the debug info of {other.path} itself",
            )


def _debug_info(elf: Binary) -> Path:
    """The file that has the DWARF of this one: itself, one that is installed, or a server's."""
    if elf.has_debug_info:
        return elf.path
    installed = debug_file(elf.build_id, elf.debuglink, elf.path.resolve())
    if installed is not None:
        return installed.path
    if elf.build_id is not None:
        fetched = fetch(elf.build_id, str(elf.path))
        if fetched is not None:
            return fetched
    raise TargetError(
        f"{elf.path} has no debug info, and none of it is installed",
        "name its separate .debug file or a folder with it, or set DEBUGINFOD_URLS",
    )


def _keep(output: Path | None, name: str, data: bytes) -> str:
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            with files.open_folder(output.resolve()) as folder:
                files.replace(folder, name, data)
            return str(output / name)
        with files.cache_folder(CACHE) as folder:
            files.replace(folder, name, data)
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    except OSError as error:
        raise UsageError(
            f"the pack cannot be written: {error.strerror or error}", "name a folder with -o"
        ) from error


def _show(args: argparse.Namespace) -> int:
    pack = load_pack(args.file)
    result: PackShowResult = {
        "build_id": pack.build_id,
        "machine": pack.machine,
        "origin": pack.origin,
        "functions": sorted(pack.functions),
    }
    args.result = result
    print_lines(_described(pack))
    return DONE


def _described(pack: Pack) -> Iterator[str]:
    yield f"for      build-id {pack.build_id}, {pack.machine}"
    yield f"made of  {pack.origin}"
    for name, function in sorted(pack.functions.items()):
        yield from _described_function(name, function)


def _described_function(name: str, function: Function) -> Iterator[str]:
    if not function.bodies:
        yield f"{name}: only inlined, into {', '.join(function.inlined_into)}"
    for body in function.bodies:
        lines = f", {len(body.lines)} lines of {body.file}" if body.lines else ""
        yield f"{name} +{body.entry:#x}{lines}"
        for argument, (_, place) in body.arguments.items():
            yield f"  {argument:<16} {_place(place)}"


def _place(place: Place) -> str:
    if isinstance(place, InRegister):
        return place.name
    if isinstance(place, AtEntry):
        return f"{place.name} at the entry"
    if isinstance(place, OnStack):
        return f"on the stack, {place.offset} bytes from the caller's frame"
    if isinstance(place, Constant):
        return f"always {place.value}"
    return f"unavailable: {place.why}"
