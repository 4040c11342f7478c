"""What became of devices that were attached, changed or detached; texts in hotplugs.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import (
    arguments_of,
    command_facts,
    commands_of,
    data_of,
    event_name,
    monitor_of,
    refusal,
    refused_with,
)
from virtrace.analysis.explain.messages import UNSEEN, brief, errors_of, no_return, path_in, told
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node, Traced
from virtrace.analysis.explain.refusals import Refusal
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.markup import parse_xml
from virtrace.trace import roles
from virtrace.trace.format import Event, FailureRecord, Json

_ATTACH, _UPDATE, _DETACH = "attached", "changed", "detached"
_APIS = {
    "virDomainAttachDevice": _ATTACH,
    "virDomainAttachDeviceFlags": _ATTACH,
    "virDomainUpdateDeviceFlags": _UPDATE,
    "virDomainDetachDevice": _DETACH,
    "virDomainDetachDeviceFlags": _DETACH,
    "virDomainDetachDeviceAlias": _DETACH,
}
_RELEASED = "DEVICE_DELETED"
_KEPT = ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")
# Calls, and events of QEMU, beyond these are not kept.
_MOST_CALLS = 1000
_MOST_EVENTS = 10_000


@dataclass
class HotplugCase(model.Case):
    """One call about a device.

    events: all of QEMU's events about devices, in order of time. end_ns: of the trace.
    said: by the host, as the call failed.
    """

    call: Call
    events: Sequence[Event]
    end_ns: int
    said: FailureRecord | None = None

    @property
    def kind(self) -> str:
        return _APIS[self.call.root.name]

    @cached_property
    def error(self) -> str | None:
        """The message that the client got."""
        return brief(told(self.call, errors_of(self.call)))

    @cached_property
    def commands(self) -> list[Exchange]:
        return commands_of(self.call)

    def command(self, name: str) -> Exchange | None:
        """Return the last command of this name that QEMU did not refuse."""
        found = [each for each in self.commands if each.command == name and not each.failed]
        return found[-1] if found else None

    def event(self, *names: str) -> Event | None:
        """Return QEMU's first such event about the device that it was asked to remove."""
        asked = self.command("device_del")
        if asked is None:
            return None
        monitor, id_ = monitor_of(asked.send), arguments_of(asked).get("id")
        return next(
            (
                each
                for each in self.events
                if each.t_ns >= asked.send.t_ns
                and event_name(each) in names
                and monitor_of(each) == monitor
                and data_of(each).get("device") == id_
            ),
            None,
        )

    @cached_property
    def released(self) -> Event | None:
        return self.event(_RELEASED)

    @property
    def is_late(self) -> bool:
        """Whether the guest let go of the device only after the call had returned."""
        returned = self.call.root.t_exit_ns
        return self.released is not None and returned is not None and self.released.t_ns > returned

    @property
    def subject(self) -> tuple[str, ...]:
        return str(self.call.root.arguments.get("domain")), _device(self.call)

    @property
    def names(self) -> Mapping[str, Json]:
        domain, device = self.subject
        what = path_in(self.error) or "a file"
        return {
            "domain": domain,
            "device": device,
            "kind": self.kind,
            "error": self.error or UNSEEN,
            "file": path_in(self.error),
            "what": what,
            **self.refusal.names(what),
        }

    @property
    def refusal(self) -> Refusal:
        return Refusal(self.said, self.error)

    @property
    def note(self) -> str | None:
        return self.refusal.note if self.call.failed else None

    @property
    def numbers(self) -> Mapping[str, int | None]:
        asked, ns = self.command("device_del"), self.call.root.duration_ns
        until = self.released.t_ns if self.released else self.end_ns
        return {
            "duration": None if ns is None else Nanoseconds(ns),
            "since": None if asked is None else Nanoseconds(max(until - asked.send.t_ns, 0)),
        }

    @property
    def key(self) -> object:
        return self.call.id

    @property
    def facts(self) -> Sequence[Fact]:
        shown = [*command_facts(self.call)]
        asked = self.command("device_del")
        for event in (self.event(*_KEPT), self.released):
            if event is not None and asked is not None:
                ns = Nanoseconds(event.t_ns - asked.send.t_ns)
                shown.append(Fact(f"QEMU: {event_name(event)}", ns, "after device_del", event.seq))
        return [*shown, *self.refusal.facts]

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.call.id]


def _device(call: Call) -> str:
    """Return what a call is about, such as `disk vdb`, in the words of the device's XML."""
    alias, text = (call.root.arguments.get(name) for name in ("alias", "device"))
    if isinstance(alias, str):
        return alias
    try:
        device = parse_xml(text if isinstance(text, str) else "")
    except ValueError:
        return "a device"
    for path, attribute in (("target", "dev"), ("mac", "address"), ("alias", "name")):
        found = device.find(path)
        name = None if found is None else found.get(attribute)
        if name:
            return f"{device.tag} {name}"
    return device.tag


@dataclass
class _Reader:
    """A guest can let go of a device after the call."""

    _traced: Traced
    _calls: list[Call] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    def take(self, node: Node) -> Sequence[HotplugCase]:
        if isinstance(node, Call):
            for each in node.nodes():
                if isinstance(each, Point):
                    self._happened(each.event)
            if node.root.name in _APIS and len(self._calls) < _MOST_CALLS:
                self._calls.append(node)
        elif isinstance(node, Point):
            self._happened(node.event)
        return ()

    def _happened(self, event: Event) -> None:
        kept = event.role == roles.QMP_EVENT and event_name(event) in (_RELEASED, *_KEPT)
        if kept and len(self._events) < _MOST_EVENTS:
            self._events.append(event)

    def finish(self, end_ns: int) -> Iterator[HotplugCase]:
        events = sorted(self._events, key=lambda each: (each.t_ns, each.seq))
        said = self._traced.failure
        return (HotplugCase(call, events, end_ns, said(call)) for call in self._calls)


_CAUSES: Catalogue[HotplugCase] = Catalogue(Path(__file__).with_name("hotplugs.yaml"))
EXPLAINER = Explainer("hotplugs", frozenset(_APIS), _CAUSES, _Reader)
# What the message of libvirt, QEMU or the kernel has, by cause; one text has to be there.
_MESSAGES = {
    "taken": ("duplicated for disk sources", "already exists", "Duplicate "),
    "missing-file": ("No such file or directory",),
    "no-permission": ("Permission denied", "Operation not permitted"),
    "locked": ('" lock',),
    "no-hotplug": ("does not support hotplugging", "is not hot-pluggable"),
    "no-slot": ("No more available PCI", "no free slot", "PCI slot"),
    "not-there": (
        *("no device found with alias", "no target device", "not found", "no device matching"),
        *("no matching", "not present"),
    ),
    "asked-before": ("in the process of unplug",),
    "not-running": ("is not running",),
    "error": ("",),
}


def _register(name: str, texts: tuple[str, ...]) -> None:
    @_CAUSES.condition(name)
    def condition(case: HotplugCase) -> list[Evidence] | None:
        said = refused_with(texts, case.call, case.error)
        return None if said is None else [*said, *case.refusal.evidence]


for _name, _texts in _MESSAGES.items():
    _register(_name, _texts)


@_CAUSES.condition("incomplete")
def _incomplete(case: HotplugCase) -> list[Evidence] | None:
    return no_return(case.call)


def _succeeded(case: HotplugCase) -> bool:
    return case.call.root.returned is not None and not case.call.failed


def _of_event(event: Event | None) -> list[Evidence]:
    return [] if event is None else [Evidence(f"QEMU: {event_name(event)}", None, event.seq)]


@_CAUSES.condition("released")
def _released(case: HotplugCase) -> list[Evidence] | None:
    return _of_event(case.released) if case.released and not case.is_late else None


@_CAUSES.condition("released-late")
def _released_late(case: HotplugCase) -> list[Evidence] | None:
    return _of_event(case.released) if case.is_late else None


@_CAUSES.condition("kept")
def _kept(case: HotplugCase) -> list[Evidence] | None:
    kept = case.event(*_KEPT)
    return _of_event(kept) if kept and not case.released else None


@_CAUSES.condition("unanswered")
def _unanswered(case: HotplugCase) -> list[Evidence] | None:
    asked = case.command("device_del")
    if asked is None or case.released or not _succeeded(case):
        return None
    return [Evidence("QEMU was asked to remove it: device_del", None, asked.send.seq)]


@_CAUSES.condition("attached")
def _attached(case: HotplugCase) -> list[Evidence] | None:
    added = case.command("device_add")
    if added is None or not _succeeded(case):
        return None
    return [Evidence("QEMU took the device: device_add", None, added.send.seq)]


@_CAUSES.condition("changed")
def _changed(case: HotplugCase) -> list[Evidence] | None:
    moved = case.command("device_add") or case.command("device_del")
    return [] if _succeeded(case) and case.commands and not moved else None


@_CAUSES.condition("not-asked")
def _not_asked(case: HotplugCase) -> list[Evidence] | None:
    return [] if _succeeded(case) and not case.commands else None


@_CAUSES.condition("unknown")
def _unknown(case: HotplugCase) -> list[Evidence]:
    return refusal(case.call) or []
