"""The lab, on the real libvirtd and QEMU."""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import SECONDS
from virtrace.cli.main import main
from virtrace.errors import LabError
from virtrace.lab import daemon, debug_build, processes, system
from virtrace.lab.daemon import Lab
from virtrace.lab.folder import LONGEST_SOCKET
from virtrace.lab.guest import GUEST

NOBODY = pwd.getpwnam("nobody").pw_uid
LAB_UID = NOBODY if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def lab(stock_lab: Lab) -> Lab:
    return stock_lab


def block_info(lab: Lab, target: str) -> dict[str, int]:
    done = lab.virsh("domblkinfo", GUEST.name, target)
    assert done.returncode == 0, done.stderr
    lines = (line.split(":") for line in done.stdout.splitlines() if line)
    return {name.lower(): int(number) for name, number in lines}


def image_info(lab: Lab, target: str) -> dict[str, Any]:
    command = ["qemu-img", "info", "-U", "--output=json", str(lab.disk_file(target))]
    info: dict[str, Any] = json.loads(subprocess.check_output(command))
    return info


def assert_nothing_left(lab: Lab) -> None:
    assert lab.processes == []
    assert not os.path.lexists(lab.folder)
    assert str(lab.folder) not in Path("/proc/mounts").read_text()


def test_daemon_is_real_unprivileged_and_the_labs_own(lab: Lab) -> None:
    assert os.path.basename(processes.executable(lab.pid)) == "libvirtd"
    assert Path(f"/proc/{lab.pid}").stat().st_uid == LAB_UID != 0
    programs = [os.path.basename(processes.executable(pid)) for pid in lab.processes]
    assert sorted(programs) == ["libvirtd", "qemu-system-x86_64"]
    assert lab.virsh("domstate", GUEST.name).stdout.strip() == "running"


def test_virsh_command_works_from_a_plain_shell(lab: Lab) -> None:
    listed = subprocess.run(
        lab.virsh_command("list", "--name"), capture_output=True, text=True, timeout=60
    )
    assert listed.stdout.split() == [GUEST.name]


def test_qcow2_is_thin_on_a_backing_file(lab: Lab) -> None:
    image = image_info(lab, "vda")
    assert image["format"] == "qcow2"
    assert image["backing-filename"] == "base.qcow2"
    assert block_info(lab, "vda") == {
        "capacity": image["virtual-size"],
        "allocation": image["actual-size"],
        "physical": lab.disk_file("vda").stat().st_size,
    }


def test_sparse_raw_has_no_allocation(lab: Lab) -> None:
    size = lab.disk_file("vdb").stat().st_size
    assert block_info(lab, "vdb") == {"capacity": size, "allocation": 0, "physical": size}


def test_allocated_raw_has_one_number_thrice(lab: Lab) -> None:
    status = lab.disk_file("vdc").stat()
    assert status.st_blocks * 512 == status.st_size == 64 << 20
    assert set(block_info(lab, "vdc").values()) == {status.st_size}


def test_last_sector_disk_looks_full(lab: Lab) -> None:
    status = lab.disk_file("vdd").stat()
    used = status.st_blocks * 512
    assert 0 < used < 1 << 20
    stats = lab.qmp({"execute": "query-blockstats"})["return"]
    (entry,) = [each for each in stats if "virtio-disk3" in each["qdev"]]
    if "parent" in entry:
        high_water_mark, physical = status.st_size, used
        assert entry["parent"]["stats"]["wr_highest_offset"] == status.st_size
    else:
        # libvirt 9.10 and later with QEMU 9 and later: no node below the raw format's.
        high_water_mark, physical = used, status.st_size
    assert block_info(lab, "vdd") == {
        "capacity": status.st_size,
        "allocation": high_water_mark,
        "physical": physical,
    }


def test_counters_stand_still(lab: Lab) -> None:
    """The firmware is through with the disks when up returns; domblkinfo itself reads none."""
    before = lab.qmp({"execute": "query-blockstats"})["return"]
    assert before[0]["stats"]["rd_operations"] == 1
    for disk in GUEST.disks:
        block_info(lab, disk.target)
    after = lab.qmp({"execute": "query-blockstats"})["return"]
    for one, other in zip(before, after):
        # Grows with the time of day.
        one["stats"].pop("idle_time_ns", None)
        other["stats"].pop("idle_time_ns", None)
        assert one == other


def test_qmp_gives_the_whole_reply_of_a_failure_too(lab: Lab) -> None:
    assert lab.qmp({"execute": "query-status"})["return"]["status"] == "running"
    assert lab.qmp({"execute": "no-such-command"})["error"]["class"] == "CommandNotFound"


def test_up_when_up_changes_nothing(lab: Lab) -> None:
    before = lab.processes
    assert Lab(lab.folder).up() is False
    assert lab.processes == before


def test_crash_of_the_daemon_beside_another_lab(lab: Lab, folder: Path) -> None:
    second = Lab(folder)
    assert second.up() is True
    assert not set(second.processes) & set(lab.processes)

    # Up again after a crash: the guest that the dead daemon left behind is replaced.
    (orphan,) = crash_daemon(second)
    assert second.up() is True
    assert orphan not in second.processes
    assert second.virsh("list", "--name").stdout.split() == [GUEST.name]

    # A process that merely works in the folder is none of the lab's.
    bystander = subprocess.Popen(
        ["sleep", "600"],
        env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        user=NOBODY if os.geteuid() == 0 else None,
    )
    try:
        crash_daemon(second)
        assert second.down() is True
        assert_nothing_left(second)
        assert second.down() is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()

    assert lab.virsh("list", "--name").stdout.split() == [GUEST.name]


def crash_daemon(lab: Lab) -> list[int]:
    """Kill the daemon; what of the lab still runs then."""
    handle = os.pidfd_open(lab.pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    ended, _, _ = select.select([handle], [], [], SECONDS)
    os.close(handle)
    assert ended
    assert not lab.is_up
    with pytest.raises(LabError, match="no lab"):
        _ = lab.pid
    return lab.processes


@pytest.mark.usefixtures("stock_lab")
def test_context_manager_leaves_nothing_and_stopped_disks_read_as_files(folder: Path) -> None:
    with Lab(folder) as lab:
        lab.virsh_checked("destroy", GUEST.name)
        status = lab.disk_file("vdd").stat()
        assert block_info(lab, "vdd") == {
            "capacity": status.st_size,
            "allocation": status.st_blocks * 512,
            "physical": status.st_size,
        }
    assert_nothing_left(lab)


@pytest.mark.usefixtures("stock_lab")
def test_failed_up_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose parent is not there yet either.
    folder.rmdir()
    lab = Lab(folder / "lab")
    # The disks and the daemon are there by then.
    monkeypatch.setattr(daemon, "domain_xml", lambda *_: "<domain/>")
    with pytest.raises(LabError, match=r"virsh define .* failed") as caught:
        lab.up()
    assert "the daemon's log ends with:" in caught.value.more
    assert_nothing_left(lab)


def test_folder_that_is_not_a_labs_is_left_alone(folder: Path) -> None:
    (folder / "precious").write_text("data")
    for action in (Lab(folder).up, Lab(folder).down):
        with pytest.raises(LabError, match="not part of a lab"):
            action()
    assert (folder / "precious").read_text() == "data"
    (folder / "precious").unlink()


def test_symlink_is_refused(folder: Path) -> None:
    link = folder / "link"
    (folder / "aim").mkdir()
    link.symlink_to("aim")
    for action in (Lab(link).up, Lab(link).down):
        with pytest.raises(LabError, match="symlink"):
            action()
    link.unlink()
    (folder / "aim").rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else_is_refused(folder: Path) -> None:
    os.chown(folder, NOBODY, -1)
    for action in (Lab(folder).up, Lab(folder).down):
        with pytest.raises(LabError, match="somebody else"):
            action()
    os.chown(folder, 0, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's lab has another user's daemon")
def test_folder_that_the_daemon_cannot_reach_is_refused(folder: Path) -> None:
    with pytest.raises(LabError, match="nobody, who runs root's lab, cannot reach"):
        Lab(folder / "lab").up()
    assert list(folder.iterdir()) == []


def test_folder_too_long_for_its_sockets_is_refused_at_once(folder: Path) -> None:
    lab = Lab(folder / ("x" * 60))
    with pytest.raises(LabError, match="bytes too long"):
        lab.up()
    assert not lab.folder.exists()


def test_longest_socket_is_what_was_reckoned_with(lab: Lab) -> None:
    sockets = [path for path in lab.folder.rglob("*") if path.is_socket()]
    longest = max(len(str(path)) for path in sockets)
    assert longest <= len(str(lab.folder / LONGEST_SOCKET))
    assert len(sockets) >= 2


def test_missing_packages_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "SEARCH_PATH", str(folder))
    with pytest.raises(LabError) as caught:
        Lab(folder).up()
    assert caught.value.remedy.startswith("apt-get install ")
    for package in ("libvirt-daemon", "libvirt-clients", "qemu-system-x86", "qemu-utils"):
        assert package in caught.value.remedy.split()


def test_commands_say_what_is_up(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(lab.folder)]
    assert main(["lab", "status", *where]) == 0
    status = capsys.readouterr().out
    assert f"pid {lab.pid}" in status
    assert lab.uri in status
    assert main(["lab", "up", *where]) == 0
    said = capsys.readouterr().out
    assert "the lab is already up" in said
    assert f"virtrace record blockinfo -p {lab.pid}\n" in said


def test_commands_say_when_nothing_is_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(folder / "none")]
    assert main(["lab", "status", *where]) == 1
    assert main(["lab", "down", *where]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.matrix
@pytest.mark.usefixtures("stock_lab")
def test_daemon_with_debug_info(folder: Path) -> None:
    with Lab(folder, debug_info=True) as lab:
        maps = Path(f"/proc/{lab.pid}/maps").read_text()
        build = debug_build.build_folder()
        for name in set(debug_build.FILES) - {debug_build.QEMU_DAEMON, debug_build.STORAGE_DAEMON}:
            assert f"{(build / name).resolve()}\n" in maps, name
        loaded = {line.split()[-1] for line in maps.splitlines() if "libvirt" in line}
        assert all(path.startswith(str(build)) for path in loaded)
        sections = subprocess.check_output(
            ["objdump", "-h", str(build / "libvirt_driver_qemu.so")], text=True
        )
        assert ".debug_info" in sections
        capacity = GUEST.disk("vdd").capacity
        assert block_info(lab, "vdd")["allocation"] == capacity
        with pytest.raises(LabError, match="another build"):
            Lab(folder).up()


@pytest.mark.matrix
def test_failed_build_is_not_taken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug_build, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(debug_build, "SUITE", "no-such-suite")
    with pytest.raises(LabError, match="could not be built") as caught:
        debug_build.ensure_built(print)
    assert [entry.name for entry in tmp_path.iterdir()] == ["build.log"]
    assert str(tmp_path / "build.log") in caught.value.remedy
