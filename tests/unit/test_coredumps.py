"""Cores by the names that coredumpctl has for them; the texts are from systemd 252."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import ENVIRONMENT, virtrace
from virtrace.errors import TargetError
from virtrace.host.coredumps import file_in, is_named

INFO = """\
           PID: 4242 (libvirtd)
           UID: 0 (root)
        Signal: 11 (SEGV)
     Timestamp: Mon 2026-11-30 12:41:45 UTC (101ms ago)
  Command Line: {command}
       Storage: {storage}
  Size on Disk: 2B
       Message: Process 4242 (libvirtd) of user 0 dumped core.
"""
FILE = "/var/lib/systemd/coredump/core.libvirtd.0.4b6a4c1e.4242.1796042505000000.zst"


def said(storage: str, command: str = "/usr/sbin/libvirtd") -> str:
    return INFO.format(storage=storage, command=command)


def test_the_file_of_a_core() -> None:
    assert file_in(said(f"{FILE} (present)")) == Path(FILE)
    # As older releases say it, and where a part of the core was left out.
    assert file_in(said(FILE)) == Path(FILE)
    assert file_in(said(f"{FILE} (truncated)")) == Path(FILE)


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("none", r"not in a file \(storage: none\)"),
        ("journal", r"not in a file \(storage: journal\)"),
        (f"{FILE} (missing)", "is missing"),
        (f"{FILE} (inaccessible)", "is inaccessible"),
    ],
)
def test_a_core_that_is_not_there(storage: str, why: str) -> None:
    with pytest.raises(TargetError, match=why):
        file_in(said(storage))


def test_a_command_line_does_not_name_the_file() -> None:
    with pytest.raises(TargetError, match="not known"):
        file_in(said(f"{FILE} (present)", "x\n       Storage: /etc/shadow (present)"))


def test_what_names_a_core() -> None:
    assert [is_named(text) for text in ("latest", "4242", "./4242", "core", "-1", "\u0664")] == [
        *(True, True, False, False, False, False)
    ]


def test_without_coredumpctl_the_error_says_so(tmp_path: Path) -> None:
    done = virtrace("snapshot", "--core", "4242", env={**ENVIRONMENT, "PATH": str(tmp_path)})
    assert done.returncode == 3
    assert "coredumpctl" in done.stderr


def test_a_file_of_that_name_is_meant_first(tmp_path: Path) -> None:
    (tmp_path / "4242").write_bytes(b"no core")
    done = virtrace("snapshot", "--core", "4242", cwd=tmp_path)
    assert "4242 is not an intact core file" in done.stderr
