"""Which user opens the files of a guest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from virtrace.errors import Unavailable
from virtrace.files import root_of, text_inside
from virtrace.host.own_files import settings
from virtrace.host.owner import owner_of
from virtrace.host.programs import Programs
from virtrace.trace.format import FailedCall, UserFacts

_ACCOUNTS = 1 << 20
_AS = re.compile(r"\(as uid:(\d+), gid:(\d+)\)")
_SETTING = r'^\s*{}\s*=\s*"?([^"\n#]*?)"?\s*(?:#.*)?$'
# Where libvirt puts the sockets of guests, and makes QEMU's user the owner.
_OF_QEMU = "/var/lib/libvirt/qemu"
_ALL_AS_THEY_ARE = ["0", "0", f"{(1 << 32) - 1}"]
# CAP_DAC_OVERRIDE, of include/uapi/linux/capability.h.
_OVERRIDES = 1 << 1


def opener(
    failed: FailedCall, kept: ElementTree.Element | None, pid: int, programs: Programs
) -> UserFacts:
    """The user that opens the files of a call that has failed.

    kept: the guest's definition. pid: of the daemon.
    Raises: Unavailable if it is not known.
    """
    daemon = owner_of(pid)
    if Path(f"/proc/{pid}/uid_map").read_text().split() != _ALL_AS_THEY_ARE:
        raise Unavailable("the daemon counts its users in a namespace of its own")
    if failed["name"].startswith("virStorage"):
        overrides = bool(_capabilities(pid) & _OVERRIDES)
        return {
            "uid": daemon.uid,
            "gid": daemon.gid,
            "groups": [*daemon.groups],
            "name": _Accounts(pid).name_of(daemon.uid),
            "known_by": "the daemon",
            "overrides": overrides,
            "is_given": False,
        }
    if daemon.uid:
        name = _Accounts(pid).name_of(daemon.uid)
        groups = [*daemon.groups]
        return _of_qemu(daemon.uid, daemon.gid, groups, name, "the daemon, which is of a session")
    text = "\n".join(settings(pid, programs).values())
    accounts = _Accounts(pid)
    uid, gid, known_by = _chosen(failed, kept, pid, text, accounts)
    facts = _of_qemu(uid, gid, accounts.groups_of(uid, gid), accounts.name_of(uid), known_by)
    facts["is_given"] = _setting(text, "dynamic_ownership") != "0"
    facts["overrides"] = not uid and _setting(text, "clear_emulator_capabilities") == "0"
    return facts


def _of_qemu(uid: int, gid: int, groups: list[int], name: str | None, known_by: str) -> UserFacts:
    return {
        "uid": uid,
        "gid": gid,
        "groups": groups,
        "name": name,
        "known_by": known_by,
        "overrides": False,
        "is_given": False,
    }


def _chosen(
    failed: FailedCall,
    kept: ElementTree.Element | None,
    pid: int,
    text: str,
    accounts: _Accounts,
) -> tuple[int, int, str]:
    said = _AS.search("\n".join(failed["messages"]))
    if said is not None:
        return int(said[1]), int(said[2]), "the error"
    for label in kept.iterfind("seclabel") if kept is not None else ():
        owner, _, group = (label.findtext("label") or "").partition(":")
        if label.get("model") == "dac" and owner:
            return accounts.uid(owner), accounts.gid(group, owner), "the guest's seclabel"
    user = _setting(text, "user")
    if user:
        return accounts.uid(user), accounts.gid(_setting(text, "group") or "", user), "qemu.conf"
    try:
        status = os.stat(f"{root_of(pid).rstrip('/')}{_OF_QEMU}")
    except OSError as error:
        raise Unavailable("qemu.conf names no user of QEMU") from error
    return status.st_uid, status.st_gid, f"the owner of {_OF_QEMU}"


def _setting(text: str, name: str) -> str | None:
    found = re.findall(_SETTING.format(name), text, re.M)
    return found[-1] if found else None


def _capabilities(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^CapEff:\s*(\w+)", status, re.M)[0], 16)


class _Accounts:
    """Users and groups in the files of a process's root."""

    def __init__(self, pid: int) -> None:
        root = Path(root_of(pid))
        self._users, self._groups = (
            [line.split(":") for line in text_inside(root, file, _ACCOUNTS).splitlines()]
            for file in ("/etc/passwd", "/etc/group")
        )

    def name_of(self, uid: int) -> str | None:
        return next((row[0] for row in self._users if row[2:3] == [str(uid)]), None)

    def uid(self, name: str) -> int:
        return self._number(name, self._users, lambda row: row[2])

    def gid(self, name: str, user: str) -> int:
        """name: of the group; empty: the one that the user has."""
        if name:
            return self._number(name, self._groups, lambda row: row[2])
        # The settings can name the user by number.
        uid = str(self.uid(user))
        known = next((row[0] for row in self._users if len(row) > 3 and row[2] == uid), None)
        if known is None:
            raise Unavailable(f"the host's files have no account {user}")
        return self._number(known, self._users, lambda row: row[3])

    def groups_of(self, uid: int, gid: int) -> list[int]:
        """All groups that a program of this user gets."""
        name = self.name_of(uid)
        others = [int(row[2]) for row in self._groups if len(row) > 3 and name in row[3].split(",")]
        return sorted({gid, *others})

    def _number(self, name: str, table: list[list[str]], column: Callable[[list[str]], str]) -> int:
        if name.lstrip("+").isdecimal():
            return int(name.lstrip("+"))
        for row in table:
            if row[0] == name and len(row) > 3:
                return int(column(row))
        raise Unavailable(f"the host's files have no account {name}")
