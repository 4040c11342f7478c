"""What the refresh of a storage pool found, and why it fails; texts in pools.yaml."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.messages import errors_of, no_return, path_in, said, text_of
from virtrace.analysis.explain.model import (
    Catalogue,
    EachCall,
    Explainer,
    Fact,
    register_messages,
)
from virtrace.analysis.explain.refusals import RefusableCase
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Point
from virtrace.analysis.values.meaning import one_of
from virtrace.trace import roles
from virtrace.trace.format import Event, Json
from virtrace.wording import count

_API = "virStoragePoolRefresh"
_VOLUME, _OPENED = "volume", "volume.opened"
# What the storage driver returns for a file that it passes over, by the kind of the file.
_PASSED_OVER = -2
_WHY = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link that leads nowhere, or to a file that the daemon may not read",
    stat.S_IFREG: "a file that the daemon may not read",
    stat.S_IFDIR: "a folder that the daemon may not read",
}
_MOST_NAMED, _MOST_LISTED = 3, 40
_MOST_QUOTED = 20


@dataclass(frozen=True)
class PoolCase(RefusableCase):
    """One refresh."""

    def points(self, name: str) -> list[Event]:
        return [
            node.event
            for node in self.call.nodes()
            if isinstance(node, Point) and node.event.name == name
        ]

    @cached_property
    def error(self) -> str | None:
        """The message that the client got; that of `error.full` is whole in old versions, too."""
        whole = [each for each in self.points("error.full") if text_of(each)]
        return said(whole or errors_of(self.call))

    @property
    def subject(self) -> tuple[str, ...]:
        return (str(self.call.root.arguments.get("pool")),)

    @property
    def names(self) -> Mapping[str, Json]:
        what = path_in(self.error) or "the pool's source"
        return {
            **super().names,
            "pool": self.subject[0],
            "what": what,
            **self.refusal.names(what, "the daemon may not open"),
            "volumes": count(len(self.points(_VOLUME)), "volume"),
            "passed_over": self._passed_over_in_words,
            "errors": count(len(self.call.errors()), "error"),
            "got_over": said(self.call.errors()),
        }

    @cached_property
    def passed_over(self) -> list[Event]:
        """How each file was opened that is no volume, although no error was raised for it."""
        opened = self.points(_OPENED)
        return [each for each in opened if each.values.get("result") == _PASSED_OVER]

    @property
    def _passed_over_in_words(self) -> str:
        if not self.passed_over:
            return ""
        names = [_file_name(each) for each in self.passed_over[:_MOST_NAMED]]
        more = ", ..." if len(self.passed_over) > _MOST_NAMED else ""
        return f", and passed over {count(len(self.passed_over), 'file')}: {', '.join(names)}{more}"

    @property
    def facts(self) -> Sequence[Fact]:
        kinds: dict[str, int] = {}
        for event in self.points(_VOLUME):
            kind = event.values.get("type")
            word = one_of("virStorageVolType", kind) if type(kind) is int else None
            kinds[word or "of unknown type"] = kinds.get(word or "of unknown type", 0) + 1
        of_kinds = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        return [
            Fact("volumes", sum(kinds.values()), f"({of_kinds})" if kinds else ""),
            *[
                Fact(f"passed over {_file_name(each)}", _why(each), "", each.seq, ".path")
                for each in self.passed_over[:_MOST_LISTED]
            ],
            Fact("errors", len(self.call.errors())),
            *self.refusal.facts,
        ]


def _file_name(opened: Event) -> str:
    path = opened.values.get("path")
    return path.rpartition("/")[2] if isinstance(path, str) else "a file whose name is not known"


def _why(opened: Event) -> str:
    mode = opened.values.get("mode")
    kind = stat.S_IFMT(mode) if type(mode) is int else None
    return _WHY.get(kind, "not known why") if kind is not None else "not known why"


_CAUSES: Catalogue[PoolCase] = Catalogue(Path(__file__).with_name("pools.yaml"))
EXPLAINER = Explainer(
    "pools",
    _CAUSES,
    lambda traced: EachCall(
        lambda call: PoolCase(call, traced.failure(call)) if call.root.name == _API else None
    ),
)
# What the message has, by cause.
_MESSAGES = {
    "missing": ("No such file or directory",),
    "no-permission": ("Permission denied",),
    "busy": ("has asynchronous jobs running",),
    "inactive": ("is not active",),
    "error": ("",),
}
register_messages(_CAUSES, _MESSAGES)


@_CAUSES.condition("incomplete")
def _incomplete(case: PoolCase) -> list[Evidence] | None:
    return no_return(case.call)


@_CAUSES.condition("got-over")
def _got_over(case: PoolCase) -> list[Evidence] | None:
    if case.call.failed or not case.call.errors():
        return None
    return [
        Evidence(text_of(each) or "a message that could not be read", None, each.seq)
        for each in case.call.errors()[:_MOST_QUOTED]
        if each.role == roles.ERROR
    ]


@_CAUSES.condition("refreshed")
def _refreshed(case: PoolCase) -> list[Evidence] | None:
    return None if case.call.failed or case.call.errors() else []


@_CAUSES.condition("unknown")
def _unknown(_: PoolCase) -> list[Evidence]:
    return []
