"""One target, read from its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import yaml

from virtrace.binary import debuginfo
from virtrace.documents import document
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Program
from virtrace.image.process import Process
from virtrace.trace.format import Program as ProgramRecord
from virtrace.trace.format import Record

if TYPE_CHECKING:
    from virtrace.binary.ctype import CType
    from virtrace.targets.qemu.guests import Guest

Timeouts = Callable[[Process, Mapping[str, str]], Mapping[str, float]]


def _no_timeouts(_process: Process, _environment: Mapping[str, str]) -> Mapping[str, float]:
    return {}


class Standing(NamedTuple):
    """What something was when it was looked at.

    key, value: as a `rises` of a recipe compares them. values: all that is known of it.
    """

    key: str
    value: int
    values: Record


class Knowledge(Protocol):
    """What only code finds out of a program."""

    def struct(self, program: Program, name: str) -> CType:
        """A struct whose layout the program's own code shows; Opaque for any other."""

    def variable(self, program: Program, name: str) -> int:
        """The address of a variable of its main module, in the file. Raises: Unavailable."""

    def functions(self, program: Program) -> Mapping[int, str]:
        """Names of static functions of its main module, by their addresses in the file."""

    def standing(self, kind: str, process: Process, guest: Guest | None) -> Sequence[Standing]:
        """What a point with `standing: KIND` records. guest: if known. Raises: Unavailable."""


class _NoKnowledge:
    def struct(self, program: Program, name: str) -> CType:
        from virtrace.binary.ctype import Opaque

        return Opaque(name)

    def variable(self, program: Program, name: str) -> int:
        raise Unavailable(f"where its variable {name} is is not known")

    def functions(self, program: Program) -> Mapping[int, str]:
        return {}

    def standing(self, kind: str, process: Process, guest: Guest | None) -> Sequence[Standing]:
        raise Unavailable("nothing of this program is known without its debug info")


@dataclass(frozen=True, eq=False)
class Target:
    """A program to trace.

    folder: holds its `target.yaml` and `layouts/`
    module: soname or file name of the main module, which every process of the program has loaded
    prefix: the file name of each of its modules starts with it
    daemons: process names, each with the modules that such a process loads besides
    version: regex for the main module's file name; its groups are the numbers of the version
    access_check: name of the function that only the implementation of the exported `{api}` calls
    start: what to do where no daemon runs
    drivers: glob of further modules, relative to the folder of the main module
    packages: by module, the package in Debian and with RPM; `default` for all others
    coroutines: whether its threads leave one stack for another
    halts: what stands still while a thread of it is stopped; GDB traces it only if chosen by name
    sources: glob of source folders in /usr/src and /usr/src/debug
    timeouts: from a process and its environment, who gives up on a call that is held too long,
        and after how many seconds
    knowledge: what only code finds out
    """

    name: str
    folder: Path
    module: str
    prefix: str
    daemons: Mapping[str, Sequence[str]]
    version: str | None = None
    access_check: str | None = None
    start: str = "start it"
    drivers: str | None = None
    packages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    coroutines: bool = False
    halts: str | None = None
    sources: str | None = None
    timeouts: Timeouts = _no_timeouts
    knowledge: Knowledge = field(default_factory=_NoKnowledge)

    def version_of(self, program: Program) -> str | None:
        """The version, such as ``9.0.0``; None where the main module's name does not show it."""
        module = program.module(self.module)
        if module is None or self.version is None:
            return None
        match = re.fullmatch(self.version, module.name)
        return ".".join(str(int(number)) for number in match.groups()) if match else None

    def to_record(self, program: Program) -> ProgramRecord:
        """``target.program`` in the header of a trace."""
        return {"name": self.name, "version": self.version_of(program)}

    def check_of(self, api: str) -> str:
        """The function that only the implementation of an exported function calls.

        Raises TargetError if the program has no such functions.
        """
        if self.access_check is None:
            raise TargetError(
                f"{self.name} has no function by which the implementation of {api} is known",
                "use `find: {called_by: ...}`, or debug info",
            )
        return self.access_check.replace("{api}", api)

    def type_named(self, name: str, program: Program | None = None) -> CType:
        """The type that C spells ``name``; Opaque for a struct without a layout.

        program: whose own code may show the layout
        """
        # Not every command that looks for a process needs types.
        from virtrace.binary import layouts
        from virtrace.binary.ctype import Opaque

        def struct(name: str) -> CType:
            found = layouts.struct_in(self.folder / "layouts", name)
            if isinstance(found, Opaque) and program is not None:
                return self.knowledge.struct(program, name)
            return found

        return layouts.type_named(name, struct)

    def how_to_get_debug_info(self, module: str, root: Path) -> str:
        """The command that installs it, on the distribution whose files are below root."""
        packages = self.packages.get(module) or self.packages.get("default")
        return debuginfo.how_to_get(self.name, packages, root)

    def source_folders(self) -> list[Path]:
        """Where debug source packages put its source."""
        if self.sources is None:
            return []
        folders = (Path("/usr/src"), Path("/usr/src/debug"))
        return [found for base in folders for found in sorted(base.glob(self.sources))]


@cache
def load_target(folder: Path) -> Target:
    """Raises TargetError if the folder does not hold a target."""
    file = folder / "target.yaml"
    try:
        described: Any = document(file)
        target = Target(folder=folder, **described)
        re.compile(target.version or "")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, re.error) as error:
        raise TargetError(
            f"{file} does not describe a target: {error}",
            "docs/architecture.md says what it has to contain",
        ) from error
    return target
