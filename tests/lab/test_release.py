"""The lab with libvirt and QEMU of other Debian releases, from this host."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.test_lab import assert_nothing_left, crash_daemon
from tests.lab.test_scenarios import EXPECTED, Answer, in_bytes
from tests.lab.tracing import as_measured, calls_of, printed_info, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.waiting import wait_until
from virtrace.errors import LabError
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, LAST_SECTOR_DISK
from virtrace.lab.roots import ensure_root, inside
from virtrace.lab.scenarios import SCENARIOS
from virtrace.lab.system import System

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another root"),
]

VERSIONS = {"bullseye": (7, 0, 0), "sid": (12, 8, 0)}


def content(sparse: Path) -> tuple[int, dict[int, bytes]]:
    """The size of a file, and what stands in it, hole by hole."""
    size = sparse.stat().st_size
    found: dict[int, bytes] = {}
    with sparse.open("rb") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        while True:
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found[start] = os.pread(file.fileno(), end - start, start)
            if end == size:
                return size, found
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)


def namespaces_with(folder: Path) -> list[str]:
    """Processes that have something of the folder mounted, or are about to."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts = "".join(
                (process / name).read_text(errors="replace") for name in ("mountinfo", "cmdline")
            )
        except OSError:
            continue
        if str(folder) in mounts:
            found.append(process.name)
    return found


@pytest.fixture(scope="module")
def release_labs() -> Iterator[dict[str, Lab]]:
    labs: dict[str, Lab] = {}
    try:
        for release in VERSIONS:
            folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
            labs[release] = Lab(folder, release=release)
            labs[release].up()
        yield labs
    finally:
        for lab in labs.values():
            Lab(lab.folder).down()
            assert_nothing_left(lab)
            assert namespaces_with(lab.folder) == []


def test_same_disk_and_same_write_are_answered_the_other_way_round(
    release_labs: dict[str, Lab],
) -> None:
    """Case 12: what domblkinfo says of one disk depends on the version."""
    [outcomes] = EXPECTED["last-sector"]
    for release, lab in release_labs.items():
        assert lab.libvirt_version == VERSIONS[release]
        [command] = SCENARIOS["last-sector"].commands
        [numbers] = printed_info(lab.virsh_checked(*command))
        expected = as_measured(outcomes, lab.libvirt_version)
        assert isinstance(expected, Answer)
        image = lab.disk_file(LAST_SECTOR_DISK)
        assert numbers == {
            "capacity": expected.capacity,
            "allocation": in_bytes(expected.allocation, image),
            "physical": in_bytes(expected.physical, image),
        }
    old, new = (lab.disk_file(LAST_SECTOR_DISK) for lab in release_labs.values())
    assert content(old) == content(new)
    assert old.stat().st_blocks == new.stat().st_blocks


@pytest.mark.parametrize("release", VERSIONS)
def test_daemon_and_tools_are_those_of_the_root(release_labs: dict[str, Lab], release: str) -> None:
    lab = release_labs[release]
    root = lab.system.root
    assert root is not None
    assert [processes.executable(pid).startswith(f"{root}/") for pid in lab.processes] == [True] * 2
    assert Path(f"/proc/{lab.pid}").stat().st_uid == lab.system.uid != 0
    with pytest.raises(LabError) as refused:
        lab.system.run("touch", "/usr/bin/new")
    assert "Read-only file system" in " ".join(refused.value.more)
    status = virtrace("lab", "status", "--dir", str(lab.folder))
    assert f"{root}/usr/sbin/libvirtd" in status.stdout
    with pytest.raises(LabError, match="another build"):
        Lab(lab.folder).up()


@pytest.mark.parametrize("name", ["network", "device-end"])
@pytest.mark.parametrize("release", VERSIONS)
def test_scenarios_of_their_own_guest(
    release_labs: dict[str, Lab], release: str, name: str
) -> None:
    lab = release_labs[release]
    stage = SCENARIOS[name].set_up(lab)
    [numbers] = printed_info(lab.virsh_checked(*SCENARIOS[name].commands[0]))
    stage.clear()
    expected = as_measured(EXPECTED[name][0], lab.libvirt_version)
    assert isinstance(expected, Answer)
    assert list(numbers.values()) == [expected.capacity, expected.allocation, expected.physical]


def test_up_that_was_killed_and_daemon_that_crashed(folder: Path) -> None:
    command = [*VIRTRACE, "lab", "up"]
    command += ["--release", "bullseye", "--dir", str(folder)]
    # The root's mounts are being made when it is killed, or the daemon is being started.
    for said in ("starting /", "defining "):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
            assert up.stdout is not None
            assert any(said in line for line in up.stdout)
            up.send_signal(signal.SIGKILL)
        await_unlocked(folder)
        assert Lab(folder).down()
        await_none(folder)
    lab = Lab(folder, release="bullseye")
    lab.up()
    assert len(crash_daemon(lab)) == 1
    assert Lab(folder).down()
    await_none(folder)
    assert_nothing_left(lab)


def test_what_runs_in_a_root_ends_with_who_started_it() -> None:
    """Or libvirtd would be started after `down` of a lab whose `up` was killed."""
    command = inside(ensure_root("bullseye", print), {}, ["sh", "-c", "echo ready; exec sleep 600"])
    starter = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    with subprocess.Popen([*starter, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        # To its end: everybody whose output it is has ended then.
        printed, _ = process.communicate(timeout=SECONDS)
        assert printed == ""


def await_unlocked(folder: Path) -> None:
    """A process that was forked to run a command shares the lock until it runs it."""
    handle = os.open(folder, os.O_RDONLY)

    def is_locked_by_this() -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    wait_until(is_locked_by_this, "nobody else holds the lock")
    os.close(handle)


def await_none(folder: Path) -> None:
    """What was killed with its parent may take a moment to go."""
    wait_until(lambda: not namespaces_with(folder), "no mount namespace has the folder")


def test_the_daemons_user_reaches_a_folder_in_folders_that_the_root_has_not() -> None:
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        folder = Path(made, "among", "others")
        folder.mkdir(parents=True)
        system = System(folder, ensure_root("bullseye", print))
        system.run("test", "-x", str(folder), as_daemon=True)


def test_folder_that_the_root_has_no_place_for(tmp_path: Path) -> None:
    nowhere = Path("/virtrace-test")
    with pytest.raises(LabError, match="/virtrace-test cannot be made inside of"):
        Lab(nowhere, release="bullseye").up()
    assert not nowhere.exists()


@pytest.mark.parametrize(
    ("release", "numbers", "cause"),
    [
        ("bullseye", (2 * GIB, 2 * GIB, 4096), "high-water-mark"),
        ("sid", (2 * GIB, 4096, 2 * GIB), "no-high-water-mark"),
    ],
)
def test_the_same_disk_and_write_have_two_true_answers(
    release: str, numbers: tuple[int, ...], cause: str, tmp_path: Path
) -> None:
    """Each traced from this host, in its root; which of the two it is, explain tells."""
    output = tmp_path / "trace.jsonl"
    done = virtrace("lab", "run", "last-sector", "--release", release, "-o", str(output))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert trace.header["target"]["program"]["version"] == ".".join(map(str, VERSIONS[release]))
    [call] = calls_of(trace)
    [printed] = printed_info(done.stdout)
    assert tuple(printed.values()) == numbers
    assert call.root.returned == {"result": 0, "info": printed}
    explained = virtrace("explain", "--json", str(output))
    assert explained.returncode == 0, explained.stderr
    [case] = json.loads(explained.stdout)["cases"]
    assert case["causes"][0]["name"] == cause
