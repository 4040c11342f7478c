"""Imports run one way, and only ``virtrace.inferior`` knows GDB; read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtrace

PACKAGE = Path(virtrace.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# A part imports itself, and what is named here. virtrace itself holds the version alone.
ALLOWED = {
    "": set(),
    "errors": set(),
    "markup": set(),
    "resources": set(),
    "documents": {"resources"},
    "wording": set(),
    "printing": {"errors"},
    "detached": set(),
    "confined": {"detached", "errors"},
    "files": {"confined", "errors"},
    "trace": {"errors", "files"},
    "recipe": {"resources", "documents", "errors", "files", "trace"},
    "binary": {"resources", "documents", "errors", "confined", "files", "recipe"},
    "image": {"errors", "confined", "files", "trace", "binary"},
    "targets": {
        *("resources", "documents", "errors", "files", "markup", "recipe", "trace", "binary"),
        "image",
    },
    "snapshot": {
        "documents",
        "wording",
        "errors",
        "files",
        "markup",
        "trace",
        "binary",
        "image",
        "targets",
    },
    "guard": {"detached", "errors", "files", "binary", "image"},
    "plan": {"errors", "recipe", "trace", "binary", "image", "targets"},
    "engine": {"errors", "recipe", "trace", "binary", "image", "plan"},
    "analysis": {"resources", "documents", "wording", "errors", "markup", "trace"},
    "report": {"resources", "wording", "errors", "printing", "trace", "analysis", "snapshot"},
    "host": {"errors", "detached", "files", "markup", "trace", "image", "analysis"},
    "bundle": {
        *("resources", "documents"),
        *("errors", "markup", "recipe", "trace", "targets", "snapshot", "analysis", "report"),
        *("host", "wording"),
    },
    "lab": {"errors"},
    "record": {
        *("errors", "printing", "recipe", "trace", "binary", "image", "targets", "engine"),
        *("plan", "analysis", "report"),
    },
    "engines": {
        *("resources", "printing"),
        *("errors", "recipe", "trace", "binary", "image", "targets", "engine", "plan", "record"),
    },
    "inferior": {
        *("errors", "printing", "files", "recipe", "trace", "binary", "image", "targets"),
        *("engine", "plan", "guard", "detached", "analysis", "report", "record", "snapshot"),
        "wording",
    },
    "checks": {"errors", "recipe", "trace", "binary", "image", "targets", "record", "engines"},
    "fleet": {
        *("confined", "errors", "files", "trace", "snapshot", "analysis", "report", "checks"),
        "wording",
    },
    # It reaches inferior only by starting GDB.
    "cli": {
        *("errors", "printing", "files", "recipe", "trace", "binary", "image", "targets"),
        *("engine", "plan", "guard", "analysis", "report", "host", "bundle", "confined", "lab"),
        *("record", "engines", "checks", "snapshot", "wording", "fleet"),
    },
}


def imported(file: Path) -> Iterator[str]:
    """Absolute names; of ``from a import b`` also ``a.b``, which may be a module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """The part of virtrace that an imported name belongs to; "" for virtrace itself."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in ALLOWED else ""


def name_of(file: Path) -> str:
    names = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("virtrace", *names)).replace(".__init__", "")


def parts_used(file: Path) -> set[str]:
    """The parts of virtrace that a module imports."""
    return {part_of(name) for name in imported(file) if name.split(".")[0] == "virtrace"}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    own = part_of(name_of(file))
    assert parts_used(file) <= ALLOWED[own] | {own, ""}


@pytest.mark.parametrize("part", ALLOWED)
def test_every_allowed_import_is_used(part: str) -> None:
    files = [file for file in MODULES if part_of(name_of(file)) == part]
    assert ALLOWED[part] <= set().union(*map(parts_used, files))


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_the_engine_imports_gdb(file: Path) -> None:
    if file.parent.name != "inferior":
        assert "gdb" not in {name.split(".")[0] for name in imported(file)}


def test_every_part_has_its_rule() -> None:
    parts = {child.stem for child in PACKAGE.iterdir() if child.suffix == ".py" or child.is_dir()}
    assert parts - {"__init__", "__pycache__", "recipes", "gdb_scripts"} <= set(ALLOWED)


def test_what_says_that_it_needs_no_gdb_needs_none() -> None:
    free = [file for file in MODULES if "not need gdb" in file.read_text(encoding="utf-8")]
    assert {file.stem for file in free} >= {"answers", "capture", "tracer"}
    by_name = {name_of(file): file for file in MODULES}
    for start in free:
        seen: set[str] = set()
        waiting = [name_of(start)]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in by_name:
                continue
            seen.add(name)
            names = set(imported(by_name[name]))
            assert "gdb" not in names, f"{start.name} needs {name}, which imports gdb"
            waiting += names
