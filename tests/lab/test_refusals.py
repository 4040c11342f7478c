"""Who denied it: what `--host-facts` finds as a start fails, on all releases of libvirt."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_explainers import Case, cases_of, option
from tests.lab.tracing import whole_trace
from tests.support.command import virtrace
from tests.support.mounts import mounted
from tests.support.releases import on_each_release
from tests.support.scenarios import assert_answers
from tests.support.silent_files import silent_files
from tests.support.stages import staged
from virtrace.host.paths import steps_to
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import Stage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what others may not")


@dataclass(frozen=True)
class Start:
    """A guest that does not start. why: the cause. words: of the answer.

    change: of its definition. is_new: it is created, not defined before.
    """

    why: str
    words: str
    disk: str = ""
    more: str = ""
    change: Callable[[str], str] = str
    is_new: bool = False


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
    """A folder above an image that only root may search."""
    file = stage.image("closed.raw", MIB)
    folder = stage.images / "closed"
    (folder / "in").mkdir(parents=True)
    file = file.rename(folder / "in" / "vda.raw")
    root_only(folder, 0o700)
    words = f"user nobody (65534) may not search the folder {folder} (owner root, mode 0700)"
    return Start("no-permission", words, raw(file))


def closed_file(stage: Stage, _: ExitStack) -> Start:
    """An image that nobody but root may read."""
    file = root_only(stage.image("unreadable.raw", MIB), 0)
    words = f"user nobody (65534) may not read the file {file} (owner root, mode 0000)"
    return Start("no-permission", words, raw(file))


def read_only_file(stage: Stage, _: ExitStack) -> Start:
    """An image that QEMU may only read."""
    file = root_only(stage.image("read.raw", MIB), 0o444)
    words = f"user nobody (65534) may not write to the file {file} (owner root, mode 0444)"
    return Start("no-permission", words, raw(file))


def closed_by_acl(stage: Stage, _: ExitStack) -> Start:
    """A folder whose mode lets everybody pass, and whose ACL does not."""
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
    """An image that is gone."""
    file = stage.images / "gone.raw"
    return Start("missing-file", f"{file} does not exist", raw(file))


def gone_folder(stage: Stage, _: ExitStack) -> Start:
    """A folder that is gone, with an image in it."""
    file = stage.images / "not" / "mounted" / "vda.raw"
    return Start(
        "missing-file", f"the folder {stage.images}/not of {file} does not exist", raw(file)
    )


def dangling(stage: Stage, _: ExitStack) -> Start:
    """A link that leads to no file."""
    link = stage.images / "link.raw"
    link.symlink_to("elsewhere.raw")
    words = f"{link} leads by a link to {stage.images}/elsewhere.raw, which does not exist"
    return Start("missing-file", words, raw(link))


def gone_backing(stage: Stage, _: ExitStack) -> Start:
    """The lowest of three images is gone."""
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
    """An image that another guest uses."""
    file = stage.lab.disk_file("vdb")
    pid = subprocess.check_output(["pgrep", "-f", f"guest=vm1,.*{stage.lab.folder}"], text=True)
    words = f"the QEMU of vm1 (process {pid.strip()}) uses the image {file}"
    return Start("locked", words, raw(file))


def taken_port(stage: Stage, stack: ExitStack) -> Start:
    """A port that another process has."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = server.getsockname()[1]
    serial = f"""
    <serial type='tcp'><source mode='bind' host='127.0.0.1' service='{port}'/>
      <protocol type='raw'/><target port='0'/></serial>"""
    own = Path("/proc/self/cmdline").read_text().split("\0")[0]
    words = f"port {port} is taken by {os.path.basename(own)} (process {os.getpid()})"
    return Start("in-use", words, serial)


def too_large(_: Stage, __: ExitStack) -> Start:
    """More memory than the host has."""
    much = option("-object", "memory-backend-ram,id=much,size=1024T,prealloc=on")
    return Start("no-memory", "the host has not enough memory", "", much)


def no_network(stage: Stage, stack: ExitStack) -> Start:
    """A network that is not active."""
    # There is none at all where there is no driver of networks.
    definition = stage.folder / "network.xml"
    definition.write_text("<network><name>quiet</name></network>")
    defined = stage.lab.virsh("net-define", str(definition)).returncode == 0
    stack.callback(stage.lab.virsh, "net-undefine", "quiet")
    words = "'quiet' is not active" if defined else "no connection driver available for network"
    interface = "<interface type='network'><source network='quiet'/></interface>"
    return Start("no-network", words, interface)


def no_kvm(stage: Stage, stack: ExitStack) -> Start:
    """A device /dev/kvm that is root's alone."""
    node = stage.folder / "kvm"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 232))
    stack.enter_context(mounted(stage.lab.pid, Path("/dev/kvm"), "--bind", str(node)))
    words = "may not read the character device /dev/kvm (owner root, mode 0600)"
    return Start("no-kvm", words, change=lambda xml: xml.replace("'qemu'", "'kvm'"), is_new=True)


def no_probing(stage: Stage, _: ExitStack) -> Start:
    """A program in place of QEMU that fails."""
    program = stage.images / "emulator"
    program.write_text(f'#!/bin/sh\nexec {stage.lab.system.emulator} "$@"\n')
    program.chmod(0o755)
    emulator = f"<emulator>{stage.lab.system.emulator}</emulator>"
    changed = f"<emulator>{program}</emulator>"

    def change(xml: str) -> str:
        stage.folder.joinpath("probe.xml").write_text(xml.replace(emulator, changed))
        stage.lab.virsh_checked("undefine", no_probing.__name__)
        stage.lab.virsh_checked("define", str(stage.folder / "probe.xml"))
        program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
        os.utime(program, (1, 1))
        return xml

    return Start("probing", "what the QEMU program can do: ", change=change)


STARTS = (
    *(closed_folder, closed_file, read_only_file, closed_by_acl, gone, gone_folder, dangling),
    *(gone_backing, locked, taken_port, too_large, no_network, no_kvm, no_probing),
)


def defined(stage: Stage, stack: ExitStack, name: str, start: Start) -> str:
    """Define the guest; return the command that starts it."""
    file = stage.folder / f"{name}.xml"
    stage.lab.define(name, file, start.disk, start.more)
    if start.is_new:
        stage.lab.virsh_checked("undefine", name)
    else:
        stack.callback(stage.lab.virsh, "undefine", name)
    file.write_text(start.change(file.read_text()))
    return f"create {file}" if start.is_new else f"start {name}"


@on_each_release
def test_who_denied_it(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """All in one recording, long before its end."""
    with staged(any_lab) as stage, ExitStack() as stack:
        starts = {prepare.__name__: prepare(stage, stack) for prepare in STARTS}
        commands = [defined(stage, stack, name, start) for name, start in starts.items()]
        told = recorded(any_lab, engine, "start-failure", tmp_path / "t.jsonl", *commands)
    assert len(told) == len(starts)
    cases = dict(zip(starts, told))
    scenarios = {
        f"--host-facts: {(prepare.__doc__ or '').rstrip('.')}": (
            "a new guest" if start.is_new else name,
            start.why,
        )
        for prepare, (name, start) in zip(STARTS, starts.items())
    }
    assert_answers(tmp_path / "t.jsonl", [*cases.values()], scenarios)
    answers = {name: case["answer"] for name, case in cases.items()}
    assert not {
        name: answers[name] for name, start in starts.items() if start.words not in answers[name]
    }
    facts = facts_of(cases["closed_folder"])
    assert [*facts][-1].endswith("/closed")
    assert "available" in facts_of(cases["too_large"])
    assert any("QEMU's log: " in each["text"] for each in evidence_of(cases["too_large"]))


def facts_of(case: Case) -> dict[str, Any]:
    return {fact["name"]: fact["value"] for fact in case["facts"]}


def evidence_of(case: Case) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = case["causes"][0]["evidence"]
    return found


def recorded(lab: Lab, engine: str, recipe: str, output: Path, *virsh: str) -> list[Case]:
    record(recipe, lab, engine, output, *virsh)
    return cases_of(output)


def record(recipe: str, lab: Lab, engine: str, output: Path, *virsh: str) -> None:
    options = ("-p", lab.pid, "--engine", engine, "--host-facts", "-o", output)
    command = lab.virsh_command("; ".join(virsh))
    done = virtrace("record", recipe, *options, "--", *command)
    assert done.returncode == 0, done.stderr
    whole_trace(output)


@on_each_release
def test_who_denied_a_commit_and_a_refresh(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A base that QEMU may only read, and a pool in a folder that the daemon may not search."""
    with staged(any_lab) as stage, ExitStack() as stack:
        base = stage.image("vda.qcow2", MIB, "qcow2")
        stage.start(qcow2(base))
        top = f"vda,file={stage.images / 'top.qcow2'}"
        stage.virsh("snapshot-create-as", "vm2", "--disk-only", "--no-metadata", "--diskspec", top)
        root_only(base, 0o444)
        commit = "blockcommit vm2 vda --active --pivot --wait"
        [job] = recorded(any_lab, engine, "blockjob", tmp_path / "job.jsonl", commit)
        folder = stage.images / "pool"
        (folder / "in").mkdir(parents=True)
        os.chown(folder / "in", any_lab.system.uid, any_lab.system.gid)
        any_lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(folder / "in"))
        stack.callback(any_lab.virsh, "pool-destroy", "pool")
        root_only(folder, 0o700)
        [pool] = recorded(
            any_lab, engine, "pool-refresh", tmp_path / "pool.jsonl", "pool-refresh pool"
        )
    scenario = {"--host-facts: a commit into an image of root": ("vm2 vda", "no-permission")}
    assert_answers(tmp_path / "job.jsonl", [job], scenario)
    words = f"user nobody (65534) may not write to the file {base} (owner root, mode 0444)"
    assert f"The commit was refused because {words}: " in job["answer"]
    scenario = {"--host-facts: a folder of root above the pool": ("pool", "no-permission")}
    assert_answers(tmp_path / "pool.jsonl", [pool], scenario)
    words = f"user nobody (65534) may not search the folder {folder} (owner root, mode 0700)"
    assert f"The refresh failed because {words}: " in pool["answer"]


def test_a_file_system_that_does_not_answer_is_waited_for_a_while(stock_lab: Lab) -> None:
    """What is above it is told all the same."""
    with staged(stock_lab) as stage:
        point = stage.images / "silent"
        point.mkdir()
        with silent_files(stock_lab.pid, point):
            began = time.monotonic()
            *above, last = steps_to(str(point / "folder" / "vda.raw"), stock_lab.pid, 1.0)
            assert time.monotonic() - began < 5
    assert last == {
        "path": str(point),
        "problem": "its file system did not answer within 1.0 s",
    }
    assert above[-1]["path"] == str(stage.images)
    assert [step["type"] for step in above] == ["folder"] * len(above)


@pytest.fixture
def hooked_lab() -> Iterator[Lab]:
    """A daemon that found a hook script when it started, in this mount namespace alone."""
    place = Path("/etc/libvirt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    try:
        script = place / "hooks" / "qemu"
        script.parent.mkdir()
        script.write_text(
            '#!/bin/sh\n[ "$1 $2" = "hooked prepare" ] || exit 0\necho not today >&2\nexit 3\n'
        )
        script.chmod(0o755)
        lab = bring_up()
        yield lab
        lab.down()
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_hook_that_refuses(hooked_lab: Lab, engine: str, tmp_path: Path) -> None:
    hooked_lab.define("hooked", hooked_lab.folder / "hooked.xml", "")
    output = tmp_path / "t.jsonl"
    record("start-failure", hooked_lab, engine, output, "start hooked")
    # One word of the message is longer than a line.
    [case] = json.loads(virtrace("explain", "--json", output).stdout)["cases"]
    assert_answers(output, [case], {"a hook script refuses it": ("hooked", "hook")})
    assert "because a hook script refused it: " in case["answer"]
    assert "not today" in case["answer"]
