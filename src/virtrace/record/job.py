"""The job that an engine is given: what to record of which process, and how; also as JSON."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from virtrace.recipe import loader
from virtrace.recipe.model import Recipe
from virtrace.recipe.selection import Limits, Rotation, Selection
from virtrace.targets.qemu.guests import Guest
from virtrace.trace.format import Limits as TraceLimits
from virtrace.trace.format import Selection as TraceSelection

# A job's document is larger only if something is wrong: what grows in it are names of files.
MAX_BYTES = 1 << 24


class AskedFor(TypedDict):
    """What a trace's header has of the job."""

    selection: TraceSelection
    limits: TraceLimits
    command: str | None


@dataclass(frozen=True)
class Job:
    """One recording.

    recipe: what to trace
    pid: the process to trace; 0 if it is the next one of `program`
    output: the trace file; must not exist
    selection: the calls to record, and when to end
    limits: what the trace may cost
    rotation: when to go on in a new file; None: never
    command: the words of a command to run once every call is traced; may be empty
    sources: folders with the source of the traced program
    source_files: sources in places of their own, by the name that debug info has for them
    debug_files: separate debug files in places of their own, by build-id
    packs: folders to search for symbol packs before the user's cache
    guest: whose QEMU is traced, if it was named so
    qemu: its process, for a recipe that traces a daemon, too
    program: whose next process is traced, from its start; None: the process runs
    failures: descriptor to which each call that has failed is written; None: to none
    """

    recipe: Recipe
    pid: int
    output: Path
    selection: Selection = field(default_factory=Selection)
    limits: Limits = field(default_factory=Limits)
    rotation: Rotation | None = None
    command: Sequence[str] = ()
    sources: Sequence[Path] = ()
    source_files: Mapping[str, Path] = field(default_factory=dict)
    debug_files: Mapping[str, Path] = field(default_factory=dict)
    packs: Sequence[Path] = ()
    guest: Guest | None = None
    qemu: int | None = None
    program: Path | None = None
    failures: int | None = None

    @property
    def command_line(self) -> str | None:
        """The command as one would type it; None without one."""
        return shlex.join(self.command) if self.command else None

    @property
    def descriptors(self) -> Sequence[int]:
        """Open files that whoever records needs."""
        return [] if self.failures is None else [self.failures]

    def header_fields(self, refused: Container[str] = ()) -> AskedFor:
        """Return what a trace's header has of the job.

        refused: options that the engine cannot honour: their limits are left out
        """
        limits: TraceLimits = {
            "max_events": self.limits.events,
            "max_bytes": self.limits.bytes,
        }
        if "max-stop-ms" not in refused:
            limits["max_stop_ms"] = self.limits.stop_ms
        if "max-load" not in refused:
            limits["max_load"] = self.limits.load
        return {
            "selection": {
                "where": dict(self.selection.where),
                "calls": self.selection.calls,
                "seconds": self.selection.seconds,
            },
            "limits": limits,
            "command": self.command_line,
        }

    def to_json(self) -> bytes:
        document = {
            "recipe": self.recipe.raw,
            "pid": self.pid,
            "output": _from_path(self.output),
            "selection": {**asdict(self.selection), "where": dict(self.selection.where)},
            "limits": asdict(self.limits),
            "rotation": self.rotation,
            "command": [*self.command],
            "sources": [_from_path(folder) for folder in self.sources],
            "source_files": {name: _from_path(file) for name, file in self.source_files.items()},
            "debug_files": {name: _from_path(file) for name, file in self.debug_files.items()},
            "packs": [_from_path(folder) for folder in self.packs],
            "failures": self.failures,
        }
        return json.dumps(document).encode()

    @classmethod
    def from_json(cls, document: bytes) -> Job:
        """Raises: ValueError or KeyError if it is not what ``to_json`` makes."""
        if len(document) > MAX_BYTES:
            raise ValueError(f"a job of {len(document)} bytes")
        fields = json.loads(document)
        rotation = fields["rotation"]
        return cls(
            recipe=loader.from_document(fields["recipe"], "the job's recipe"),
            pid=fields["pid"],
            output=_to_path(fields["output"]),
            selection=Selection(**fields["selection"]),
            limits=Limits(**fields["limits"]),
            rotation=None if rotation is None else Rotation(*rotation),
            command=fields["command"],
            sources=[*map(_to_path, fields["sources"])],
            source_files={name: _to_path(file) for name, file in fields["source_files"].items()},
            debug_files={name: _to_path(file) for name, file in fields["debug_files"].items()},
            packs=[*map(_to_path, fields["packs"])],
            failures=fields["failures"],
        )


def _from_path(path: Path) -> str:
    """The path's bytes as text: the Python inside GDB may decode file names differently."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _to_path(text: str) -> Path:
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))
