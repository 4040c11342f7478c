"""What became of snapshots that were taken, reverted to or deleted; texts in snapshots.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.commands import (
    FollowedCase,
    FollowingReader,
    arguments_of,
    monitor_of,
    register_failures,
)
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Traced
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.markup import parse_xml
from virtrace.trace.format import Event, Json

_TAKE, _REVERT, _DELETE = "taken", "reverted to", "deleted"
_APIS = {
    "virDomainSnapshotCreateXML": _TAKE,
    "virDomainRevertToSnapshot": _REVERT,
    "virDomainSnapshotDelete": _DELETE,
}
# VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE, VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY.
_ONLY_RECORD = {_TAKE: 1, _DELETE: 2}
_STOP, _RESUME = "STOP", "RESUME"
_MERGES = ("block-commit", "block-stream")


class SnapshotCase(FollowedCase):
    """One call about a snapshot."""

    @property
    def kind(self) -> str:
        return _APIS[self.call.root.name]

    @cached_property
    def snapshot(self) -> str:
        """The snapshot's name."""
        name, text = (self.call.root.arguments.get(each) for each in ("name", "snapshot"))
        if isinstance(name, str):
            return name
        try:
            found = parse_xml(text if isinstance(text, str) else "").findtext("name")
        except ValueError:
            found = None
        return found or "a snapshot"

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self.snapshot

    @property
    def names(self) -> Mapping[str, Json]:
        return {**super().names, "snapshot": self.snapshot, "kind": self.kind}

    @cached_property
    def internal(self) -> Exchange | None:
        """The command that writes a snapshot into the images, or reads one from them."""
        job = self.command("snapshot-save", "snapshot-load", "snapshot-delete")
        if job is not None:
            return job
        lines = (
            each
            for each in self.commands
            if str(arguments_of(each).get("command-line")).startswith(
                ("savevm ", "loadvm ", "delvm ")
            )
        )
        return next(lines, None)

    @cached_property
    def overlays(self) -> list[tuple[str, str | None, Exchange]]:
        """The new image of each disk, the one below it, and the command that changed over."""
        changed = self.command("transaction")
        if changed is None:
            return []
        found: list[tuple[str, str | None, Exchange]] = []
        actions = arguments_of(changed).get("actions")
        for action in actions if isinstance(actions, list) else []:
            data = action.get("data") if isinstance(action, dict) else None
            if isinstance(data, dict) and action.get("type") == "blockdev-snapshot":
                node = data.get("overlay")
                found.append((self._file(node) or str(node), self._below(node), changed))
        return found

    def _added(self, node: Json) -> Mapping[str, Json]:
        """Return the definition by which a node was added in the call; empty if it was not."""
        added = (arguments_of(each) for each in self.commands if each.command == "blockdev-add")
        return next((each for each in added if each.get("node-name") == node), {})

    def _file(self, node: Json) -> str | None:
        """Return the file of a node that was added in the call."""
        name = self._added(self._added(node).get("file")).get("filename")
        return name if isinstance(name, str) else None

    def _below(self, node: Json) -> str | None:
        """Return the backing file with which the image of a node was made in the call."""
        storage = self._added(node).get("file")
        for each in self.commands:
            options = arguments_of(each).get("options")
            if each.command == "blockdev-create" and isinstance(options, dict):
                backing = options.get("backing-file")
                if options.get("file") == storage and isinstance(backing, str):
                    return backing
        return None

    @property
    def paused(self) -> tuple[Event, Event] | None:
        """When QEMU paused the guest in the call, and when the guest went on."""
        began, ended = self.call.root.t_enter_ns, self.call.root.t_exit_ns
        stops, resumes = (
            [
                event
                for monitor in {monitor_of(each.send) for each in self.commands}
                for event in self.events.between(monitor, name, began, ended)
            ]
            for name in (_STOP, _RESUME)
        )
        return (stops[0], resumes[-1]) if self.kind == _TAKE and stops and resumes else None

    @property
    def facts(self) -> Sequence[Fact]:
        shown = [*super().facts]
        for file, below, changed in self.overlays:
            shown.append(
                Fact("a disk uses", file, f"over {below}" if below else "", changed.send.seq)
            )
        if self.paused is not None:
            stop, resume = self.paused
            ns = Nanoseconds(resume.t_ns - stop.t_ns)
            shown.append(Fact("guest paused", ns, "by QEMU, for the snapshot", stop.seq))
        return shown


def _reader(traced: Traced) -> FollowingReader[SnapshotCase]:
    return FollowingReader(traced, SnapshotCase, _APIS, (_STOP, _RESUME))


_CAUSES: Catalogue[SnapshotCase] = Catalogue(Path(__file__).with_name("snapshots.yaml"))
EXPLAINER = Explainer("snapshots", _CAUSES, _reader)
# What the message of libvirt, QEMU or the kernel has, by cause; one text has to be there.
_MESSAGES = {
    "no-agent": ("guest agent is not", "Guest agent is not", "Guest agent not"),
    "file-exists": ("already exists and is not a block device",),
    "name-taken": ("domain moment ",),
    "missing-file": ("No such file or directory",),
    "no-permission": ("Permission denied", "Operation not permitted"),
    "no-space": ("No space left on device",),
    "raw-image": ("unsupported for storage type",),
    "external": (
        *("external snapshot not supported", "external disk snapshots not supported"),
        *("deletion of active external snapshot", "deletion of non-leaf external snapshot"),
    ),
    "not-in-image": ("does not have the requested snapshot",),
    "has-job": ("in active block job", "has active block job"),
}
register_failures(_CAUSES, _MESSAGES)


def _evidence(commands: Sequence[Exchange]) -> list[Evidence]:
    return [Evidence(f"QEMU did it: {each.command}", None, each.send.seq) for each in commands]


@_CAUSES.condition("record-only")
def _record_only(case: SnapshotCase) -> list[Evidence] | None:
    return [] if case.succeeded and case.flags & _ONLY_RECORD.get(case.kind, 0) else None


@_CAUSES.condition("taken-external")
def _taken_external(case: SnapshotCase) -> list[Evidence] | None:
    if case.kind != _TAKE or not case.succeeded or not case.overlays:
        return None
    return _evidence([changed for *_, changed in case.overlays[:1]])


@_CAUSES.condition("taken-internal")
def _taken_internal(case: SnapshotCase) -> list[Evidence] | None:
    taken = case.kind == _TAKE and case.succeeded and case.internal
    return _evidence([taken]) if taken else None


@_CAUSES.condition("taken-without-qemu")
def _taken_without_qemu(case: SnapshotCase) -> list[Evidence] | None:
    return [] if case.kind == _TAKE and case.succeeded and not case.commands else None


@_CAUSES.condition("reverted-anew")
def _reverted_anew(case: SnapshotCase) -> list[Evidence] | None:
    begun = case.command("qmp_capabilities")
    if case.kind != _REVERT or not case.succeeded or begun is None:
        return None
    return [Evidence("a new QEMU answered: qmp_capabilities", None, begun.send.seq)]


@_CAUSES.condition("reverted")
def _reverted(case: SnapshotCase) -> list[Evidence] | None:
    if case.kind != _REVERT or not case.succeeded:
        return None
    return _evidence([case.internal]) if case.internal else []


@_CAUSES.condition("merged")
def _merged(case: SnapshotCase) -> list[Evidence] | None:
    merges = [each for each in case.commands if each.command in _MERGES and not each.failed]
    return _evidence(merges) if case.kind == _DELETE and case.succeeded and merges else None


@_CAUSES.condition("deleted")
def _deleted(case: SnapshotCase) -> list[Evidence] | None:
    if case.kind != _DELETE or not case.succeeded:
        return None
    return _evidence([case.internal]) if case.internal else []
