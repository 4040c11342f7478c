"""What recipes resolve to by debug info that pyelftools reads: the same as by GDB's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import SECONDS
from tests.support.paths import REPOSITORY
from tests.support.recipes import FOR_LIBVIRT
from virtrace.binary import abi, pack
from virtrace.binary.pack import AtEntry, Constant, InRegister, OnStack, Place
from virtrace.errors import Unavailable
from virtrace.image.model import Program
from virtrace.lab import debug_build
from virtrace.plan.arguments import ByPlaces
from virtrace.plan.debug_info import described
from virtrace.plan.file import type_record
from virtrace.plan.infer import infer
from virtrace.plan.model import AnySite, LineSite, Plan, all_captures, possible
from virtrace.plan.resolve import resolve
from virtrace.plan.walk import pruned
from virtrace.plan.witness import Packs
from virtrace.recipe import catalogue
from virtrace.recipe.model import Recipe
from virtrace.targets.processes import installed

pytestmark = pytest.mark.matrix

GDB = ["gdb", "-nx", "-nh", "-q", "-batch", "-iex", "set auto-load no"]
WRITES = Path(__file__).with_name("gdb_resolution.py")


@pytest.fixture(scope="module")
def driver() -> Path:
    return debug_build.ensure_built(print) / "libvirt_driver_qemu.so"


@pytest.fixture(scope="module")
def gdbs(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By recipe: its probes, as GDB resolves them."""
    output = tmp_path_factory.mktemp("gdb") / "resolution.json"
    variables = {"VIRTRACE_TEST_DRIVER": str(driver), "VIRTRACE_TEST_OUTPUT": str(output)}
    scripts = ["-x", str(REPOSITORY / "gdb_scripts/virtrace.py"), "-x", str(WRITES)]
    done = subprocess.run(
        [*GDB, *scripts],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert output.exists(), done.stderr
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def ours(driver: Path) -> Mapping[str, Plan]:
    """By recipe, each from the debug info that is read for it alone."""
    program = installed(driver)
    return {name: resolved(catalogue.find_recipe(name), program) for name in FOR_LIBVIRT}


def resolved(recipe: Recipe, program: Program) -> Plan:
    packs = {}
    for name in recipe.modules:
        module = program.module(name)
        if module is not None:
            convention = abi.convention_of_file(module.elf)
            functions, structs = described(module.file, [recipe], convention, lambda _: None)
            packs[name] = pack.pack_in_memory(module.elf, name, functions, structs)
    return resolve(recipe, program, [Packs("dwarf", packs)], infer(recipe, program))


def shape(ctype: Any) -> Any:
    """A type's record without what says nothing of its values.

    GDB names a struct by its tag, and knows the size of what no capture reads.
    """
    if isinstance(ctype, dict):
        if ctype.get("is") == "Opaque":
            return "Opaque"
        hidden = {"name"} if ctype.get("is") == "Struct" else set()
        return {key: shape(value) for key, value in ctype.items() if key not in hidden}
    return [shape(one) for one in ctype] if isinstance(ctype, (list, tuple)) else ctype


def shapes(site: AnySite) -> Any:
    return {
        name: "unavailable"
        if isinstance(capture, Unavailable)
        else {
            start: shape(json.loads(json.dumps(type_record(ctype))))
            for start, ctype in pruned(capture.path, capture.types).items()
        }
        for name, capture in all_captures(site).items()
    }


def gdbs_shapes(site: Any) -> Any:
    return {
        name: "unavailable"
        if "unavailable" in capture
        else {start: shape(ctype) for start, ctype in capture.items()}
        for name, capture in site["captures"].items()
    }


_SYMBOL = re.compile(r"^Symbol (\w+) is ", re.M)
_RANGE = re.compile(r"Range (0x[0-9a-f]+)-(0x[0-9a-f]+): ")


def gdbs_places(scope: str, address: int) -> Iterator[tuple[str, str]]:
    """By the name of each variable in GDB's `info scope`, the innermost first: where it is."""
    _, *parts = _SYMBOL.split(scope)
    for name, text in zip(parts[::2], parts[1::2]):
        if not text.startswith("multi-location"):
            yield name, text
            continue
        found = [*_RANGE.finditer(text)]
        for this, following in zip(found, [*found[1:], None]):
            if int(this[1], 16) <= address < int(this[2], 16):
                yield name, text[this.end() : following.start() if following else None]


def agree(place: Place, text: str, *, at_entry: bool) -> bool:
    """Whether GDB's words mean the place."""
    entry_value = re.search(r"DW_OP(?:_GNU)?_entry_value\s+\d+: DW_OP_reg\d+ \[\$(\w+)\]", text)
    if isinstance(place, InRegister):
        simple = re.search(r"a variable in \$(\w+)", text)
        named = simple or (entry_value if at_entry else None)
        return named is not None and named[1] == place.name
    if isinstance(place, AtEntry):
        return entry_value is not None and entry_value[1] == place.name
    if isinstance(place, OnStack):
        return re.search(rf"DW_OP_fbreg {place.offset}\b", text) is not None
    if isinstance(place, Constant):
        return "constant" in text or re.search(r"DW_OP_(?:lit|const)", text) is not None
    return "optimized out" in text or "complex DWARF" in text or not text


def compared_places(site: AnySite, theirs: Any) -> Iterable[str]:
    """The values that both know the place of, each looked at."""
    if not isinstance(site.arguments, ByPlaces) or not theirs["scope"]:
        return
    at = theirs["base"] + site.addresses[0]
    places: dict[str, str] = {}
    for name, text in gdbs_places(theirs["scope"], at):
        places.setdefault(name, text)
    for start in {start for capture in possible(all_captures(site)) for start in capture.arguments}:
        place = site.arguments.places.get(start)
        if place is not None and start in places:
            at_entry = not isinstance(site, LineSite)
            assert agree(place, places[start], at_entry=at_entry), (site, start, places[start])
            yield start


@pytest.mark.parametrize("name", FOR_LIBVIRT)
def test_both_resolve_the_same(name: str, gdbs: Any, ours: Mapping[str, Plan]) -> None:
    theirs = gdbs[name]
    assert len(ours[name].probes) == len(theirs)
    for probe, other in zip(ours[name].probes, theirs):
        record = json.loads(json.dumps(probe.to_record()))
        sites = other["sites"]
        for key in record.keys() - {"why"}:
            assert record[key] == other[key], (probe.name, key)
        assert (record["why"] is None) == (other["why"] is None), probe.name
        kinds = [(type(site).__name__, [*site.addresses]) for site in probe.sites]
        assert kinds == [(site["kind"], site["addresses"]) for site in sites], probe.name
        for site, its in zip(probe.sites, sites):
            if isinstance(site, LineSite):
                assert [site.source, site.line, site.declared] == its["line"]
                # A variable that is nowhere at a statement is not in a pack.
                known, there = shapes(site), gdbs_shapes(its)
                assert known.keys() == there.keys()
                assert all(known[key] in ("unavailable", there[key]) for key in there), site
            else:
                assert shapes(site) == gdbs_shapes(its), probe.name
            [*compared_places(site, its)]


def test_places_were_compared(gdbs: Any, ours: Mapping[str, Plan]) -> None:
    compared = [
        start
        for name, plan in ours.items()
        for probe, other in zip(plan.probes, gdbs[name])
        for site, its in zip(probe.sites, other["sites"])
        for start in compared_places(site, its)
    ]
    assert len(compared) > 50
