"""The content of a recipe, after it was read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from virtrace.recipe.path import Backtrace, Path, Stack
from virtrace.recipe.prototype import Parameter, Prototype


@dataclass(frozen=True)
class DriverMethod:
    """The driver's function behind a public API: the one that calls the API's access check."""

    api: str


@dataclass(frozen=True)
class CalledBy:
    """The one function that ``caller``, a span of the recipe, calls and that calls ``calls``."""

    caller: str
    calls: str


# Whose process a probe is in. Those of a guest's QEMU are traced by the guest's name.
OF_LIBVIRT, OF_QEMU = OF = ("libvirt", "qemu")


# What is found without a place in the code: the nodes of a QEMU's block layer and its jobs, in its
# memory; the files that a process has open.
BLOCK_NODES, JOBS, OPEN_FILES = STANDING = ("block-nodes", "jobs", "open-files")


@dataclass(frozen=True)
class Rises:
    """Recorded where ``value`` is higher than it was before, each ``per`` by itself.

    Of many rises the first and the last are recorded, those that are steep, and each that comes
    from another place.
    """

    value: Path
    per: Path


@dataclass(frozen=True)
class Changes:
    """Recorded where ``value`` differs from the last one that was met, each ``per`` by itself.

    The first one is recorded, too. per: None where there is only one.
    """

    value: Path
    per: Path | None


@dataclass(frozen=True)
class Fails:
    """Recorded where the function returned a number below 0, as those that failed do."""


@dataclass(frozen=True)
class Over:
    """Recorded where the function took longer.

    ns: than this. on_main: only calls on the process's first thread.
    """

    ns: int
    on_main: bool = False


@dataclass(frozen=True)
class Inside:
    """Part of what was begun elsewhere: in another process, or on another stack.

    name: of a point, which asked for it, or of a span, whose only open call it is a part of.
    by: names of own values, each with that of the other that it equals; such as json.id.
    """

    name: str
    by: Mapping[str, str]
    of_point: bool


@dataclass(frozen=True, eq=False)
class Span:
    """A function, from its entry to its return.

    name: of its events; function: as C has it.
    root: a call of it begins a tree of its own; every other probe counts only inside one.
    prototype: as the source declares it; where it is exported, and where it was found by
    ``find`` alone, this tells the arguments. find: how to find a static function in a file
    without symbols. optional: many versions do not have it.
    role: what its events mean to readers of the trace (trace/roles.py).
    lines: the captures to watch from source line to source line; None where lines are not
    wanted. They may start from local variables too.
    of: whose process it is in, one of OF. inside: where it belongs if its stack does not show it.
    """

    name: str
    function: str
    module: str
    root: bool = False
    optional: bool = False
    role: str | None = None
    prototype: Prototype | None = None
    find: DriverMethod | CalledBy | None = None
    enter: Mapping[str, Path] = field(default_factory=dict)
    exit: Mapping[str, Path] = field(default_factory=dict)
    lines: Mapping[str, Path] | None = None
    of: str = OF_LIBVIRT
    inside: Inside | None = None

    @property
    def captures(self) -> Mapping[str, Path]:
        """Captures at entry and return, without those of lines."""
        return {**self.enter, **self.exit}


@dataclass(frozen=True)
class Answer:
    """The point answers an earlier one, on any thread, that agrees in all of ``by``.

    by: names of values; ``json.id`` is the member ``id`` of the value ``json``.
    """

    point: str
    by: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """A static probe (USDT), or the entry of an exported function, or its return.

    usdt: ``provider:name``. prototype: of the function, or of the probe's arguments.
    at_return: its captures may use what the function returned.
    anywhere: recorded outside of recorded calls too. optional: many versions do not have it.
    role: what its events mean to readers of the trace (trace/roles.py).
    json: the captured text that is JSON; the value ``json`` holds it parsed.
    of, inside: as of Span. when: what has to hold for it to be recorded.
    variables: of the program, which its captures may start from.
    contents: the function in which the write began whose end this is; what the write contained is
    compared there, and is the value ``content``.
    standing: no place in the code: what of this name, one of STANDING, is found when the recording
    begins, and when it ends.
    every: ns between looks at it meanwhile; None without any.
    """

    name: str
    module: str
    prototype: Prototype
    usdt: str | None = None
    at_return: bool = False
    anywhere: bool = False
    optional: bool = False
    role: str | None = None
    capture: Mapping[str, Path] = field(default_factory=dict)
    json: str | None = None
    answers: Answer | None = None
    of: str = OF_LIBVIRT
    inside: Inside | None = None
    when: Rises | Changes | Fails | Over | None = None
    variables: tuple[Parameter, ...] = ()
    contents: Prototype | None = None
    standing: str | None = None
    every: int | None = None

    @property
    def captures(self) -> Mapping[str, Path]:
        return self.capture


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Consecutive spans of the same name are alternatives: the first one found is traced. The same
    holds for points.

    where, calls, seconds: which calls to record and when to end, if the user does not say.
    waits: its process is one that starts while it waits.
    raw: the YAML document as plain data, as in the trace's header, with the points of fragments.
    used: number of points from fragments, which come first.
    """

    name: str
    about: str
    try_: str
    spans: tuple[Span, ...]
    points: tuple[Point, ...]
    raw: Mapping[str, Any]
    used: int = 0
    where: Mapping[str, str] = field(default_factory=dict)
    calls: int | None = None
    seconds: float | None = None
    waits: bool = False

    @property
    def probes(self) -> tuple[Span | Point, ...]:
        return (*self.spans, *self.points)

    @property
    def summary(self) -> str:
        """The subject in one line: the beginning of the first sentence."""
        return " ".join(re.split(r"[.:;](?:\s|$)", self.about, maxsplit=1)[0].split())

    @property
    def of(self) -> tuple[str, ...]:
        """Whose processes its probes are in: one of OF, or all."""
        return tuple(one for one in OF if any(probe.of == one for probe in self.probes))

    def part(self, of: str) -> Recipe:
        """The recipe with the probes in one of its processes."""
        spans = tuple(span for span in self.spans if span.of == of)
        points = tuple(point for point in self.points if point.of == of)
        return replace(self, spans=spans, points=points)

    @property
    def roots(self) -> tuple[Span, ...]:
        """The spans that begin calls. Without any, only events recorded anywhere are recorded."""
        return tuple(span for span in self.spans if span.root)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(probe.module for probe in self.probes))

    @property
    def required_modules(self) -> tuple[str, ...]:
        """Modules with a probe that is neither optional nor an alternative in another module."""
        modules: dict[str, set[str]] = {}
        for probe in self.probes:
            if not probe.optional:
                modules.setdefault(probe.name, set()).add(probe.module)
        required = (names for names in modules.values() if len(names) == 1)
        return tuple(dict.fromkeys(name for names in required for name in names))

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of the probes that are not optional."""
        return tuple(dict.fromkeys(probe.name for probe in self.probes if not probe.optional))

    @property
    def has_backtraces(self) -> bool:
        paths = (path for probe in self.probes for path in probe.captures.values())
        return any(isinstance(path.form, Backtrace) for path in paths)

    @property
    def is_for_kernel(self) -> bool:
        """Whether it asks for what only probes of the kernel give."""
        paths = (path for probe in self.probes for path in probe.captures.values())
        special = any(point.when or point.standing or point.variables for point in self.points)
        joined = any(probe.inside for probe in self.probes) or len(self.of) > 1
        return special or joined or any(isinstance(path.form, Stack) for path in paths)

    @property
    def classifies(self) -> bool:
        """Whether it compares what is written with known formats."""
        return any(point.contents for point in self.points)

    def without_contents(self) -> Recipe:
        """The recipe that does not look at what is written."""
        points = tuple(replace(point, contents=None) for point in self.points)
        raw = dict(self.raw)
        if self.classifies:
            raw["points"] = [
                {key: value for key, value in point.items() if key != "contents"}
                for point in raw["points"]
            ]
        return replace(self, points=points, raw=raw)

    @property
    def filters(self) -> tuple[str, ...]:
        """The keys that a filter (``--where KEY=VALUE``) can name."""
        return tuple(dict.fromkeys(key for span in self.roots for key in span.enter))
