"""Who denied it: what `--host-facts` finds as a start fails, on all releases of libvirt."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_explainers import Case, cases_of, first, option
from tests.lab.tracing import whole_trace
from tests.support.command import virtrace
from tests.support.releases import RELEASES, lab_of
from tests.support.stages import staged
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import Stage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what others may not")


@pytest.fixture(scope="module", params=RELEASES)
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab_of(request) as lab:
        yield lab


@dataclass(frozen=True)
class Start:
    """A guest that does not start. why: the cause. words: of the answer."""

    why: str
    words: str
    disk: str = ""
    more: str = ""


Prepared = Callable[[Stage, ExitStack], Start]


def root_only(path: Path, mode: int) -> Path:
    os.chown(path, 0, 0)
    path.chmod(mode)
    return path


def qcow2(file: Path) -> str:
    return disk_xml("file", file_source(file), "vda", "type='qcow2'")


def raw(file: Path) -> str:
    return disk_xml("file", file_source(file), "vda")


def closed_folder(stage: Stage, _: ExitStack) -> Start:
    file = stage.image("closed.raw", MIB)
    folder = stage.images / "closed"
    (folder / "in").mkdir(parents=True)
    file = file.rename(folder / "in" / "vda.raw")
    root_only(folder, 0o700)
    words = f"user nobody (65534) may not search the folder {folder} (owner root, mode 0700)"
    return Start("no-permission", words, raw(file))


def closed_file(stage: Stage, _: ExitStack) -> Start:
    file = root_only(stage.image("unreadable.raw", MIB), 0)
    words = f"user nobody (65534) may not read the file {file} (owner root, mode 0000)"
    return Start("no-permission", words, raw(file))


def read_only_file(stage: Stage, _: ExitStack) -> Start:
    file = root_only(stage.image("read.raw", MIB), 0o444)
    words = f"user nobody (65534) may not write to the file {file} (owner root, mode 0444)"
    return Start("no-permission", words, raw(file))


def closed_by_acl(stage: Stage, _: ExitStack) -> Start:
    """The mode lets everybody pass, and an entry of the ACL nobody."""
    folder = stage.images / "acl"
    folder.mkdir()
    file = stage.image("acl.raw", MIB).rename(folder / "vda.raw")
    root_only(folder, 0o755)
    # A version; the owner, user 65534, group, mask and all others.
    entries = ((1, 7, -1), (2, 0, 65534), (4, 5, -1), (16, 5, -1), (32, 5, -1))
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little")
        + rights.to_bytes(2, "little")
        + (id_ % (1 << 32)).to_bytes(4, "little")
        for tag, rights, id_ in entries
    )
    os.setxattr(folder, "system.posix_acl_access", acl)
    words = f"may not search the folder {folder} (owner root, mode 0755, with an ACL)"
    return Start("no-permission", words, raw(file))


def gone(stage: Stage, _: ExitStack) -> Start:
    file = stage.images / "gone.raw"
    return Start("missing-file", f"{file} does not exist", raw(file))


def gone_folder(stage: Stage, _: ExitStack) -> Start:
    file = stage.images / "not" / "mounted" / "vda.raw"
    return Start(
        "missing-file", f"the folder {stage.images}/not of {file} does not exist", raw(file)
    )


def dangling(stage: Stage, _: ExitStack) -> Start:
    link = stage.images / "link.raw"
    link.symlink_to("elsewhere.raw")
    words = f"{link} leads by a link to {stage.images}/elsewhere.raw, which does not exist"
    return Start("missing-file", words, raw(link))


def gone_backing(stage: Stage, _: ExitStack) -> Start:
    """The lowest of three images."""
    files = [stage.image("base.qcow2", MIB, "qcow2")]
    for name in ("middle.qcow2", "top.qcow2"):
        file = stage.images / name
        below = ("-F", "qcow2", "-b", str(files[-1]))
        stage.qemu_img("create", "-q", "-f", "qcow2", *below, str(file))
        files.append(file)
    base, middle, top = files
    base.unlink()
    words = f"{base}, the backing file of {middle}, does not exist"
    return Start("missing-file", words, qcow2(top))


def locked(stage: Stage, _: ExitStack) -> Start:
    file = stage.lab.disk_file("vdb")
    pid = subprocess.check_output(["pgrep", "-f", f"guest=vm1,.*{stage.lab.folder}"], text=True)
    words = f"the QEMU of vm1 (process {pid.strip()}) uses the image {file}"
    return Start("locked", words, raw(file))


def taken_port(stage: Stage, stack: ExitStack) -> Start:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = server.getsockname()[1]
    serial = f"""
    <serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}'/>
      <protocol type='raw'/><target port='0'/></serial>"""
    own = Path("/proc/self/cmdline").read_text().split("\0")[0]
    words = f"port {port} is taken by {os.path.basename(own)} (process {os.getpid()})"
    return Start("in-use", words, serial)


def too_large(_: Stage, __: ExitStack) -> Start:
    much = option("-object", "memory-backend-ram,id=much,size=1024T,prealloc=on")
    return Start("no-memory", "the host has not enough memory", "", much)


STARTS = (
    *(closed_folder, closed_file, read_only_file, closed_by_acl, gone, gone_folder, dangling),
    *(gone_backing, locked, taken_port, too_large),
)


def test_who_denied_it(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """All in one recording, long before its end."""
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage, ExitStack() as stack:
        starts = {prepare.__name__: prepare(stage, stack) for prepare in STARTS}
        for name, start in starts.items():
            any_lab.define(name, stage.folder / f"{name}.xml", start.disk, start.more)
            stack.callback(any_lab.virsh, "undefine", name)
        commands = [f"start {name}" for name in starts]
        options = ("-p", any_lab.pid, "--engine", engine, "--host-facts", "-o", output)
        done = virtrace(
            "record", "start-failure", *options, "--", *any_lab.virsh_command("; ".join(commands))
        )
    assert done.returncode == 0, done.stderr
    assert f"of {len(STARTS)} failed calls\n" in done.stdout
    whole_trace(output)
    cases = {case["subject"][0]: case for case in cases_of(output)}
    assert {*cases} == {*starts}
    wrong = {
        name: (first(cases[name]), cases[name]["answer"])
        for name, start in starts.items()
        if (first(cases[name]), start.words in cases[name]["answer"]) != (start.why, True)
    }
    assert not wrong
    facts = facts_of(cases["closed_folder"])
    assert [row for row in facts if row.endswith("/closed")] == [[*facts][-1]]
    assert "available" in facts_of(cases["too_large"])
    assert any("QEMU's log: " in each["text"] for each in evidence_of(cases["too_large"]))


def facts_of(case: Case) -> dict[str, Any]:
    return {fact["name"]: fact["value"] for fact in case["facts"]}


def evidence_of(case: Case) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = case["causes"][0]["evidence"]
    return found
