"""Version 1 of the trace format, turned into what version 2 says: nothing else knows version 1."""

import re
from collections.abc import Iterator
from typing import Optional, TypedDict

from virtrace.trace import roles
from virtrace.trace.format import (
    VERSION,
    AddressOrNull,
    Engine,
    Event,
    Header,
    HeaderInEveryVersion,
    Json,
    Level,
    LoadedModule,
    ProbeRecord,
    Record,
    TextOrNull,
)

# Commands that wait for their reply at a time.
_MOST_WAITING = 200_000
_FUNCTION = re.compile(r"(\w+)\s*\(")


class _ToolAlways(TypedDict):
    virtrace: str
    gdb: str
    python: str


class _Tool(_ToolAlways, total=False):
    # `bpftrace`; absent if GDB recorded the trace.
    engine: str


class _Target(TypedDict):
    pid: int
    exe: str
    libvirt_version: TextOrNull
    modules: list[LoadedModule]


class _ProbeAlways(TypedDict):
    name: str
    kind: str
    module: TextOrNull
    offset: AddressOrNull
    level: Level
    why: TextOrNull


class _Probe(_ProbeAlways, total=False):
    taken: TextOrNull
    lacks: list[str]


class HeaderOfVersion1(HeaderInEveryVersion):
    """The header of version 1."""

    tool: _Tool
    target: _Target
    probes: list[_Probe]


def upgraded_header(old: HeaderOfVersion1) -> Header:
    """Return the header of version 2 that says the same."""
    target, tool = old["target"], old["tool"]
    implied = dict(_roles(old["recipe"]))
    engine: Engine = {"name": tool.get("engine", "gdb"), "version": tool["gdb"]}
    if "engine" in tool:
        engine["version"] = None
    probes: list[ProbeRecord] = [
        {
            **probe,
            "role": implied.get(probe["name"])
            if probe["kind"] == "span"
            else roles.of_point(probe["name"]),
        }
        for probe in old["probes"]
    ]
    return {
        **old,
        "version": VERSION,
        "tool": {"virtrace": tool["virtrace"], "engine": engine, "python": tool["python"]},
        "target": {
            "pid": target["pid"],
            "exe": target["exe"],
            "program": {"name": "libvirt", "version": target["libvirt_version"]},
            "modules": target["modules"],
        },
        "probes": probes,
    }


class UpgradedEvents:
    """Adds `answers` to the replies of a version 1 trace, in the order of its file.

    A command and its reply agree in monitor and JSON id. The records have `json`, too.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], int] = {}

    def upgraded(self, event: Event) -> Event:
        """event: a point."""
        answers = event.answers
        if event.role == roles.QMP_COMMAND:
            key = _key(event.values)
            if key is not None:
                # A monitor that was freed and made anew can have the address of the old one, and
                # counts from 1 again: the older command can no longer be answered.
                self._waiting.pop(key, None)
                self._waiting[key] = event.seq
                if len(self._waiting) > _MOST_WAITING:
                    del self._waiting[next(iter(self._waiting))]
        elif event.role == roles.QMP_REPLY:
            key = _key(event.values)
            if key in self._waiting:
                answers = self._waiting.pop(key)
        # Without it, no reply is known to answer anything.
        return event.with_json(event.values, answers) if "json" in event.values else event


def _key(values: Record) -> Optional[tuple[str, str]]:
    document = values.get("json")
    mon, id_ = values.get("mon"), document.get("id") if isinstance(document, dict) else None
    return (mon, id_) if isinstance(mon, str) and isinstance(id_, str) else None


def _roles(recipe: Record) -> Iterator[tuple[str, Optional[str]]]:
    """Name and implied role of the spans of a recipe, which may be a stranger's."""
    spans = recipe.get("spans")
    for span in spans if isinstance(spans, list) else ():
        if not isinstance(span, dict):
            continue
        any_of = span.get("any_of")
        for way in any_of if isinstance(any_of, list) else [{}]:
            keys = {**span, **way} if isinstance(way, dict) else span
            declared = _FUNCTION.search(str(keys.get("prototype", "")))
            name = keys.get("name") or keys.get("function") or (declared and declared[1])
            yield str(name), roles.of_span(_names(keys.get("enter")), _names(keys.get("exit")))


def _names(captures: Json) -> set[str]:
    return set(captures) if isinstance(captures, dict) else set()
