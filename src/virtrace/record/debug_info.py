"""Debug info and sources that the user's debuginfod servers have and this host lacks.

A GDB that can ask the servers by itself does so without a bound and without a message.
"""

from __future__ import annotations

from pathlib import Path

from virtrace.binary.debuginfo import fetch, has_servers
from virtrace.image.model import Program
from virtrace.recipe.model import Recipe
from virtrace.record.job import Job


def fetch_debug_files(process: Program, recipe: Recipe) -> dict[str, Path]:
    """Fetch the debug info of the recipe's modules that has no file here.

    Returns the files in debuginfod's own cache, by build-id; none if the user named no servers.
    """
    files: dict[str, Path] = {}
    # Looking for what is here means to read it.
    if not has_servers():
        return files
    for name in recipe.modules:
        module = process.module(name)
        if module is None or module.build_id is None or process.debug_info(module):
            continue
        fetched = fetch(module.build_id, name)
        if fetched is not None:
            files[module.build_id] = fetched
    return files


def fetch_sources(process: Program, job: Job) -> dict[str, Path]:
    """Fetch the sources of the functions whose lines are traced.

    Returns the files by the name that debug info has for them.
    """
    sources: dict[str, Path] = {}
    if not has_servers():
        return sources
    from virtrace.binary.dwarf import source_paths

    for name in job.recipe.modules:
        functions = {
            span.function for span in job.recipe.spans if span.module == name and span.lines
        }
        module = process.module(name)
        if not functions or module is None or module.build_id is None:
            continue
        fetched = job.debug_files.get(module.build_id)
        installed = None if fetched else process.debug_info(module)
        debug = fetched or (installed and installed.path)
        for file, path in source_paths(debug, functions).items() if debug else ():
            source = fetch(module.build_id, name, path)
            if source is not None:
                sources[file] = source
    return sources
