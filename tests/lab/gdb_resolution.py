"""For GDB: writes what each shipped recipe resolves to by GDB's own debug info.

VIRTRACE_TEST_DRIVER: the driver whose files are resolved. VIRTRACE_TEST_OUTPUT: a JSON file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import gdb

from virtrace.errors import Unavailable
from virtrace.inferior import target
from virtrace.inferior.witness import InDebugInfo, resolved
from virtrace.plan.file import type_record
from virtrace.plan.infer import infer
from virtrace.plan.model import AnySite, LineSite, all_captures
from virtrace.plan.walk import pruned
from virtrace.plan.witness import Packs
from virtrace.recipe import catalogue
from virtrace.recipe.model import OF_LIBVIRT
from virtrace.targets.processes import installed
from virtrace.trace.format import Record


def site_record(site: AnySite, base: int) -> Record:
    starts = sorted(
        {
            start
            for capture in all_captures(site).values()
            if not isinstance(capture, Unavailable)
            for start in capture.arguments
        }
    )
    shown = ""
    if isinstance(site.arguments, InDebugInfo):
        shown = gdb.execute(f"info scope *{base + site.addresses[0]:#x}", to_string=True)
    return {
        "kind": type(site).__name__,
        "addresses": list(site.addresses),
        "line": [site.source, site.line, site.declared] if isinstance(site, LineSite) else None,
        "base": base,
        "starts": starts,
        "scope": shown,
        "captures": {
            name: {"unavailable": str(capture)}
            if isinstance(capture, Unavailable)
            else {
                name: type_record(ctype)
                for name, ctype in pruned(capture.path, capture.types).items()
            }
            for name, capture in all_captures(site).items()
        },
    }


program = installed(Path(os.environ["VIRTRACE_TEST_DRIVER"]))
recipes = [catalogue.find_recipe(name) for name in catalogue.shipped()]
recipes = [recipe for recipe in recipes if recipe.of == (OF_LIBVIRT,)]
modules = {name for recipe in recipes for name in recipe.modules}
bases = {name: module.base for name in modules if (module := program.module(name))}
answer = {}
with target.quiet_settings(), target.no_files(), target.symbols(program, modules, {}):
    for recipe in recipes:
        plan = resolved(recipe, program, Packs("pack", {}), infer(recipe, program))
        answer[recipe.name] = [
            {
                **probe.to_record(),
                "sites": [site_record(site, bases[site.module]) for site in probe.sites],
            }
            for probe in plan.probes
        ]
Path(os.environ["VIRTRACE_TEST_OUTPUT"]).write_text(json.dumps(answer))
