"""What became of devices that were attached, changed or detached; texts in hotplugs.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.commands import (
    FollowedCase,
    FollowingReader,
    arguments_of,
    event_name,
    of_event,
    register_failures,
)
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Traced
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.markup import parse_xml
from virtrace.trace.format import Event, Json

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


class HotplugCase(FollowedCase):
    """One call about a device."""

    @property
    def kind(self) -> str:
        return _APIS[self.call.root.name]

    def event(self, *names: str) -> Event | None:
        """Return QEMU's first such event about the device that it was asked to remove."""
        asked = self.command("device_del")
        id_ = None if asked is None else arguments_of(asked).get("id")
        if asked is None or not isinstance(id_, str):
            return None
        return self.events.first_after(asked.send, *names, device=id_)

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
        return self.domain, _device(self.call)

    @property
    def names(self) -> Mapping[str, Json]:
        _, device = self.subject
        return {**super().names, "device": device, "kind": self.kind}

    @property
    def numbers(self) -> Mapping[str, int | None]:
        asked = self.command("device_del")
        until = self.released.t_ns if self.released else self.end_ns
        since = None if asked is None else Nanoseconds(max(until - asked.send.t_ns, 0))
        return {**super().numbers, "since": since}

    @property
    def facts(self) -> Sequence[Fact]:
        shown = [*super().facts]
        asked = self.command("device_del")
        for event in (self.event(*_KEPT), self.released):
            if event is not None and asked is not None:
                ns = Nanoseconds(event.t_ns - asked.send.t_ns)
                shown.append(Fact(f"QEMU: {event_name(event)}", ns, "after device_del", event.seq))
        return shown


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


def _reader(traced: Traced) -> FollowingReader[HotplugCase]:
    # A guest can let go of a device after the call.
    return FollowingReader(traced, HotplugCase, _APIS, (_RELEASED, *_KEPT))


_CAUSES: Catalogue[HotplugCase] = Catalogue(Path(__file__).with_name("hotplugs.yaml"))
EXPLAINER = Explainer("hotplugs", _CAUSES, _reader)
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
}


register_failures(_CAUSES, _MESSAGES)


@_CAUSES.condition("released")
def _released(case: HotplugCase) -> list[Evidence] | None:
    return of_event(case.released) if case.released and not case.is_late else None


@_CAUSES.condition("released-late")
def _released_late(case: HotplugCase) -> list[Evidence] | None:
    return of_event(case.released) if case.is_late else None


@_CAUSES.condition("kept")
def _kept(case: HotplugCase) -> list[Evidence] | None:
    kept = case.event(*_KEPT)
    return of_event(kept) if kept and not case.released else None


@_CAUSES.condition("unanswered")
def _unanswered(case: HotplugCase) -> list[Evidence] | None:
    asked = case.command("device_del")
    if asked is None or case.released or not case.succeeded:
        return None
    return [Evidence("QEMU was asked to remove it: device_del", None, asked.send.seq)]


@_CAUSES.condition("attached")
def _attached(case: HotplugCase) -> list[Evidence] | None:
    added = case.command("device_add")
    if added is None or not case.succeeded:
        return None
    return [Evidence("QEMU took the device: device_add", None, added.send.seq)]


@_CAUSES.condition("changed")
def _changed(case: HotplugCase) -> list[Evidence] | None:
    moved = case.command("device_add") or case.command("device_del")
    return [] if case.succeeded and case.commands and not moved else None


@_CAUSES.condition("not-asked")
def _not_asked(case: HotplugCase) -> list[Evidence] | None:
    return [] if case.succeeded and not case.commands else None
