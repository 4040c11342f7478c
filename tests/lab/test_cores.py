"""`virtrace snapshot --core` of a daemon that has crashed for real, from the kernel's own core."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lab.conftest import bring_up
from tests.support import backtraces
from tests.support.command import virtrace
from tests.support.hanging import PATIENCE, qemu_of, relaunch, thread_of, waiting
from tests.support.kernel_cores import CAN_SET, cores_of, kept_in
from tests.support.systemd_cores import storing
from tests.support.waiting import wait_for_end, wait_until
from virtrace.image.core import CoreImage
from virtrace.lab.daemon import Lab
from virtrace.lab.roots import ensure_root

pytestmark = pytest.mark.skipif(not CAN_SET, reason="only root of the host says where cores go")
ASK, WAIT = ("domblkinfo", "vm1", "vda"), ("suspend", "vm1")
# Preloaded into a daemon, which takes QEMU's answers out of their JSON by this function: once a
# file is there, the daemon gets the number in it in place of the pointer.
WRONG_POINTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

void *virJSONValueObjectStealArray(void *object, const char *key)
{
    void *(*real)(void *, const char *) = dlsym(RTLD_NEXT, __func__);
    void *found = real(object, key);
    FILE *file = fopen(getenv("WRONG_POINTER"), "r");
    if (file)
        fread(&found, sizeof(found), 1, file);
    return found;
}
"""
# Where nothing is mapped, the same near NULL, and what the processor takes for no address.
UNMAPPED, NEAR_NULL, IMPOSSIBLE = 0x4141414141E8, 8, 0x4141414141414141
# The first functions with names on the stack of a thread that reads it.
STACK = [
    "virJSONValueArraySize+",
    "qemuMonitorJSONGetAllBlockStatsInfo+",
    "qemuMonitorGetAllBlockStatsInfo+",
    "virDomainGetBlockInfo+",
    "virNetServerProgramDispatch+",
]


class Crashed(NamedTuple):
    """A daemon that has crashed. asking, behind: the pids of its clients."""

    pid: int
    asking: int
    behind: int


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A daemon that may crash; it is the distribution's own, stripped."""
    lab = bring_up()
    yield lab
    lab.down()


@contextmanager
def serving(lab: Lab) -> Iterator[tuple[Crashed, Path]]:
    """A call that waits for QEMU, and one that waits for its job. The file is what it reads."""
    source, library = (lab.folder / "cache" / f"wrong-pointer.{each}" for each in ("c", "so"))
    source.write_text(WRONG_POINTER)
    flags = ("-O1", "-fPIC", "-shared", "-o", str(library), str(source), "-ldl")
    lab.system.run("gcc", *flags, as_daemon=True)
    file = lab.folder / "wrong-pointer"
    file.unlink(missing_ok=True)
    if not lab.is_up:
        lab.launch()
    relaunch(lab, "env", f"LD_PRELOAD={library}", f"WRONG_POINTER={file}")
    wait_until(lambda: lab.virsh(*ASK).returncode == 0, "the daemon serves its guest")
    with lab.stalled(), waiting(lab, ASK, WAIT) as (asking, behind):
        pid = lab.pid
        yield Crashed(pid, asking.pid, behind.pid), file
        wait_for_end(pid)


def read_wrongly(lab: Lab, file: Path, pointer: int) -> None:
    """Let the daemon go on, with a number in place of a pointer."""
    file.write_bytes(pointer.to_bytes(8, "little"))
    os.kill(qemu_of(lab), signal.SIGCONT)


def crash_by_reading(lab: Lab, core: Path, pointer: int = UNMAPPED) -> Crashed:
    """Let a daemon read there; return when its core is whole."""
    with serving(lab) as (crashed, file), cores_of(lab, kept_in(core)):
        read_wrongly(lab, file, pointer)
        wait_until(core.exists, "the core is whole")
    return crashed


@pytest.fixture(scope="module")
def kernel_core(lab: Lab) -> tuple[Path, Crashed]:
    """The core of a daemon that read where nothing is mapped."""
    core = lab.folder / "core"
    return core, crash_by_reading(lab, core)


def of_core(core: Path, root: Path = Path("/")) -> dict[str, Any]:
    done = virtrace("snapshot", "--json", "--core", core, "--root", root)
    assert done.returncode == 1, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def gdb_says(core: Path, *expressions: str) -> list[str]:
    """Values, as GDB prints them."""
    words = [word for each in expressions for word in ("-ex", f"print {each}")]
    command = ["gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", *words]
    done = subprocess.run(
        [*command, "/usr/sbin/libvirtd", core], capture_output=True, text=True, timeout=PATIENCE
    )
    return re.findall(r"^\$\d+ = (.*)$", done.stdout, re.M)


def assert_served(document: dict[str, Any], tid: int, crashed: Crashed) -> None:
    """What a thread served for whom, what it held, and who waits for it."""
    thread = thread_of(document, tid)
    assert (thread["api"], thread["role"]) == ("virDomainGetBlockInfo", "worker")
    request = thread["request"]
    assert (request["subject"], request["name"]) == ("domain", "vm1")
    assert request["arguments"] == {"disk": "vda"}
    assert (thread["client"]["pid"], thread["client"]["user"]) == (crashed.asking, "root")
    assert document["daemon"]["pid"] == crashed.pid
    (domain,) = document["domains"]
    (job,) = domain["jobs"]
    assert (domain["name"], job["kind"], job["work"]) == ("vm1", "job", "query")
    assert (job["owner"], job["api"]) == (tid, "remoteDispatchDomainGetBlockInfo")
    (other,) = (one for one in document["threads"] if one["api"] == "virDomainSuspend")
    assert other["client"]["pid"] == crashed.behind
    assert (other["wait"]["kind"], other["wait"]["domain"]) == ("job", "vm1")


def assert_crashed(document: dict[str, Any], crashed: Crashed) -> None:
    """Everything of a daemon that read where nothing is mapped."""
    first = document["verdicts"][0]
    tid = document["threads"][0]["tid"]
    assert re.fullmatch(
        r"The daemon crashed with SIGSEGV at address 0x4141414141f0, which is not mapped, in "
        r"virJSONValueArraySize\+0x[0-9a-f]+ \(libvirt\.so\.0\.\d+\.0\), in "
        rf"virDomainGetBlockInfo on vm1 \(thread {tid}\)\.",
        first["says"],
    )
    assert (first["verdict"], first["thread"]) == ("crashed", tid)
    assert_served(document, tid, crashed)
    named = [frame for frame in document["threads"][0]["frames"] if frame.startswith(tuple(STACK))]
    assert [frame.partition("+")[0] + "+" for frame in named] == STACK
    # Nothing hangs but what waits for the job of that thread: a crash comes at any moment.
    assert {verdict["verdict"] for verdict in document["verdicts"]} == {"crashed"}


def assert_gdb_agrees(core: Path, root: Path) -> None:
    """On all frames and registers."""
    program = root / "usr/sbin/libvirtd"
    theirs = backtraces.of_gdb("-iex", f"set sysroot {root}", program, core)
    ours = backtraces.of_image(CoreImage(core, root))
    found, frames, registers = backtraces.differences(ours, theirs)
    assert found == []
    assert frames > 100
    assert registers > 500


def test_what_crashed_and_for_whom(kernel_core: tuple[Path, Crashed]) -> None:
    core, crashed = kernel_core
    assert_crashed(of_core(core), crashed)


def test_gdb_says_the_same_of_that_core(kernel_core: tuple[Path, Crashed]) -> None:
    core, _ = kernel_core
    crash = of_core(core)["crash"]
    assert gdb_says(
        core, "$_siginfo.si_signo", "$_siginfo.si_code", "$_siginfo._sifields._sigfault.si_addr"
    ) == [str(crash["signal"]), str(crash["code"]), f"(void *) {crash['address']}"]
    image = CoreImage(core)
    # GDB's first thread is the one that got the signal, too.
    assert gdb_says(core, "$_inferior_thread_count", "$pc")[1].startswith(
        f"(void (*)()) {image.threads()[0].registers['rip']:#x}"
    )
    assert_gdb_agrees(core, Path("/"))


def test_files_are_of_the_host_by_their_build_ids(kernel_core: tuple[Path, Crashed]) -> None:
    """The kernel leaves out what is mapped from files."""
    core, _ = kernel_core
    image = CoreImage(core)
    assert image.missing == ()
    (module,) = (one for one in image.program.modules if one.name == "libvirt_driver_qemu.so")
    code = module.elf.content(0x40000, 4096)
    assert code is not None
    assert code not in core.read_bytes()
    notes = subprocess.run(
        ["readelf", "-n", module.path], capture_output=True, text=True, check=True
    )
    assert f"Build ID: {module.build_id}" in notes.stdout


def test_a_core_in_a_folder_of_abrt(kernel_core: tuple[Path, Crashed], tmp_path: Path) -> None:
    """It keeps the kernel's core without its zeros, as a file `coredump`."""
    core, _ = kernel_core
    file = tmp_path / "ccpp-2026-11-30-12:41:45-4242" / "coredump"
    file.parent.mkdir()
    options = ("--sparse=always", "--preserve=timestamps")
    subprocess.run(["cp", *options, str(core), str(file)], check=True)
    assert file.stat().st_blocks < core.stat().st_blocks
    assert of_core(file) == of_core(core)


@pytest.mark.parametrize(
    ("pointer", "code", "address", "reason"),
    [
        (NEAR_NULL, 1, "0x10", " at address 0x10, a NULL pointer and an offset, which is not m"),
        (IMPOSSIBLE, 128, None, " in virJSONValueArraySize+"),
    ],
    ids=["near NULL", "impossible"],
)
def test_another_address(
    lab: Lab, pointer: int, code: int, address: str | None, reason: str, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    crashed = crash_by_reading(lab, core, pointer)
    document = of_core(core)
    crash = document["crash"]
    assert (crash["signal"], crash["code"], crash["address"]) == (signal.SIGSEGV, code, address)
    assert gdb_says(core, "$_siginfo.si_signo", "$_siginfo.si_code") == ["11", str(code)]
    assert document["verdicts"][0]["says"].startswith(f"The daemon crashed with SIGSEGV{reason}")
    assert_served(document, document["threads"][0]["tid"], crashed)


def test_a_signal_that_somebody_sent(lab: Lab, tmp_path: Path) -> None:
    core = tmp_path / "core"
    with serving(lab) as (crashed, _), cores_of(lab, kept_in(core)):
        os.kill(crashed.pid, signal.SIGSEGV)
        wait_until(core.exists, "the core is whole")
    document = of_core(core)
    crash = document["crash"]
    assert (crash["signal"], crash["code"], crash["address"]) == (signal.SIGSEGV, 0, None)
    assert crash["sender"] == os.getpid()
    assert document["verdicts"][0]["says"].startswith(
        f"The daemon crashed with SIGSEGV, sent by process {os.getpid()}, in "
    )
    (serves,) = (one for one in document["threads"] if one["api"] == "virDomainGetBlockInfo")
    assert serves["wait"]["command"]["name"] == "query-blockstats"
    assert_served(document, serves["tid"], crashed)


@pytest.mark.matrix
@pytest.mark.parametrize("release", ["bullseye", "trixie", "sid"])
def test_what_crashed_on_another_release(release: str, folder: Path) -> None:
    with Lab(folder, release=release) as lab:
        core, root = folder / "core", ensure_root(release, print)
        crashed = crash_by_reading(lab, core)
        assert_crashed(of_core(core, root), crashed)
        assert_gdb_agrees(core, root)


@pytest.mark.matrix
def test_a_core_that_systemd_has_stored(lab: Lab, tmp_path: Path) -> None:
    with storing() as storage:
        with serving(lab) as (crashed, file), cores_of(lab, storage.handler, storage.arguments):
            read_wrongly(lab, file, UNMAPPED)
            stored = ("-1", "info", str(crashed.pid))
            wait_until(lambda: storage.coredumpctl(*stored).returncode == 0, "the core is stored")
        latest = storage.virtrace("snapshot", "--json", "--core", "latest")
        assert latest.returncode == 1, latest.stderr
        named = storage.virtrace("snapshot", "--json", "--core", crashed.pid)
        said = storage.coredumpctl(*stored).stdout
        listed = storage.coredumpctl("--json=short", "list", str(crashed.pid)).stdout
        dumped = storage.coredumpctl("-o", str(tmp_path / "core"), "dump", str(crashed.pid))
        assert dumped.returncode == 0, dumped.stderr
    place = re.search(r"^ *Storage: (/var/lib/systemd/coredump/core\.libvirtd\S+)", said, re.M)
    assert place is not None, said
    assert latest.stderr == f"virtrace: the core is {place[1]}\n"
    assert json.loads(named.stdout) == json.loads(latest.stdout)
    document = json.loads(latest.stdout)
    # What systemd itself says of it.
    (entry,) = json.loads(listed)
    assert (entry["pid"], entry["sig"]) == (document["daemon"]["pid"], document["crash"]["signal"])
    assert entry["exe"] == document["daemon"]["exe"]
    tid = document["threads"][0]["tid"]
    assert_served(document, tid, crashed)
    # The core as it was before it was packed, and its stacks as text.
    plain = of_core(tmp_path / "core")
    assert plain["threads"][0]["frames"] == document["threads"][0]["frames"]
    assert plain["crash"] == document["crash"]
    text = tmp_path / "info.txt"
    text.write_text(said)
    done = virtrace("snapshot", "--json", "--stacks", text)
    assert done.returncode == 1, done.stderr
    of_text = json.loads(done.stdout)
    assert (of_text["threads"][0]["tid"], of_text["daemon"]["pid"]) == (tid, crashed.pid)
    assert of_text["verdicts"][0]["says"] == (
        "The daemon crashed with SIGSEGV in virJSONValueArraySize (libvirt.so.0), in "
        f"virDomainGetBlockInfo (thread {tid})."
    )
