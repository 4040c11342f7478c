"""What the refresh of a storage pool found, and why it fails; texts in pools.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virtrace.analysis.explain.messages import (
    errors_of,
    no_return,
    path_in,
    quoted_errors,
    said,
    text_of,
)
from virtrace.analysis.explain.model import CallCase, Catalogue, EachCall, Explainer, Fact
from virtrace.analysis.explain.refusals import Refusal
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Point
from virtrace.analysis.values.meaning import one_of
from virtrace.trace import roles
from virtrace.trace.format import Event, FailureRecord, Json
from virtrace.wording import count

_API = "virStoragePoolRefresh"
_VOLUME = "volume"
_MOST_QUOTED = 20


@dataclass(frozen=True)
class PoolCase(CallCase):
    """One refresh. host: what it said as the refresh failed."""

    host: FailureRecord | None = None

    def points(self, name: str) -> list[Event]:
        return [
            node.event
            for node in self.call.nodes()
            if isinstance(node, Point) and node.event.name == name
        ]

    @property
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
            "pool": self.subject[0],
            "error": self.error,
            "what": what,
            **self.refusal.names(what, "the daemon may not open"),
            "volumes": count(len(self.points(_VOLUME)), "volume"),
            "errors": count(len(self.call.errors()), "error"),
            "got_over": said(self.call.errors()),
        }

    @property
    def refusal(self) -> Refusal:
        return Refusal(self.host, self.error)

    @property
    def note(self) -> str | None:
        return self.refusal.note if self.call.failed else None

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
            Fact("errors", len(self.call.errors())),
            *self.refusal.facts,
        ]


_CAUSES: Catalogue[PoolCase] = Catalogue(Path(__file__).with_name("pools.yaml"))
EXPLAINER = Explainer(
    "pools",
    frozenset({_API}),
    _CAUSES,
    lambda traced: EachCall(
        lambda call: PoolCase(call, traced.failure(call)) if call.root.name == _API else None
    ),
)
# What the message has, by cause.
_MESSAGES = {
    "missing": "No such file or directory",
    "no-permission": "Permission denied",
    "busy": "has asynchronous jobs running",
    "inactive": "is not active",
    "error": "",
}


@_CAUSES.condition("incomplete")
def _incomplete(case: PoolCase) -> list[Evidence] | None:
    return no_return(case.call)


def _failed_with(text: str, case: PoolCase) -> list[Evidence] | None:
    if case.error is None or not case.call.failed or text not in case.error:
        return None
    return [*quoted_errors(case.call), *case.refusal.evidence]


for _name, _text in _MESSAGES.items():
    _CAUSES.condition(_name)(partial(_failed_with, _text))


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
