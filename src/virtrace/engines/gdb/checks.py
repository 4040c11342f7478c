"""What GDB and the Python inside it must be able to do."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtrace.binary.debuginfo import install_command
from virtrace.engines.gdb.launch import run_gdb
from virtrace.errors import TargetError
from virtrace.record.check import Check

OLDEST_GDB = (10, 0)
OLDEST_PYTHON = (3, 9)
# Packages that GDB's Python may borrow from ours.
LENT = ("yaml", "pygments")

# Run by GDB's own Python. A module that it lacks is tried again from our environment, as the
# scripts in gdb_scripts/ do.
ASK_PYTHON = """
import json, sys
answer = {"version": sys.version_info[:3], "modules": {}}
lacking = []
for name, folder in %r:
    try:
        __import__(name)
        answer["modules"][name] = "own"
    except ImportError:
        lacking.append((name, folder))
for name, folder in lacking:
    sys.path.append(folder)
    try:
        __import__(name)
        answer["modules"][name] = "lent"
    except Exception as error:
        answer["modules"][name] = repr(error)
print("virtrace-answer " + json.dumps(answer))
"""


def checks() -> Iterator[Check]:
    gdb = shutil.which("gdb")
    install = f"{install_command(Path('/'))} gdb"
    if gdb is None:
        yield Check(
            "note",
            "gdb is not on PATH: the engine gdb cannot trace here; `virtrace recipe`, `doctor`, "
            "`show`, `explain` and `bundle` work without it",
            install,
        )
        return
    folders = [(name, _folder_of(name)) for name in LENT]
    ask = "python exec(" + repr(ASK_PYTHON % (folders,)) + ")"
    try:
        result = run_gdb([gdb, "-nx", "-batch", "-ex", "show version", "-ex", ask])
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("problem", f"{gdb} does not run: {error}", install)
        return
    match = re.search(r"(\d+)\.(\d+)\S*$", result.stdout.partition("\n")[0])
    if match is None:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        yield Check("problem", f"{gdb} does not run: {said}", install)
        return
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_GDB:
        yield Check(
            "problem",
            f"{gdb} is version {match[0]}",
            f"install GDB {OLDEST_GDB[0]} or later and put it first on PATH",
        )
    else:
        yield Check("ok", f"{gdb}, version {match[0]}")
    yield from _python_checks(result.stdout, result.stderr)


def _python_checks(stdout: str, stderr: str) -> Iterator[Check]:
    match = re.search(r"^virtrace-answer (.*)$", stdout, re.MULTILINE)
    if match is None:
        said = stderr.strip().partition("\n")[0]
        yield Check(
            "problem",
            f"this GDB has no usable Python: {said}",
            "install a GDB built with Python (on Debian and Ubuntu `gdb`, not `gdb-minimal`)",
        )
        return
    answer = json.loads(match[1])
    version = ".".join(str(part) for part in answer["version"])
    if tuple(answer["version"]) < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        yield Check(
            "problem",
            f"the Python inside this GDB is {version}",
            f"install a GDB built with Python {oldest} or later",
        )
    else:
        yield Check("ok", f"Python {version} inside GDB")
    for name, how in answer["modules"].items():
        if how == "own":
            yield Check("ok", f"{name}: GDB's Python has it")
        elif how == "lent":
            yield Check("ok", f"{name}: lent to GDB's Python from {_folder_of(name)}")
        else:
            yield Check(
                "problem",
                f"{name}: GDB's Python cannot import it ({how})",
                "install virtrace with a Python close to the one inside GDB "
                f"(python{'.'.join(version.split('.')[:2])} -m venv)",
            )


def _folder_of(name: str) -> str:
    """Where our own Python has this package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a dependency of this package
        raise TargetError(f"the Python package {name} is missing", "install virtrace again")
    return str(Path(spec.origin).parent.parent)
