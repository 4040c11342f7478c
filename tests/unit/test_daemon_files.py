"""The log and the settings of a daemon of another user, who put there what he may not read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from virtrace.files import read_inside, root_of
from virtrace.host.daemon import gather
from virtrace.host.facts import HostFacts
from virtrace.image.process import inspect
from virtrace.trace.reader import read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
SOMEBODY = 65533
SECRET = "root-only-text-4711"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody can go through, with a file in it that only root can read."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return tmp_path


@pytest.fixture
def home(shared: Path) -> Path:
    home = shared / "home"
    (home / "cache/libvirt/qemu/log").mkdir(parents=True)
    (home / "config/libvirt").mkdir(parents=True)
    return home


def log_of(home: Path) -> Path:
    return home / "cache/libvirt/qemu/log/vm1.log"


@pytest.fixture
def daemon(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    yield from running(home, ["sleep", "1000"], user=SOMEBODY, group=SOMEBODY, extra_groups=[])


def running(home: Path, command: list[str], **user: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"XDG_CACHE_HOME": f"{home}/cache", "XDG_CONFIG_HOME": f"{home}/config"}
    with subprocess.Popen(
        command, env={"PATH": os.environ["PATH"], **environment}, stdout=subprocess.PIPE, **user
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(daemon: subprocess.Popen[bytes], home: Path) -> HostFacts:
    for path, folders, files in os.walk(home):
        for name in (*folders, *files):
            # A hard link of a user to a file of root is root's file all the same.
            if os.lstat(f"{path}/{name}").st_nlink == 1 or name in folders:
                os.chown(f"{path}/{name}", SOMEBODY, SOMEBODY, follow_symlinks=False)
    records = samples.records()
    program = inspect(daemon.pid).modules[0]
    records[0]["target"]["modules"] = [
        {"path": program.path, "build_id": program.build_id, "base": "0x0"}
    ]
    trace = read_trace(samples.write(home.parent / "t.jsonl", records))
    return gather(trace, daemon.pid)


def test_what_the_user_has_there_is_read(daemon: subprocess.Popen[bytes], home: Path) -> None:
    log_of(home).write_text("first\nstarting up libvirt version: 9\nlast\n")
    log_of(home).chmod(0o600)
    (home / "config/libvirt/qemu.conf").write_text('user = "me"\n')
    facts = told(daemon, home)
    assert facts.domains["vm1"]["log"] == "starting up libvirt version: 9\nlast\n"
    assert [*facts.settings.values()] == ["", 'user = "me"\n']


TRICKS: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda place, secret: place.symlink_to(secret),
    "hard link": lambda place, secret: os.link(secret, place),
    "FIFO": lambda place, _: os.mkfifo(place),
    "device": lambda place, _: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "link to a device": lambda place, _: place.symlink_to("/dev/zero"),
    "folder": lambda place, _: place.mkdir(),
    "socket": lambda place, _: os.mknod(place, stat.S_IFSOCK | 0o666),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_only_root_can_read_does_not_come_in(
    trick: str, daemon: subprocess.Popen[bytes], home: Path
) -> None:
    for place in (log_of(home), home / "config/libvirt/qemu.conf"):
        TRICKS[trick](place, home.parent / "secret")
    began = time.monotonic()
    facts = told(daemon, home)
    assert SECRET not in str(facts)
    assert set(facts.domains["vm1"]["log"]) == {"unavailable"}
    assert set(facts.settings) == {"unavailable"}
    # Long before what it waits for at most.
    assert time.monotonic() - began < 20


def test_a_folder_that_is_a_link_is_not_followed(
    daemon: subprocess.Popen[bytes], home: Path
) -> None:
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir(0o700)
    (elsewhere / "vm1.log").write_text(SECRET)
    (home / "cache/libvirt/qemu/log").rmdir()
    (home / "cache/libvirt/qemu/log").symlink_to(elsewhere)
    facts = told(daemon, home)
    assert set(facts.domains["vm1"]["log"]) == {"unavailable"}


def test_links_of_a_container_lead_to_nothing_of_the_host(shared: Path) -> None:
    """Its root user is the host's root as well."""
    root = shared / "root"
    (root / "etc").mkdir(parents=True)
    (shared / "libvirt").mkdir()
    (shared / "libvirt/qemu.conf").write_text(SECRET)
    (root / "etc/libvirt").symlink_to(shared / "libvirt")
    script = "import os, sys, time; os.chroot(sys.argv[1]); print(flush=True); time.sleep(1000)"
    for daemon in running(root, [sys.executable, "-c", script, str(root)]):
        assert daemon.stdout is not None
        daemon.stdout.readline()
        deadline = time.monotonic() + 60
        with pytest.raises(FileNotFoundError):
            read_inside(
                root_of(daemon.pid), b"/etc/libvirt", [b"qemu.conf"], 100, deadline=deadline
            )
        (root / "etc/libvirt").unlink()
        (root / "etc/libvirt").mkdir()
        (root / "etc/libvirt/qemu.conf").write_text("its own")
        found = read_inside(
            root_of(daemon.pid), b"/etc/libvirt", [b"qemu.conf"], 100, deadline=deadline
        )
        assert found == b"its own"
