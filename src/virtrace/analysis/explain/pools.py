"""What the refresh of a storage pool found, and why it fails; texts in pools.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import (
    errors_of,
    no_return,
    path_in,
    quoted_errors,
    said,
    text_of,
)
from virtrace.analysis.explain.model import Catalogue, EachCall, Explainer, Fact, Nanoseconds
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.analysis.values.meaning import one_of
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

_API = "virStoragePoolRefresh"
_VOLUME = "volume"
_MOST_QUOTED = 20


@dataclass(frozen=True)
class PoolCase(model.Case):
    """One refresh."""

    call: Call

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
        return {
            "pool": self.subject[0],
            "error": self.error,
            "what": path_in(self.error) or "the pool's source",
            "volumes": _count(len(self.points(_VOLUME)), "volume"),
            "errors": _count(len(self.call.errors()), "error"),
            "got_over": said(self.call.errors()),
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        ns = self.call.root.duration_ns
        return {"duration": None if ns is None else Nanoseconds(ns)}

    @property
    def key(self) -> object:
        return self.call.id

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
        ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_CAUSES: Catalogue[PoolCase] = Catalogue(Path(__file__).with_name("pools.yaml"))
EXPLAINER = Explainer(
    "pools",
    frozenset({_API}),
    _CAUSES,
    lambda _: EachCall(lambda call: PoolCase(call) if call.root.name == _API else None),
)


@_CAUSES.condition("incomplete")
def _incomplete(case: PoolCase) -> list[Evidence] | None:
    return no_return(case.call)


def _has(case: PoolCase, *texts: str) -> list[Evidence] | None:
    if not case.call.failed or not any(text in (case.error or "") for text in texts):
        return None
    return list(quoted_errors(case.call))


@_CAUSES.condition("missing")
def _missing(case: PoolCase) -> list[Evidence] | None:
    return _has(case, "No such file or directory")


@_CAUSES.condition("no-permission")
def _no_permission(case: PoolCase) -> list[Evidence] | None:
    return _has(case, "Permission denied")


@_CAUSES.condition("busy")
def _busy(case: PoolCase) -> list[Evidence] | None:
    return _has(case, "has asynchronous jobs running")


@_CAUSES.condition("inactive")
def _inactive(case: PoolCase) -> list[Evidence] | None:
    return _has(case, "is not active")


@_CAUSES.condition("error")
def _error(case: PoolCase) -> list[Evidence] | None:
    return _has(case, "")


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
