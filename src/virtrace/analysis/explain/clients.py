"""What became of the calls of clients; texts in clients.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis import rpc
from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import UNSEEN, errors_of, quoted_errors, said
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# A call that waited longer for a worker is delayed, ns.
DELAYED_NS = 100_000_000
_MOST_GROUPS = 300
_MOST_CLIENTS = 1000
_NAMES_SHOWN = 3


@dataclass
class ClientsCase(model.Case):
    """Calls of clients with which the same happened.

    kind: `unserved` (no worker took it), `running` (not returned), `delayed` (waited for a worker),
    `failed`; or of all calls of the trace, `well`, or `lost` if no return is in it.
    procedure: their procedure; of several, that of the worst.
    first: the first one; None if no worker took it. worst_ns: the longest time of the kind; None if
    none is known.
    processes: by process id of the client, the number of calls.
    """

    kind: str
    procedure: str
    first: Call | None
    received: Event | None = None
    count: int = 0
    worst_ns: int | None = None
    processes: dict[int, int] = field(default_factory=dict)
    of_calls: list[int | None] = field(default_factory=list)

    def add(self, call: Call | None, ns: int | None, procedure: str) -> None:
        self.count += 1
        if ns is not None and ns > (self.worst_ns or -1):
            self.worst_ns, self.procedure = ns, procedure
        process = ((call.client or {}) if call else {}).get("process-id")
        if type(process) is int and (
            process in self.processes or len(self.processes) < _MOST_CLIENTS
        ):
            self.processes[process] = self.processes.get(process, 0) + 1
        if call is not None and len(self.of_calls) < _MOST_GROUPS:
            self.of_calls.append(call.id)

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.procedure if self.kind in ("failed", "running") else "clients",)

    @property
    def names(self) -> Mapping[str, Json]:
        error = said(errors_of(self.first)) if self.first else None
        return {
            "since": "the first of them began" if self.count > 1 else "it began",
            "procedure": self.procedure,
            "calls": f"{self.count:,} call{'s' if self.count > 1 else ''}",
            "error": error or UNSEEN,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        clients = len(self.processes)
        longest = None if self.worst_ns is None else Nanoseconds(self.worst_ns)
        return {"longest": longest, "clients": clients}

    @property
    def key(self) -> object:
        return self.kind, self.first.id if self.first else None

    @property
    def facts(self) -> Sequence[Fact]:
        most = sorted(self.processes.items(), key=lambda item: -item[1])[:_NAMES_SHOWN]
        return [
            Fact("calls", self.count),
            *(
                [Fact("longest", Nanoseconds(self.worst_ns), self.procedure)]
                if self.worst_ns is not None
                else []
            ),
            *(Fact(f"process {process}", number, "of them") for process, number in most),
        ]

    @property
    def calls(self) -> Sequence[int | None]:
        return self.of_calls if self.kind not in ("well", "lost") else ()


class _Reader:
    def __init__(self) -> None:
        self._groups: dict[object, ClientsCase] = {}
        self._open: list[Call] = []
        self._unserved: list[Event] = []
        self._all: ClientsCase | None = None

    def take(self, node: Node) -> Sequence[ClientsCase]:
        if isinstance(node, Point) and rpc.is_call(node.event):
            if len(self._unserved) < _MOST_GROUPS:
                self._unserved.append(node.event)
        elif isinstance(node, Call) and node.root.role == roles.RPC_CALL:
            self._called(node)
        return ()

    def _called(self, call: Call) -> None:
        name = _plain(call)
        ns = call.root.duration_ns
        if self._all is None:
            self._all = ClientsCase("well", name, call)
        self._all.add(call, ns, name)
        if ns is None:
            if call.root.unfinished and len(self._open) < _MOST_GROUPS:
                self._open.append(call)
        elif call.failed:
            self._add("failed", (name, said(errors_of(call))), call, ns)
        if call.queued_ns is not None and call.queued_ns >= DELAYED_NS:
            self._add("delayed", None, call, call.queued_ns)

    def _add(self, kind: str, alike: object, call: Call, ns: int) -> None:
        key = kind, alike
        if key in self._groups or len(self._groups) < _MOST_GROUPS:
            name = _plain(call)
            self._groups.setdefault(key, ClientsCase(kind, name, call)).add(call, ns, name)

    def finish(self, end_ns: int) -> Iterator[ClientsCase]:
        if self._unserved:
            case = ClientsCase("unserved", "", None, self._unserved[0])
            for event in self._unserved:
                case.add(
                    None, max(end_ns - event.t_ns, 0), f"procedure {event.values.get('procedure')}"
                )
            yield case
        for call in self._open:
            self._add("running", _plain(call), call, max(end_ns - call.root.t_enter_ns, 0))
        order = ("running", "delayed", "failed")
        yield from sorted(
            self._groups.values(), key=lambda each: (order.index(each.kind), -each.count)
        )
        if self._all is not None and self._all.worst_ns is None:
            self._all.kind = "lost"
        if self._all is not None and (self._all.kind == "well" or not self._groups):
            yield self._all


def _plain(call: Call) -> str:
    procedure = call.procedure
    if procedure is not None:
        return procedure.removeprefix("remoteDispatch")
    return f"procedure {call.root.arguments.get('procedure')}"


_CAUSES: Catalogue[ClientsCase] = Catalogue(Path(__file__).with_name("clients.yaml"))
EXPLAINER = Explainer("clients", _CAUSES, lambda _: _Reader())


def _evidence(case: ClientsCase) -> list[Evidence]:
    if case.received is not None:
        return [Evidence("a message was received", None, case.received.seq)]
    return list(quoted_errors(case.first)) if case.first and case.kind == "failed" else []


def _register(name: str) -> None:
    @_CAUSES.condition(name)
    def condition(case: ClientsCase) -> list[Evidence] | None:
        return _evidence(case) if case.kind == name else None


for _name in ("unserved", "running", "delayed", "failed", "well"):
    _register(_name)


@_CAUSES.condition("unknown")
def _unknown(case: ClientsCase) -> list[Evidence]:
    return _evidence(case)
