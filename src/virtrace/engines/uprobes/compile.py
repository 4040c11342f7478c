"""Compiles a recipe to a script that needs nothing but Python."""

from __future__ import annotations

import ast
import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from virtrace import resources
from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.coroutines import probed_returns
from virtrace.engines.uprobes.program import PLAIN, Program, fingerprint, programs
from virtrace.errors import TargetError
from virtrace.image.model import Module
from virtrace.image.model import Program as Image
from virtrace.plan import file as plan_file
from virtrace.plan.file import StoredPlan
from virtrace.trace.format import Json, Record

# In the order in which they import each other.
_MODULES = ("layout", "linking", "kernel", "frames", "maps", "standalone")

_HEAD = '''\
#!/usr/bin/env python3
"""Traces by the recipe {name}; made by virtrace. As root: python3 THIS PID OUTPUT

Then, where virtrace is installed: virtrace import OUTPUT -o TRACE
"""

from __future__ import annotations

'''
_TAIL = '''

if __name__ == "__main__":
    sys.exit(main("""\\
{compiled}"""))
'''
_LINE = 100


def programs_of(data: bytes) -> tuple[StoredPlan, Sequence[Program]]:
    """Return a plan as a compiled recipe has it, and its programs.

    Raises: TraceError where the data is no plan
    """
    plan = plan_file.read(data)
    # The kernel of the host that runs it is not known.
    return plan, programs(plan.plan, PLAIN)


def script(plan: StoredPlan, name: str, image: Image) -> Iterator[str]:
    """Return the lines of a script. name: of the recipe. Raises: TargetError."""
    if any(probed_returns(site) for site in plan.plan.sites):
        raise TargetError(
            f"which stack a thread of {image.exe} was on is not in what a compiled script records",
            "virtrace record",
        )
    # As the import will read it: types that no capture needs are left out.
    data = plan_file.write(plan, ABI)
    plan, made = programs_of(data)
    modules = {module.path: module for module in image.modules}
    sites = plan.plan.sites
    used = {sites[program.site].file for program in made}
    about: Json = {
        "name": name,
        "plan": data.decode(),
        "fingerprint": fingerprint(made),
        "files": {path: _file(modules[path]) for path in sorted(used)},
        "programs": [_program(one, modules[sites[one.site].file]) for one in made],
    }
    compiled = base64.b64encode(zlib.compress(json.dumps(about).encode(), 9)).decode()
    lines = "".join(f"{compiled[at : at + _LINE]}\n" for at in range(0, len(compiled), _LINE))
    yield _HEAD.format(name=name)
    for module in _MODULES:
        yield _without_our_imports(resources.text(Path(__file__).with_name(f"{module}.py")))
    yield _TAIL.format(compiled=lines)


def _file(module: Module) -> Record:
    first = next((part.address for part in module.elf.segments if part.offset == 0), None)
    if first is None:
        raise TargetError(
            f"{module.path} maps no part that begins with the file", "trace it on its host"
        )
    return {"sha256": module.elf.sha256, "first": first}


def _program(program: Program, module: Module) -> Record:
    offset, semaphore = program.offsets(module.elf)
    return {
        "file": module.path,
        "address": program.address,
        "offset": offset,
        "at_return": program.is_return_probe,
        "semaphore": semaphore,
        "instructions": base64.b64encode(program.code.instructions).decode(),
        "symbols": {str(index): name for index, name in program.code.symbols.items()},
    }


def _without_our_imports(source: str) -> str:
    """Return a module's source without what only stands at the beginning of a file of its own."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        is_ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("virtrace.")
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_ours or is_future or node.lineno == 1:
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "".join(lines)
