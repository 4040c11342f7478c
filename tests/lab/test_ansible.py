"""The Ansible collection: its form, and its playbooks on real daemons."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.conftest import bring_up
from tests.support.ansible import (
    DEAD,
    NO_PYTHON,
    RELEASES,
    Ansible,
    Recap,
    failures,
    install_collection,
    inventory,
    recaps,
    stripped,
)
from tests.support.command import virtrace
from tests.support.hanging import client_of, wait_for
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tools import pyz
from virtrace import __version__
from virtrace.lab.daemon import Lab

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can trace by the kernel's probes"),
]
NAMESPACE = Path("ansible_collections", "virtrace", "virtrace")
# Asked again and again, so that each trace has a call.
ASK = ("domblkinfo", "vm1", "vdd")
# What takes long runs with one of the releases.
WITH_OLDEST = pytest.mark.parametrize("ansible", RELEASES[:1], indirect=True)
WITH_NEWEST = pytest.mark.parametrize("ansible", RELEASES[-1:], indirect=True)
# What a host gives that gives all.
ALL = {"blockinfo.tar.gz", "doctor.json", "snapshot.json"}


@pytest.fixture(scope="module")
def one_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as made:
        pyz.build(Path(made, "virtrace.pyz"))
        yield Path(made, "virtrace.pyz")


@pytest.fixture(scope="module", params=RELEASES)
def ansible(request: pytest.FixtureRequest, one_file: Path) -> Iterator[Ansible]:
    """Each release of Ansible, with the collection as it is built."""
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as made:
        yield install_collection(request.param, Path(made), one_file)


def test_the_collection_has_the_version_of_virtrace() -> None:
    told = yaml.safe_load((REPOSITORY / "ansible" / "galaxy.yml").read_text())
    assert told["version"] == __version__
    assert (REPOSITORY / "ansible" / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def test_nothing_to_complain_of(ansible: Ansible, tmp_path: Path) -> None:
    """By ansible-test; what it needs, it installs."""
    copy = tmp_path / NAMESPACE
    shutil.copytree(ansible.collections / NAMESPACE, copy)
    # It would be taken for a source without a line's end.
    (copy / "roles/virtrace/files/virtrace.pyz").unlink()
    told = ansible.run_checked(
        *("ansible-test", "sanity", "--local", "--requirements", "--python", "3.11"), cwd=copy
    )
    for kind in ("validate-modules", "yamllint", "pep8", "pylint", "import", "ansible-doc"):
        assert f'Running sanity test "{kind}"' in told


@contextmanager
def clients(labs: Sequence[Lab]) -> Iterator[None]:
    """Let a client ask each of these daemons all the time."""
    done = threading.Event()

    def ask(lab: Lab) -> None:
        while not done.is_set():
            subprocess.run(lab.virsh_command(*ASK), capture_output=True)
            done.wait(0.3)

    threads = [threading.Thread(target=ask, args=(lab,)) for lab in labs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@contextmanager
def hanging(lab: Lab) -> Iterator[None]:
    """Let a call hang in a daemon, as its QEMU is stopped."""
    with lab.stalled():
        client = client_of(lab, lab.virsh_command(*ASK))
        try:
            wait_for(lab, "qemu-stopped")
            yield
        finally:
            client.kill()
            client.wait()


def given(reports: Path) -> dict[str, set[str]]:
    """The names of the files of each host. Only their owner may read them."""
    for path in [reports, *reports.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    folders = [path for path in reports.iterdir() if path.is_dir()]
    return {folder.name: {file.name for file in folder.iterdir()} for folder in folders}


def assert_nothing_is_left(ansible: Ansible) -> None:
    """Of what was carried to the hosts, all of which are this one."""
    assert list(ansible.temporary.iterdir()) == []


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[str, Lab]]:
    """Ten daemons of four releases."""
    releases = [
        None,
        "bullseye",
        "trixie",
        "sid",
        None,
        "bullseye",
        "trixie",
        "sid",
        None,
        "trixie",
    ]
    with ExitStack() as stack:
        up = {}
        for number, release in enumerate(releases):
            lab = bring_up(release=release)
            stack.callback(lab.down)
            up[f"{release or 'bookworm'}-{number}"] = lab
        yield up
        for lab in up.values():
            assert_untraced_and_intact(lab.pid)
            assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


@WITH_NEWEST
def test_each_gives_what_it_can(ansible: Ansible, labs: dict[str, Lab], tmp_path: Path) -> None:
    """Twelve hosts in one run: two hang, one may not trace, one is dead, and one has no Python."""
    hosts: dict[str, dict[str, Any]] = {
        name: {"virtrace_pid": lab.pid} for name, lab in labs.items()
    }
    hosts["bookworm-8"]["ansible_python_interpreter"] = str(stripped(tmp_path))
    hosts["no-python"] = NO_PYTHON
    hosts["dead"] = DEAD
    reports = tmp_path / "reports"
    ask = (
        *("ansible-playbook", "-i", inventory(tmp_path, hosts), "virtrace.virtrace.ask"),
        *("-e", f"virtrace_dest={reports}", "-e", "virtrace_recipe=blockinfo"),
        *("-e", "virtrace_calls=1", "-e", "virtrace_seconds=20"),
    )
    stuck = {"bookworm-4", "trixie-9"}
    with ExitStack() as stack:
        for name in sorted(stuck):
            stack.enter_context(hanging(labs[name]))
        stack.enter_context(clients([lab for name, lab in labs.items() if name not in stuck]))
        done = ansible.run(*ask)
        again = ansible.run(*ask)

    # Of the two that hang, no call begins any more: the trace is empty, but there.
    whole = set(labs) - {"bookworm-8"}
    assert given(reports) == {
        **dict.fromkeys(whole, ALL),
        "bookworm-8": {"doctor.json"},
    }, done.stdout
    assert_nothing_is_left(ansible)
    told = failures(reports)
    assert set(told) == {"bookworm-8", "no-python", "dead"}
    assert "root may not trace it" in told["bookworm-8"]
    assert "interpreter" in told["no-python"]
    assert "Connection refused" in told["dead"]
    assert {name for name, recap in recaps(done.stdout).items() if recap.failed} == set(told)
    # For scripts: some gave less than was asked.
    assert done.returncode == 2

    # Nothing that leaves a host names its guest.
    for name in whole:
        snapshot = json.loads((reports / name / "snapshot.json").read_text())
        assert [domain["name"] for domain in snapshot["domains"]] == ["domain-1"]
        bundle = reports / name / "blockinfo.tar.gz"
        assert virtrace("bundle", "verify", bundle).returncode == 0
        with tarfile.open(bundle) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is None or b'"vm1"' not in file.read()

    fleet = json.loads(virtrace("fleet", "--json", reports).stdout)
    assert fleet["files"] == {"doctor": 10, "snapshot": 9, "trace": 9}
    assert fleet["left_out"] == []
    odd = {
        (file, differs["trait"])
        for group in fleet["odd"]
        for file in group["files"]
        for differs in group["differs"]
    }
    assert ("bookworm-8/doctor.json", "doctor") in odd
    (verdicts,) = (each for each in fleet["traits"] if each["trait"] == "verdict")
    stopped = {group["value"]: group["files"] for group in verdicts["groups"]}["qemu-stopped"]
    assert stopped == [f"{name}/snapshot.json" for name in sorted(stuck)]
    assert "Which hosts differ from the others" in done.stdout
    assert "bookworm-8/doctor.json" in done.stdout

    # What is there is not asked again, and what failed fails again.
    assert {name: recap.changed for name, recap in recaps(again.stdout).items()} == dict.fromkeys(
        hosts, 0
    )
    assert failures(reports) == told


def test_in_check_mode_nothing_is_recorded(
    ansible: Ansible, stock_lab: Lab, tmp_path: Path
) -> None:
    hosts = {"one": {"virtrace_pid": stock_lab.pid}}
    reports = tmp_path / "reports"
    told = ansible.run_checked(
        *("ansible-playbook", "--check", "-v", "-i", inventory(tmp_path, hosts)),
        *("virtrace.virtrace.ask", "-e", f"virtrace_dest={reports}"),
        *("-e", "virtrace_recipe=blockinfo", "-e", "virtrace_seconds=600"),
    )
    assert "would trace by blockinfo for 600 s" in told
    assert recaps(told)["one"].changed > 0
    assert not reports.exists()


def test_an_installed_virtrace_is_asked(ansible: Ansible, stock_lab: Lab, tmp_path: Path) -> None:
    """Nothing is carried. What is not redacted is not in Ansible's output."""
    hosts = {"one": {"virtrace_pid": stock_lab.pid}}
    reports = tmp_path / "reports"
    installed = Path(sys.executable).with_name("virtrace")
    told = ansible.run_checked(
        *("ansible-playbook", "-v", "-i", inventory(tmp_path, hosts), "virtrace.virtrace.ask"),
        *("-e", f"virtrace_dest={reports}", "-e", f"virtrace_executable={installed}"),
        *("-e", "virtrace_recipe=blockinfo", "-e", "virtrace_seconds=1"),
        *("-e", "virtrace_redact=false"),
    )
    assert given(reports) == {"one": {"blockinfo.jsonl", "doctor.json", "snapshot.json"}}
    snapshot = json.loads((reports / "one" / "snapshot.json").read_text())
    assert [domain["name"] for domain in snapshot["domains"]] == ["vm1"]
    assert "vm1" not in told
    assert_nothing_is_left(ansible)


@WITH_OLDEST
def test_a_watch_stops_at_the_wave_that_shows_it(
    ansible: Ansible, labs: dict[str, Lab], tmp_path: Path
) -> None:
    """Newer releases of libvirt report no high-water mark."""
    names = ["bookworm-0", "bullseye-1", "trixie-2", "sid-3", "trixie-6", "sid-7"]
    hosts = {name: {"virtrace_pid": labs[name].pid} for name in names}
    reports = tmp_path / "reports"
    with clients([labs[name] for name in names]):
        done = ansible.run(
            *("ansible-playbook", "-i", inventory(tmp_path, hosts), "virtrace.virtrace.watch"),
            *("-e", f"virtrace_dest={reports}", "-e", "virtrace_recipe=blockinfo"),
            *("-e", "virtrace_calls=1", "-e", "virtrace_seconds=20"),
            *("-e", "virtrace_at_once=2"),
            *("-e", json.dumps({"virtrace_until": ["no-high-water-mark"]})),
        )
    assert done.returncode == 0, done.stdout
    assert given(reports) == dict.fromkeys(names[:4], ALL)
    assert set(recaps(done.stdout)) == set(names[:4])


@WITH_OLDEST
def test_a_watch_stops_at_harm(ansible: Ansible, labs: dict[str, Lab], tmp_path: Path) -> None:
    """The first wave has a daemon that hangs after its trace."""
    names = ["bookworm-0", "trixie-2", "sid-3"]
    hosts = {name: {"virtrace_pid": labs[name].pid} for name in names}
    reports = tmp_path / "reports"
    with hanging(labs["bookworm-0"]):
        done = ansible.run(
            *("ansible-playbook", "-i", inventory(tmp_path, hosts), "virtrace.virtrace.watch"),
            *("-e", f"virtrace_dest={reports}", "-e", "virtrace_recipe=blockinfo"),
            *("-e", "virtrace_seconds=1", "-e", "virtrace_at_once=1"),
        )
    assert done.returncode == 2
    assert recaps(done.stdout) == {
        "bookworm-0": Recap(recaps(done.stdout)["bookworm-0"].changed, 0, 1)
    }
    assert "stopped by a signal" in done.stdout
