"""What became of migrations, on the host that is left or on the one that receives.

Conditions here, texts in migrations.yaml. Numbers of types and details: libvirt's
include/libvirt/libvirt-domain.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import (
    AskingCase,
    commands_of,
    data_of,
    event_name,
    monitor_of,
)
from virtrace.analysis.explain.messages import (
    UNSEEN,
    brief,
    errors_of,
    no_return,
    path_in,
    quoted,
    said,
    text_of,
)
from virtrace.analysis.explain.model import (
    Bytes,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    Traced,
    events_in,
    register_messages,
)
from virtrace.analysis.explain.refusals import Refusal
from virtrace.analysis.quoted import Evidence, Quoted
from virtrace.analysis.spans import Call
from virtrace.markup import parse_xml
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

_BEGIN, _PERFORM, _CONFIRM = (
    f"virDomainMigrate{phase}3Params" for phase in ("Begin", "Perform", "Confirm")
)
_PREPARE, _TUNNEL, _FINISH = (
    f"virDomainMigrate{phase}3Params" for phase in ("Prepare", "PrepareTunnel", "Finish")
)
_PHASES = {
    _BEGIN: "begin: makes the definition",
    _PREPARE: "prepare: starts a QEMU that waits for the data",
    _TUNNEL: "prepare: starts a QEMU that waits for the data",
    _PERFORM: "perform: sends the guest",
    _FINISH: "finish: lets the guest run here",
    _CONFIRM: "confirm: removes the guest here",
}
_AFTER_FAILURE = {
    _FINISH: "finish: removes, after a failure, what is here",
    _CONFIRM: "confirm: lets the guest go on here, after a failure",
}
_OPENING = (_BEGIN, _PREPARE, _TUNNEL)
# What libvirt says became of a guest: the probe, and a virDomainEventType.
_BECAME = "guest.became"
_STOPPED = 5
# What QEMU says if the data end too early.
_CUT = re.compile(r"Input/output error|failed: -5")
# The same where it read zeros for the data that were missing; but also if it was sent nonsense.
_CUT_OR_WRONG = re.compile(rf"{_CUT.pattern}|Not a migration stream|migration flags: (0x)?0\b")
_ENDED = "closed the monitor"
_MS = 1_000_000
_MOST_CASES = 1000
_MOST_EVENTS = 10_000


@dataclass
class MigrationCase(model.Case):
    """A migration of a domain, as one of the two hosts sees it.

    calls_made: its phases, in order of time.
    happened: events of this host while it ran, in order of time: errors of no call, states of
    QEMU's migration, what became of the domain.
    """

    traced: Traced
    calls_made: list[Call]
    happened: list[Event] = field(default_factory=list)

    @property
    def first(self) -> Call:
        return self.calls_made[0]

    def phase(self, *names: str) -> Call | None:
        """The last call of these phases."""
        found = [call for call in self.calls_made if call.root.name in names]
        return found[-1] if found else None

    @property
    def is_here(self) -> bool:
        """Whether this host receives the domain."""
        return self.first.root.name in (_PREPARE, _TUNNEL, _FINISH)

    @cached_property
    def domain(self) -> str:
        return next(filter(None, map(_domain_of, self.calls_made)), "a guest")

    @cached_property
    def failed(self) -> AskingCase | None:
        """The first phase that failed. Finish returns NULL, too, if another one did."""
        for call in self.calls_made:
            if call.failed and not _is_cancelled(call):
                return AskingCase(call, self.traced.failure(call))
        return None

    def failed_with(self, texts: Iterable[str]) -> list[Evidence] | None:
        return self.failed.failed_with(texts) if self.failed else None

    @property
    def error(self) -> str | None:
        """The message that the client got of the phase that failed."""
        return self.failed.error if self.failed else None

    @cached_property
    def ended(self) -> list[Event]:
        """What this host noticed of the end of its QEMU while no call was made."""
        return [each for each in self._of(roles.ERROR) if _ENDED in (text_of(each) or "")]

    @cached_property
    def stopped(self) -> Event | None:
        """What became of the domain, if it was ended before the last phase."""
        until = self.calls_made[-1].root
        for each in self.happened:
            if each.name != _BECAME:
                continue
            if each.values.get("type") == _STOPPED and each.values.get("domain") == self.domain:
                is_last = until.name in _OPENING or each.t_ns < until.t_enter_ns
                return each if is_last else None
        return None

    def _of(self, role: str) -> list[Event]:
        return [each for each in self.happened if each.role == role]

    @property
    def refusal(self) -> Refusal:
        return self.failed.refusal if self.failed else Refusal(None, None)

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain,)

    @property
    def names(self) -> Mapping[str, Json]:
        what = path_in(self.error) or "a file"
        return {
            "domain": self.domain,
            "error": self.error or UNSEEN,
            "words": brief(said(self.ended)) or UNSEEN,
            "phase": _PHASES[self.calls_made[-1].root.name].partition(":")[0],
            "denied": self.refusal.names(what)["denied"],
            "missing": self.refusal.names(what)["missing"],
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        until = self.calls_made[-1].root
        end = until.t_exit_ns or until.t_enter_ns
        return {"duration": Nanoseconds(max(end - self.first.root.t_enter_ns, 0))}

    @property
    def key(self) -> object:
        return self.first.id

    @property
    def note(self) -> str | None:
        texts = (text for name in _OF_FILES for text in _MESSAGES[name])
        asks = any(text in (self.error or "") for text in texts)
        return self.refusal.note if asks else None

    @property
    def facts(self) -> Sequence[Fact]:
        shown = [_phase(call) for call in self.calls_made]
        monitors = {monitor_of(each.send) for call in self.calls_made for each in commands_of(call)}
        begun = self.first.root.t_enter_ns
        for each in self._of(roles.QMP_EVENT):
            if monitor_of(each) in monitors:
                state = data_of(each).get("status")
                words = f"QEMU: {event_name(each)}" + (f" ({state})" if state else "")
                ns = Nanoseconds(max(each.t_ns - begun, 0))
                shown.append(Fact(words, ns, "after it began", each.seq))
        return [*shown, *_figures(self.phase(_PERFORM)), *self.refusal.facts]

    @property
    def calls(self) -> Sequence[int | None]:
        return [call.id for call in self.calls_made]


def _phase(call: Call) -> Fact:
    ns = call.root.duration_ns
    took = "not seen to end" if ns is None else Nanoseconds(ns)
    name = call.root.name.removeprefix("virDomainMigrate").removesuffix("3Params")
    if _is_cancelled(call):
        return Fact(_AFTER_FAILURE[call.root.name], took, name, call.root.exit_seq)
    how = f"{name} failed" if call.failed else name
    return Fact(_PHASES[call.root.name], took, how, call.root.exit_seq)


def _figures(perform: Call | None) -> Iterator[Fact]:
    """Yield what QEMU reported last of a migration that it had completed."""
    for each in reversed(commands_of(perform, "query-migrate") if perform else []):
        reply = each.reply
        if reply is None:
            continue
        answer = Quoted(reply.values, "query-migrate", reply.seq).get("json", "return")
        if answer is None or answer.text("status") != "completed":
            return
        for name, keys, unit in (
            ("QEMU: in all", ("total-time",), _MS),
            ("QEMU: the guest stood still", ("downtime",), _MS),
            ("QEMU: sent", ("ram", "transferred"), 0),
        ):
            found = answer.number(*keys)
            if found is not None:
                value = Nanoseconds(found.value * unit) if unit else Bytes(found.value)
                yield Fact(name, value, "", found.seq, found.path)
        return


def _domain_of(call: Call) -> str | None:
    """Return the name of the domain on this host."""
    values = call.root.arguments
    params = values.get("params")
    params = params if isinstance(params, dict) else {}
    # On the host that is left, parameters have the name that it gets.
    for name in (values.get("domain"), params.get("destination_name")):
        if isinstance(name, str):
            return name
    xml = params.get("destination_xml")
    try:
        return parse_xml(xml).findtext("name") if isinstance(xml, str) else None
    except ValueError:
        return None


def _opens(call: Call) -> bool:
    """Whether it is the first phase. Peer to peer, which names the other host, perform has all."""
    name, destination = call.root.name, call.root.arguments.get("destination")
    return name in _OPENING or (name == _PERFORM and isinstance(destination, str))


def _is_cancelled(call: Call) -> bool:
    return bool(call.root.arguments.get("cancelled"))


class _Reader:
    """Joins the phases of each domain; they are known when the trace ends."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._cases: list[MigrationCase] = []
        self._events: list[Event] = []

    def take(self, node: Node) -> Sequence[MigrationCase]:
        for event in events_in(node):
            self._keep(event)
        if isinstance(node, Call) and node.root.name in _PHASES and len(self._cases) < _MOST_CASES:
            self._cases.append(MigrationCase(self._traced, [node]))
        return ()

    def _keep(self, event: Event) -> None:
        apart = event.role == roles.ERROR and event.call is None
        wanted = apart or event.name == _BECAME
        wanted = wanted or (event.role == roles.QMP_EVENT and event_name(event) in _STATES)
        if wanted and len(self._events) < _MOST_EVENTS:
            self._events.append(event)

    def finish(self, end_ns: int) -> Iterator[MigrationCase]:
        joined: list[MigrationCase] = []
        last: dict[tuple[str, bool], MigrationCase] = {}
        for case in sorted(self._cases, key=lambda each: each.first.root.t_enter_ns):
            key = case.domain, case.is_here
            before = last.get(key)
            if before is not None and not _opens(case.first):
                before.calls_made.append(case.first)
            else:
                joined.append(case)
                last[key] = case
            if case.first.root.name in (_FINISH, _CONFIRM):
                last.pop(key, None)
        events = sorted(self._events, key=lambda each: (each.t_ns, each.seq))
        for at, case in enumerate(joined):
            begun = case.first.root.t_enter_ns
            later = (
                each.first.root.t_enter_ns
                for each in joined[at + 1 :]
                if each.domain == case.domain and each.is_here == case.is_here
            )
            until = next(later, end_ns)
            case.happened = [each for each in events if begun <= each.t_ns <= until]
        yield from joined


# QEMU's events that tell how far it is.
_STATES = ("MIGRATION", "STOP", "RESUME")
_CAUSES: Catalogue[MigrationCase] = Catalogue(Path(__file__).with_name("migrations.yaml"))
EXPLAINER = Explainer("migrations", _CAUSES, _Reader)
# What the message of a phase that failed has, by cause; one text has to be there.
_MESSAGES = {
    "cancelled": ("canceled by client", "cancelled by client"),
    "unsafe": ("Unsafe migration",),
    "same-host": ("to the same host", "to localhost"),
    "name-taken": ("already exists with uuid", "is already active", "is already running"),
    "cpu": ("incompatible with host CPU", "guest CPU doesn't match", "CPU is incompatible"),
    "no-listener": ("Failed to bind socket", "Address already in use", "Unable to find an unused"),
    "no-permission": ("Permission denied", "Operation not permitted"),
    "missing-file": ("No such file or directory", "missing backing store"),
}
_UNREACHABLE = (
    *("Failed to connect to", "nable to connect to", "onnect to remote libvirt URI"),
    *("unable to resolve", "Unable to resolve", "ailed to connect socket"),
    *("Unable to write to socket", "Unable to read from socket"),
)
# Of these, the host can say more.
_OF_FILES = ("no-listener", "no-permission", "missing-file")


register_messages(_CAUSES, _MESSAGES)


def _phase_evidence(call: Call, text: str) -> list[Evidence]:
    return [Evidence(text, None, call.root.exit_seq)]


@_CAUSES.condition("incomplete")
def _incomplete(case: MigrationCase) -> list[Evidence] | None:
    return no_return(case.calls_made[-1])


@_CAUSES.condition("moved")
def _moved(case: MigrationCase) -> list[Evidence] | None:
    last = case.calls_made[-1]
    done = last.root.name == _CONFIRM or (last.root.name == _PERFORM and _opens(last))
    if not done or case.failed or _is_cancelled(last) or last.root.returned is None:
        return None
    return _phase_evidence(last, f"{last.root.name} returned 0")


@_CAUSES.condition("arrived")
def _arrived(case: MigrationCase) -> list[Evidence] | None:
    finish = case.phase(_FINISH)
    if finish is None or _is_cancelled(finish) or finish.failed or finish.root.returned is None:
        return None
    if finish.root.returns_null:
        return None
    return _phase_evidence(finish, "Finish returned the domain")


@_CAUSES.condition("qemu-ended")
def _qemu_ended(case: MigrationCase) -> list[Evidence] | None:
    cut = _CUT_OR_WRONG if _given_up_there(case) else _CUT
    if not case.is_here or any(cut.search(text_of(each) or "") for each in case.ended):
        return None
    return list(quoted(case.ended, is_apart=False)) or None


@_CAUSES.condition("given-up-there")
def _given_up_there(case: MigrationCase) -> list[Evidence] | None:
    finish = case.phase(_FINISH)
    if finish is None or not _is_cancelled(finish):
        return None
    said_so = Evidence("the other host said so: cancelled is 1", None, finish.root.exit_seq)
    return [said_so, *quoted(case.ended, is_apart=False)]


@_CAUSES.condition("unreachable")
def _unreachable(case: MigrationCase) -> list[Evidence] | None:
    """Libvirt 7.0.0 makes the message where no probe sees it; which file it is of tells it, too."""
    failed = case.failed
    if failed is None or any(map(text_of, errors_of(failed.call))):
        return case.failed_with(_UNREACHABLE)
    places = [event for event in events_in(failed.call) if event.role == roles.ERROR_PLACE]
    if not places or not str(places[-1].values.get("file")).endswith("/virnetsocket.c"):
        return None
    return [Evidence("raised where libvirt connects to a socket", None, places[-1].seq, ".file")]


@_CAUSES.condition("connection-lost")
def _connection_lost(case: MigrationCase) -> list[Evidence] | None:
    if not case.is_here or case.phase(_FINISH) or case.failed or case.stopped is None:
        return None
    return [Evidence("libvirt stopped the guest here", None, case.stopped.seq)]


@_CAUSES.condition("receiving")
def _receiving(case: MigrationCase) -> list[Evidence] | None:
    last = case.calls_made[-1]
    if last.root.name not in (_PREPARE, _TUNNEL) or case.failed or case.stopped:
        return None
    return None if last.root.returned is None else _phase_evidence(last, "Finish was not called")


@_CAUSES.condition("refused-there")
def _refused_there(case: MigrationCase) -> list[Evidence] | None:
    confirm = case.phase(_CONFIRM)
    if confirm is None or not _is_cancelled(confirm) or case.phase(_PERFORM):
        return None
    return _phase_evidence(confirm, "nothing was sent, and the client gave it up")


@_CAUSES.condition("failed-there")
def _failed_there(case: MigrationCase) -> list[Evidence] | None:
    confirm, perform = case.phase(_CONFIRM), case.phase(_PERFORM)
    if confirm is None or not _is_cancelled(confirm) or perform is None or perform.failed:
        return None
    return _phase_evidence(confirm, "all was sent, and the other host did not take it")


@_CAUSES.condition("error")
def _error(case: MigrationCase) -> list[Evidence] | None:
    return case.failed_with([""])


@_CAUSES.condition("unknown")
def _unknown(case: MigrationCase) -> list[Evidence]:
    return []
