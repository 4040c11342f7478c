"""What became of backups and checkpoints; texts in backups.yaml."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from xml.etree.ElementTree import Element

from virtrace.analysis.explain.commands import (
    FollowedCase,
    FollowingReader,
    arguments_of,
    data_of,
    event_name,
    of_event,
    register_failures,
)
from virtrace.analysis.explain.messages import UNSEEN
from virtrace.analysis.explain.model import Bytes, Catalogue, Explainer, Fact, Traced
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.markup import parse_xml
from virtrace.trace.format import Event, Json

_BEGIN = "virDomainBackupBegin"
_ENDS = ("virDomainAbortJob", "virDomainAbortJobFlags")
_MAKE, _DELETE = "virDomainCheckpointCreateXML", "virDomainCheckpointDelete"
_APIS = (_BEGIN, *_ENDS, _MAKE, _DELETE)
# VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE, VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY.
_ONLY_RECORD = {_MAKE: 1, _DELETE: 2}
_COMPLETED, _CANCELLED = "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"
_SHUTDOWN = "SHUTDOWN"
_PULL = "pull"


@dataclass(frozen=True)
class BackupCase(FollowedCase):
    """One call about a backup or a checkpoint. ended_by: the call that ended the backup."""

    ended_by: Call | None = None

    @property
    def api(self) -> str:
        return self.call.root.name

    @cached_property
    def _xml(self) -> Element | None:
        """The definition of the backup, or of the checkpoint where there is no backup."""
        for name in ("backup", "checkpoint"):
            text = self.call.root.arguments.get(name)
            if isinstance(text, str):
                try:
                    return parse_xml(text)
                except ValueError:
                    return None
        return None

    @property
    def is_pull(self) -> bool:
        return self._xml is not None and self._xml.get("mode") == _PULL

    @property
    def what(self) -> str:
        """What the call is about, in words."""
        if self.api == _BEGIN:
            since = None if self._xml is None else self._xml.findtext("incremental")
            kind = f"incremental backup since {since}" if since else "full backup"
            return f"{kind}, to be pulled" if self.is_pull else kind
        if self.api in _ENDS:
            return "job"
        name = self.call.root.arguments.get("name")
        if not isinstance(name, str):
            name = None if self._xml is None else self._xml.findtext("name")
        return f"checkpoint {name}" if name else "checkpoint"

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self.what

    @property
    def names(self) -> Mapping[str, Json]:
        kind, *_ = self.what.split(",")
        if self.api == _DELETE:
            kind = f"deletion of the {kind}"
        return {**super().names, "kind": kind, "error": self.error or self.job_error or UNSEEN}

    @cached_property
    def jobs(self) -> dict[str, Event | None]:
        """QEMU's jobs, and the event with which each ended; None if it had not."""
        begun = self.command("transaction")
        if begun is None or self.api != _BEGIN:
            return {}
        ids = []
        actions = arguments_of(begun).get("actions")
        for action in actions if isinstance(actions, list) else []:
            data = action.get("data") if isinstance(action, dict) else None
            if isinstance(data, dict) and action.get("type") == "blockdev-backup":
                ids.append(str(data.get("job-id")))
        return {
            id_: self.events.first_after(begun.send, _COMPLETED, _CANCELLED, device=id_)
            for id_ in ids
        }

    @cached_property
    def over_ns(self) -> int | None:
        """When the last job ended; None if one had not."""
        ends = [event.t_ns if event is not None else None for event in self.jobs.values()]
        known = [each for each in ends if each is not None]
        return max(known) if known and len(known) == len(ends) else None

    def is_open_at(self, t_ns: int) -> bool:
        """Whether a job that the call began had not ended then."""
        began = self.call.root.t_enter_ns <= t_ns
        return bool(self.jobs) and began and (self.over_ns is None or self.over_ns > t_ns)

    @property
    def shutdown(self) -> Event | None:
        """QEMU's own end, before that of the jobs."""
        begun = self.command("transaction")
        end = None if begun is None else self.events.first_after(begun.send, _SHUTDOWN)
        return end if end is not None and self.is_open_at(end.t_ns) else None

    @property
    def job_error(self) -> str | None:
        """QEMU's error with which a job ended."""
        errors = [data_of(event).get("error") for event in self.jobs.values()]
        return next((each for each in errors if isinstance(each, str)), None)

    @property
    def first_end(self) -> Event | None:
        """The event with which a job ended early, or else the first."""
        ended = [each for each in self.jobs.values() if each is not None]
        early = [each for each in ended if event_name(each) == _CANCELLED]
        failed = [each for each in ended if "error" in data_of(each)]
        return next(iter([*failed, *early, *ended]), None)

    @property
    def facts(self) -> Sequence[Fact]:
        shown = [*super().facts]
        for id_, event in self.jobs.items():
            copied = data_of(event).get("offset")
            if event is None:
                shown.append(Fact(f"job {id_}", "had not ended"))
            elif type(copied) is int:
                ended = "when it ended" if event_name(event) == _COMPLETED else "when it was ended"
                shown.append(Fact(f"job {id_}", Bytes(copied), f"copied {ended}", event.seq))
        server = self.command("nbd-server-start")
        if server is not None:
            address = arguments_of(server).get("addr")
            data = address.get("data") if isinstance(address, dict) else None
            if isinstance(data, dict):
                place = data.get("path") or f"{data.get('host')}:{data.get('port')}"
                shown.append(Fact("served at", str(place), "(NBD)", server.send.seq))
        if self.ended_by is not None:
            shown.append(Fact("ended by", f"{self.ended_by.root.name}, call {self.ended_by.id}"))
        return shown


class _Reader(FollowingReader[BackupCase]):
    """Finds, for each call that ended a backup, which one that was."""

    def finish(self, end_ns: int) -> Sequence[BackupCase]:
        cases: list[BackupCase] = []
        # By domain.
        ends: dict[str, list[Call]] = {}
        for case in super().finish(end_ns):
            # One that ended a job of another kind is no case, either.
            if case.api in _ENDS and case.succeeded:
                ends.setdefault(case.domain, []).append(case.call)
            else:
                cases.append(case)
        for calls in ends.values():
            calls.sort(key=lambda each: each.root.t_enter_ns)
        times = {domain: [each.root.t_enter_ns for each in calls] for domain, calls in ends.items()}

        def ended_by(case: BackupCase) -> Call | None:
            """Return the last call that can have ended it."""
            begun = times.get(case.domain, [])
            before = len(begun) if case.over_ns is None else bisect_left(begun, case.over_ns)
            if before == 0 or not case.is_open_at(begun[before - 1]):
                return None
            return ends[case.domain][before - 1]

        return [replace(case, ended_by=ended_by(case)) for case in cases]


def _reader(traced: Traced) -> _Reader:
    return _Reader(traced, BackupCase, _APIS, (_COMPLETED, _CANCELLED, _SHUTDOWN))


_CAUSES: Catalogue[BackupCase] = Catalogue(Path(__file__).with_name("backups.yaml"))
EXPLAINER = Explainer("backups", _CAUSES, _reader)
# What the message of libvirt, QEMU or the kernel has, by cause; one text has to be there.
_MESSAGES = {
    "no-checkpoint": ("Domain checkpoint not found",),
    "no-bitmap": ("missing or broken bitmap", "not found in backing chain", "Bitmap '"),
    "file-exists": ("' exists",),
    "name-taken": ("domain moment ",),
    "other-job": ("cannot acquire state change lock", "in active block job"),
    "nothing-to-end": ("no job is active",),
    "not-running": ("for inactive domain", "is not running"),
    "not-supported": ("is not supported yet", "not supported"),
    "missing-file": ("No such file or directory",),
    "no-permission": ("Permission denied", "Operation not permitted"),
    "no-space": ("No space left on device",),
}
register_failures(_CAUSES, _MESSAGES)


@_CAUSES.condition("record-only")
def _record_only(case: BackupCase) -> list[Evidence] | None:
    return [] if case.succeeded and case.flags & _ONLY_RECORD.get(case.api, 0) else None


@_CAUSES.condition("checkpoint-made")
def _checkpoint_made(case: BackupCase) -> list[Evidence] | None:
    return [] if case.succeeded and case.api == _MAKE else None


@_CAUSES.condition("checkpoint-deleted")
def _checkpoint_deleted(case: BackupCase) -> list[Evidence] | None:
    return [] if case.succeeded and case.api == _DELETE else None


@_CAUSES.condition("failed")
def _failed(case: BackupCase) -> list[Evidence] | None:
    return of_event(case.first_end) if case.succeeded and case.job_error else None


def _ended_early(case: BackupCase) -> bool:
    end = case.first_end
    early = end is not None and event_name(end) == _CANCELLED
    return case.succeeded and early and not case.job_error


@_CAUSES.condition("pull-ended")
def _pull_ended(case: BackupCase) -> list[Evidence] | None:
    ended = _ended_early(case) and case.ended_by and case.is_pull
    return of_event(case.first_end) if ended else None


@_CAUSES.condition("aborted")
def _aborted(case: BackupCase) -> list[Evidence] | None:
    ended = _ended_early(case) and case.ended_by and not case.is_pull
    return of_event(case.first_end) if ended else None


@_CAUSES.condition("cancelled")
def _cancelled(case: BackupCase) -> list[Evidence] | None:
    ended = _ended_early(case) and not case.ended_by and not case.shutdown
    return of_event(case.first_end) if ended else None


@_CAUSES.condition("guest-ended")
def _guest_ended(case: BackupCase) -> list[Evidence] | None:
    ended = case.succeeded and case.shutdown and not case.ended_by and not case.job_error
    return of_event(case.shutdown) if ended else None


@_CAUSES.condition("done")
def _done(case: BackupCase) -> list[Evidence] | None:
    well = case.succeeded and case.over_ns and not case.job_error and not _ended_early(case)
    return of_event(case.first_end) if well else None


def _runs(case: BackupCase) -> bool:
    early = case.job_error or _ended_early(case) or case.shutdown
    return case.succeeded and bool(case.jobs) and case.over_ns is None and not early


@_CAUSES.condition("serving")
def _serving(case: BackupCase) -> list[Evidence] | None:
    return [] if _runs(case) and case.is_pull else None


@_CAUSES.condition("running")
def _running(case: BackupCase) -> list[Evidence] | None:
    return [] if _runs(case) and not case.is_pull else None
