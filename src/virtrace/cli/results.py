"""The `result` of each command's outcome, with `--json`; docs/scripts.md describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, TypedDict

from virtrace.trace.format import Count, CountOrNull, Program, Record, TextOrNull

ProgramOrNull = Optional[Program]
BoolOrNull = Optional[bool]
LevelsOrNull = Optional[dict[str, str]]


class RecordResult(TypedDict):
    """What was recorded.

    traces: the files, in order. reason: why the recording ended, as in the footer; null where the
    trace has none. dropped: events that were lost. hits: of each probe. missing: probes that the
    recipe needs, and that were not found.
    """

    recipe: str
    engine: str
    pid: Count
    traces: list[str]
    reason: TextOrNull
    events: Count
    dropped: Count
    hits: dict[str, Count]
    missing: list[str]


class ReplayResult(RecordResult):
    """equal: whether the new trace says what the old one does; null if they were not compared."""

    equal: BoolOrNull


class ImportResult(TypedDict):
    """The trace that was made. whole: whether the output has its end."""

    trace: str
    whole: bool
    events: Count
    dropped: Count
    missing: list[str]


class ListedRecipe(TypedDict):
    """A shipped recipe."""

    name: str
    summary: str


class RecipeListResult(TypedDict):
    """The shipped recipes."""

    recipes: list[ListedRecipe]


class RecipeShowResult(TypedDict):
    """The recipe as docs/recipes.md describes it, with the points of its fragments."""

    recipe: Record


class RecipeCheckResult(TypedDict):
    """A sound recipe. program, levels: of the daemon, and by which means each probe was found."""

    name: str
    spans: Count
    points: Count
    program: ProgramOrNull
    levels: LevelsOrNull
    missing: list[str]


class RecipeNewResult(TypedDict):
    """The text of the recipe, and the file that has it."""

    file: TextOrNull
    text: str


class RecipeCompileResult(TypedDict):
    """The script, and the needed probes that it cannot set."""

    file: str
    missing: list[str]


class FileResult(TypedDict):
    """The file that was written."""

    file: str


class Absent(TypedDict):
    """What a bundle has not, and why."""

    name: str
    why: str


class BundleMakeResult(TypedDict):
    """file, map: null with --preview. hidden: number of names by kind. released: kinds."""

    file: TextOrNull
    map: TextOrNull
    hidden: dict[str, Count]
    released: list[str]
    absent: list[Absent]


class BundleVerifyResult(TypedDict):
    """What is not as it should be, in words."""

    problems: list[str]


class MadePack(TypedDict):
    """A symbol pack that was made. functions, structs: how many it has."""

    file: str
    functions: Count
    structs: Count


class PackMakeResult(TypedDict):
    """The packs, in the order of the sources."""

    packs: list[MadePack]


class PackShowResult(TypedDict):
    """What a pack holds. functions: their names."""

    build_id: str
    machine: str
    origin: str
    functions: list[str]


class LeftPlace(TypedDict):
    """Bytes of the process, in hex, as they are and as they should be. where: module and offset."""

    where: str
    address: str
    is_now: str
    should_be: str


class RescueResult(TypedDict):
    """What was found. stopped: whether it was. unread: what could not be examined, and why."""

    pid: Count
    places: list[LeftPlace]
    stopped: bool
    unread: list[str]
    restored: bool


class LabDisk(TypedDict):
    """A disk of a guest."""

    target: str
    about: str


class LabGuest(TypedDict):
    """A guest. state: as `virsh domstate` says it."""

    name: str
    state: str
    disks: list[LabDisk]


class LabResult(TypedDict):
    """The lab. pid, exe, uri: of its daemon. left: processes that outlived it."""

    up: bool
    folder: str
    pid: CountOrNull
    exe: TextOrNull
    uri: TextOrNull
    guests: list[LabGuest]
    left: Count


# By the words of the command.
RESULTS: Mapping[str, Any] = {
    "record": RecordResult,
    "replay": ReplayResult,
    "import": ImportResult,
    "export": FileResult,
    "recipe list": RecipeListResult,
    "recipe show": RecipeShowResult,
    "recipe check": RecipeCheckResult,
    "recipe new": RecipeNewResult,
    "recipe compile": RecipeCompileResult,
    "bundle make": BundleMakeResult,
    "bundle verify": BundleVerifyResult,
    "pack make": PackMakeResult,
    "pack show": PackShowResult,
    "rescue": RescueResult,
    "lab up": LabResult,
    "lab down": LabResult,
    "lab status": LabResult,
    "lab run": RecordResult,
}
