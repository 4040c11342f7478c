"""What is known of a daemon's networks from the files beside its sockets, which may be hostile."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtrace.snapshot.host import Commands
from virtrace.snapshot.model import Network
from virtrace.snapshot.networks import networks

SERVED = "<networkstatus><network><name>n</name><ip address='192.0.2.1'/></network></networkstatus>"
DHCP = "<ip><dhcp><host ip='192.0.2.2'/></dhcp></ip>"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a daemon, which is this process, would keep the files of its networks."""
    folder = tmp_path / "network"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "libvirt-sock"))
        listening.listen()
        yield folder


def found() -> list[Network]:
    return [*networks(os.getpid(), lambda pid: pid, Commands())]


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        (SERVED, True),
        (SERVED.replace("<ip ", "<dns enable='no'/><ip "), False),
        (f"<s><network><dns enable='no'/>{DHCP}</network></s>", True),
        (f"<s><network><dns enable='yes'/>{DHCP}</network></s>", True),
        ("<networkstatus><network><name>n</name></network></networkstatus>", False),
        ("<networkstatus/>", False),
        ("<!DOCTYPE x []>" + SERVED, False),
        ("no XML", False),
        ("", False),
        ("<a>" * 20_000, False),
        (SERVED + " " * (1 << 16), False),
    ],
)
def test_only_a_network_that_needs_dnsmasq_is_one(folder: Path, text: str, needs: bool) -> None:
    (folder / "n.xml").write_text(text)
    assert found() == ([Network("n", None, None)] if needs else [])


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "999999999", "9" * 30, "\u0664", f"{2**31}"])
def test_what_is_no_pid_of_dnsmasq_names_none(folder: Path, text: str) -> None:
    (folder / "n.xml").write_text(SERVED)
    (folder / "n.pid").write_text(text)
    assert found() == [Network("n", None, None)]


def test_another_process_of_that_number_is_none(folder: Path) -> None:
    (folder / "n.xml").write_text(SERVED)
    for words in (["sleep", "1000"], ["sh", "-c", "read x", "--conf-file=/x/n.conf"]):
        with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
            (folder / "n.pid").write_text(f"{other.pid}\n")
            assert found() == [Network("n", None, None)]
            other.kill()


def test_files_that_are_none_are_left_out(folder: Path) -> None:
    os.mkfifo(folder / "fifo.xml")
    (folder / "device.xml").symlink_to("/dev/zero")
    (folder / "link.xml").symlink_to("/etc/passwd")
    (folder / "folder.xml").mkdir()
    (folder / "n.xml").write_text(SERVED)
    os.mkfifo(folder / "n.pid")
    assert found() == [Network("n", None, None)]


def test_without_a_folder_there_is_none(folder: Path) -> None:
    folder.rmdir()
    assert found() == []
