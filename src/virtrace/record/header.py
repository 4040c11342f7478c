"""The header of a trace."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from virtrace import __version__
from virtrace.binary.debuginfo import how_to_trust
from virtrace.image.model import Program
from virtrace.image.process import Process
from virtrace.plan.model import Plan
from virtrace.recipe.model import Recipe
from virtrace.targets import target_of
from virtrace.trace.format import FORMAT, VERSION, Engine, Header, LoadedModule, Target

# Of a header that only says what a trace would have.
NO_ENGINE: Engine = {"name": "none", "version": None}


def header_record(
    recipe: Recipe, program: Program, plan: Plan, engine: Engine, started_ns: int
) -> Header:
    """Make the header of a trace, as far as it is known before the trace begins.

    started_ns: of CLOCK_MONOTONIC.
    """
    return {
        "type": "header",
        "format": FORMAT,
        "version": VERSION,
        "started": datetime.now(timezone.utc).isoformat(),
        "clock": {"source": "CLOCK_MONOTONIC", "start_ns": started_ns},
        "tool": {
            "virtrace": __version__,
            "engine": engine,
            "python": platform.python_version(),
        },
        "target": target_record(recipe, program, plan),
        "host": {
            "machine": platform.machine(),
            "kernel": platform.release(),
            "system": _system_name(),
        },
        "recipe": dict(recipe.raw),
        "probes": [item.to_record() for item in plan.probes],
    }


def target_record(recipe: Recipe, program: Program, plan: Plan) -> Target:
    return {
        "pid": program.pid if isinstance(program, Process) else 0,
        "exe": program.exe,
        "program": target_of(program).to_record(program),
        "modules": list(_modules(recipe, program, plan)),
    }


def needed_but_missing(recipe: Recipe, header: Header) -> Sequence[str]:
    """Return the probes that the recipe is of no use without, and that were not found."""
    missing = {probe["name"] for probe in header["probes"] if probe["level"] == "missing"}
    return [name for name in recipe.needed if name in missing]


def _modules(recipe: Recipe, program: Program, plan: Plan) -> Iterator[LoadedModule]:
    """The modules of the recipe, and what would give their probes more, where they lack any."""
    # Debug info does not help against an exported function that is not exported.
    static = {span.name for span in recipe.spans if span.find or span.prototype is None}
    for name in recipe.modules:
        module = program.module(name)
        if module is None:
            continue
        probes = [probe for probe in plan.probes if probe.module == name]
        known = any(probe.level in ("dwarf", "pack") for probe in probes)
        lacking = any(
            probe.lacks or (probe.level == "missing" and probe.name in static) for probe in probes
        )
        remedy = None
        if lacking and not known:
            remedy = (
                target_of(program).how_to_get_debug_info(name, program.root)
                if module.elf.is_trusted
                else how_to_trust(module.path)
            )
        yield {
            "path": module.path,
            "build_id": module.build_id,
            "base": f"{module.base:#x}",
            "remedy": remedy,
        }


def _system_name() -> str | None:
    try:
        release = platform.freedesktop_os_release()
    except (OSError, AttributeError):  # AttributeError: Python 3.9
        return None
    return release.get("PRETTY_NAME")
