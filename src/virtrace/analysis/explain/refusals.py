"""Who denied it: what the host said as a call failed, beside the error that the call got.

Every function here works from the trace alone. Owner and mode are judged as the kernel does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from virtrace.analysis.explain.messages import path_in
from virtrace.analysis.explain.model import Bytes, Fact, TimedCase
from virtrace.analysis.quoted import Evidence
from virtrace.trace.format import (
    FailureRecord,
    Holder,
    Json,
    PathFacts,
    PathStep,
    UserFacts,
    is_unavailable,
)

NOT_ASKED = (
    "Who denied it, or what holds it, is not in this trace: `virtrace record --host-facts` asks "
    "the host as a call fails."
)
_BITS = {"r": 4, "w": 2, "x": 1}
_DOES = {"r": "read", "w": "write to", "x": "search"}
_DENIES = ("Permission denied", "Operation not permitted")
_THERE_IS_NONE = "No such file or directory"
# Their servers decide, by rules of their own.
_REMOTE = re.compile(r"nfs|cifs|smb|fuse|9p|ceph|glusterfs|gfs|ocfs|lustre|afs")
_MOST_WORDS = 6
_KVM = "KVM"
_MODE = re.compile("[0-7]{4}")
# A stranger's trace can have any number.
_MOST_PATHS, _MOST_ROWS, _MOST_HOLDERS, _MOST_LINES = 40, 60, 20, 20
_KIB = 1 << 10


class _Denial(NamedTuple):
    """The way to what owner and mode deny, and the words for it."""

    way: Sequence[PathStep]
    words: str


@dataclass(frozen=True)
class Refusal:
    """What the host said of a failed call; all is empty if it was not asked.

    record: what it said. error: the message that the client got.
    """

    record: FailureRecord | None
    error: str | None

    def names(self, what: str, denies: str = "the host denied access to") -> dict[str, str]:
        """Words for texts. what: the file; denies: who denies it, if the host was not asked."""
        named = f" {what}" if what.startswith("/") else ""
        return {
            "denied": self.denied or f"{denies} {what}",
            "missing": self.missing or f"{what} does not exist",
            "holder": self.held or f"another process uses the image{named}",
        }

    @cached_property
    def denied(self) -> str | None:
        """Which step of a path the user may not pass, or who else denied it."""
        if not self._has(_DENIES):
            return None
        by_kernel = next(iter(self._by_kernel), None)
        return self._denial.words if self._denial else by_kernel

    @cached_property
    def missing(self) -> str | None:
        """What of a path is not there."""
        if not self._has((_THERE_IS_NONE, "missing backing store")):
            return None
        for facts in self._paths:
            last = facts["steps"][-1]
            if last.get("problem") != _THERE_IS_NONE:
                continue
            is_below = facts["why"].startswith("backing file")
            of_what = f", the {facts['why']}," if is_below else ""
            what, there = f"{facts['path']}{of_what}", last["path"]
            if any(step.get("type") == "link" for step in facts["steps"]):
                return f"{what} leads by a link to {there}, which does not exist"
            if there != facts["path"]:
                return f"the folder {there} of {what} does not exist"
            return f"{what} does not exist"
        return None

    @cached_property
    def held(self) -> str | None:
        """Who holds the locks of an image."""
        for facts in self._paths:
            for holder in self._holders(facts["holders"]):
                if holder["locks"]:
                    return f"{_process(holder)} uses the image {facts['path']}"
        return None

    @cached_property
    def kvm(self) -> str | None:
        """Why the device of KVM cannot be opened."""
        for facts in self.record["paths"] if self.record else ():
            if facts["why"] == _KVM and facts["steps"]:
                if "problem" in facts["steps"][-1]:
                    return f"{facts['path']} cannot be used ({facts['steps'][-1]['problem']})"
                denial = self._denial_of(facts)
                return denial.words if denial else None
        return None

    @cached_property
    def taken(self) -> str | None:
        """Who listens at an address, or has a device open."""
        for address in self.record["addresses"] if self.record else ():
            for holder in self._holders(address["holders"]):
                what = address["address"]
                what = f"port {what}" if what.isdecimal() else f"the socket {what}"
                return f"{what} is taken by {_process(holder)}"
        return None

    @property
    def note(self) -> str | None:
        return NOT_ASKED if self.record is None else None

    @cached_property
    def evidence(self) -> list[Evidence]:
        """What the host said, apart from the way to the file."""
        record = self.record
        if record is None:
            return []
        return [Evidence(text) for text in self._said(record)]

    def _said(self, record: FailureRecord) -> Iterator[str]:
        user = self._user
        if user is not None and self._has(_DENIES):
            yield f"it was {_named(user)} who opens files, by {user['known_by']}"
            for facts in self._paths:
                if self._denial is None and "problem" not in facts["steps"][-1]:
                    yield from _allowed(facts, user)
        for each in self._paths:
            for holder in self._holders(each["holders"]):
                locks = f", with the locks {', '.join(holder['locks'])}" if holder["locks"] else ""
                yield f"{_process(holder)} has {each['path']} open{locks}"
            problem = each["steps"][-1].get("problem")
            if problem is not None:
                yield f"{each['steps'][-1]['path']} ({each['why']}): {problem}"
        yield from (f"the kernel: {line}" for line in self._kernel)
        if isinstance(record["log"], str) and record["log"]:
            for line in record["log"].splitlines()[-_MOST_WORDS:]:
                yield f"QEMU's log: {line}"

    @cached_property
    def facts(self) -> Sequence[Fact]:
        """Each step on the way to what is denied or missing; memory, where that is lacking."""
        rows: list[Fact] = []
        if self._has((*_DENIES, _THERE_IS_NONE)):
            way = next((facts["steps"] for facts in self._paths), [])
            rows += [_row(step) for step in (self._denial.way if self._denial else way)]
        if self.record is not None and self._has(("memory",)):
            rows += _memory(self.record["memory"])
        return rows[:_MOST_ROWS]

    # Parts of the record

    @property
    def _user(self) -> UserFacts | None:
        user: Json = self.record["user"] if self.record else None
        return None if user is None or is_unavailable(user) else user

    @property
    def _kernel(self) -> Sequence[str]:
        lines: Json = self.record["kernel"] if self.record else []
        return [] if is_unavailable(lines) else lines[:_MOST_LINES]

    @cached_property
    def _paths(self) -> Sequence[PathFacts]:
        """What the error names comes first; where it names nothing, all that the guest has."""
        every = [each for each in (self.record["paths"] if self.record else []) if each["steps"]][
            :_MOST_PATHS
        ]
        named = path_in(self.error)
        return [each for each in every if each["path"] == named] if named else every

    @cached_property
    def _denial(self) -> _Denial | None:
        """The first path that owner and mode deny."""
        return next(filter(None, map(self._denial_of, self._paths)), None)

    def _denial_of(self, facts: PathFacts) -> _Denial | None:
        user = self._user
        at, right = (0, "") if user is None else _denied(facts, user)
        if user is None or not right:
            return None
        step = facts["steps"][at]
        kind, mode = step.get("type", "file"), step.get("mode")
        owner = "root" if step.get("uid") == 0 else f"uid {step.get('uid')}"
        acl = ", with an ACL" if step.get("acl") else ""
        return _Denial(
            facts["steps"][: at + 1],
            f"{_named(user)} may not {_DOES[right]} the {kind} {step['path']} "
            f"(owner {owner}, mode {mode}{acl})",
        )

    @property
    def _by_kernel(self) -> Iterator[str]:
        for line in self._kernel:
            what = path_in(self.error) or "a file"
            if "apparmor=" in line:
                yield f"AppArmor denied access to {what}"
            elif "avc:" in line:
                yield f"SELinux denied access to {what}"

    def _holders(self, holders: Json) -> Sequence[Holder]:
        return [] if is_unavailable(holders) else holders[:_MOST_HOLDERS]

    def _has(self, texts: Sequence[str]) -> bool:
        return any(text in (self.error or "") for text in texts)


def _process(holder: Holder) -> str:
    if holder["domain"] is not None:
        return f"the QEMU of {holder['domain']} (process {holder['pid']})"
    return f"{holder['command'] or 'a program'} (process {holder['pid']})"


def _named(user: UserFacts) -> str:
    return f"user {user['name'] or user['uid']}" + (f" ({user['uid']})" if user["name"] else "")


def _denied(facts: PathFacts, user: UserFacts) -> tuple[int, str]:
    """The first step that the user may not pass, and the right that is lacking; empty: none."""
    steps = facts["steps"]
    for at, step in enumerate(steps):
        if step.get("type") == "folder" and not may(step, user, "x"):
            return at, "x"
    last = steps[-1]
    # Libvirt makes QEMU's user the owner of a disk, and takes that back afterwards.
    is_given = user["is_given"] and facts["why"] != _KVM
    if "problem" not in last and last.get("type") not in ("folder", "link") and not is_given:
        for right in "rw":
            if not may(last, user, right):
                return len(steps) - 1, right
    return 0, ""


def _allowed(facts: PathFacts, user: UserFacts) -> Iterator[str]:
    yield f"owner and mode of the folders let {_named(user)} reach {facts['path']}"
    if user["is_given"]:
        yield "libvirt makes that user the owner of the file while the guest runs"
    kind = facts["file_system"]
    if kind is not None and _REMOTE.match(kind):
        yield f"its file system is {kind}, whose server has rules of its own"


def may(step: PathStep, user: UserFacts, right: str) -> bool:
    """Whether owner, mode and ACL give a user a right, as the kernel decides it.

    right: one of r, w, x.

    >>> private = {"path": "/a", "type": "folder", "uid": 0, "gid": 0, "mode": "0710", "acl": []}
    >>> user = {"uid": 7, "gid": 7, "groups": [0], "overrides": False}
    >>> may(private, user, "x"), may(private, user, "r")
    (True, False)
    """
    # What is not known is not blamed.
    if user["overrides"] or not _MODE.fullmatch(step.get("mode", "")):
        return True
    bit, mode = _BITS[right], int(step["mode"], 8)
    if user["uid"] == step.get("uid"):
        return bool(mode >> 6 & bit)
    groups = {user["gid"], *user["groups"]}
    acl = step.get("acl", [])
    if not acl:
        return bool((mode >> 3 if step.get("gid") in groups else mode) & bit)
    mask = next((entry["rights"] for entry in acl if entry["kind"] == "mask"), "rwx")
    of_user = [entry for entry in acl if entry["kind"] == "user" and entry["id"] == user["uid"]]
    if of_user:
        return right in of_user[0]["rights"] and right in mask
    of_groups = [
        entry["rights"]
        for entry in acl
        if entry["kind"] == "group"
        and (step.get("gid") if entry["id"] is None else entry["id"]) in groups
    ]
    if of_groups:
        return right in mask and any(right in rights for rights in of_groups)
    return bool(mode & bit)


def _row(step: PathStep) -> Fact:
    if "type" not in step:
        return Fact(step["path"], step.get("problem", "not looked at"))
    label = f", label {step['label']}" if "label" in step else ""
    acl = ", with an ACL" if step.get("acl") else ""
    to = f" to {step['target']}" if "target" in step else ""
    return Fact(
        step["path"],
        f"{step['type']}{to}",
        f"owner {step.get('uid')}:{step.get('gid')}, mode {step.get('mode')}{acl}{label}",
    )


def _memory(memory: Mapping[str, Json]) -> Iterator[Fact]:
    names = {
        "MemAvailable": "available",
        "CommitLimit": "limit of promises",
        "Committed_AS": "promised",
    }
    for key, name in (*names.items(), ("guest", "the guest asks for")):
        if type(memory.get(key)) is int:
            yield Fact(name, Bytes(memory[key] * _KIB))
    for key, value in memory.items():
        if key.startswith("free hugepages"):
            yield Fact(key, value)


@dataclass(frozen=True)
class RefusableCase(TimedCase):
    """A call that the host can refuse. said: by the host, as it failed."""

    said: FailureRecord | None

    @cached_property
    def refusal(self) -> Refusal:
        return Refusal(self.said, self.error)

    @property
    def reasons(self) -> list[Evidence] | None:
        errors = super().reasons
        return None if errors is None else [*errors, *self.refusal.evidence]

    @property
    def note(self) -> str | None:
        return self.refusal.note if self.call.failed else None
