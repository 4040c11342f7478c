"""Stacks as text: what names of functions tell, in each of the forms."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from tests.support.command import virtrace
from tests.support.faulting import FAULTS, LIBRARY, PROGRAM
from tests.support.paths import DATA
from virtrace.binary.reader import read_by_child
from virtrace.errors import TraceError
from virtrace.snapshot.document import snapshot_of_text
from virtrace.snapshot.logs import kernel_crashes
from virtrace.snapshot.modules_here import ModulesHere
from virtrace.targets.libvirt import LIBVIRT

GDB = """\
[New LWP 27]
Thread 3 (Thread 0x7f1 (LWP 27) "rpc-libvirtd"):
#0  __futex_abstimed_wait_common64 (private=0, op=393) at ./nptl/futex-internal.c:57
#1  ___pthread_cond_wait (cond=0x55e, mutex=0x55e) at ./nptl/pthread_cond_wait.c:618
#2  0x00007fe8c4526986 in virCondWait () from /lib/x86_64-linux-gnu/libvirt.so.0
#3  0x00007fe8bd0fff9a in qemuMonitorSend () from /usr/lib/libvirt_driver_qemu.so
#4  0x00007fe8bd0ff000 in ?? () from /usr/lib/libvirt_driver_qemu.so
#5  0x00007fe8c4526ac7 in virDomainGetBlockInfo () from /lib/x86_64-linux-gnu/libvirt.so.0
#6  0x00007fe8c4526ac7 in virNetServerProgramDispatch () from /lib/x86_64-linux-gnu/libvirt.so.0

Thread 2 (Thread 0x7f2 (LWP 26) "rpc-libvirtd"):
#0  ___pthread_cond_wait (cond=0x55e, mutex=0x55e) at ./nptl/pthread_cond_wait.c:618
#1  0x00007fe8c4526986 in virCondWait () from /lib/x86_64-linux-gnu/libvirt.so.0
#2  0x00007fe8c45273fb in ?? () from /lib/x86_64-linux-gnu/libvirt.so.0
#3  0x00007fe8c4526ac7 in ?? () from /lib/x86_64-linux-gnu/libvirt.so.0
#4  0x00007fe8c403a1f5 in start_thread (arg=<optimized out>) at ./nptl/pthread_create.c:442

Thread 1 (Thread 0x7f3 (LWP 25) "libvirtd"):
#0  0x00007fe8c40ad26f in __GI___poll (fds=0x7fe, nfds=2) at poll.c:29
#1  0x00007fe8c490e91e in ?? () from /lib/x86_64-linux-gnu/libglib-2.0.so.0
#2  0x00007fe8c490ec5f in g_main_context_iteration () from /lib/libglib-2.0.so.0
#3  0x00007fe8c44d27fa in virEventGLibRunOnce () from /lib/x86_64-linux-gnu/libvirt.so.0
"""
COREDUMPCTL = """\
           PID: 25 (libvirtd)
        Signal: 11 (SEGV)
       Message: Process 25 (libvirtd) of user 0 dumped core.

                Stack trace of thread 27:
                #0  0x00007f1 pthread_mutex_lock (libc.so.6 + 0x8f001)
                #1  0x00007f2 virObjectLock (libvirt.so.0 + 0x1f001)
                #2  0x00007f3 n/a (libvirt_driver_qemu.so + 0xd4a0a)
                #3  0x00007f4 virDomainSuspend (libvirt.so.0 + 0x300b30)
                #4  0x00007f5 virNetServerProgramDispatch (libvirt.so.0 + 0x1eab30)

                Stack trace of thread 25:
                #0  0x00007f1 poll (libc.so.6 + 0x10226f)
                #1  0x00007f2 n/a (libglib-2.0.so.0 + 0x5491e)
                #2  0x00007f3 g_main_context_iteration (libglib-2.0.so.0 + 0x54a3c)
"""
EU_STACK = """\
PID 25 - process
TID 25:
#0  0x00007f1 open64
#1  0x00007f2 virFileOpenAs
#2  0x00007f3 main
"""


def test_gdb() -> None:
    found = snapshot_of_text(GDB, "bt.txt")
    assert [one["verdict"] for one in found["verdicts"]] == ["qemu-asked"]
    by_tid = {thread["tid"]: thread for thread in found["threads"]}
    assert {tid: one["wait"]["kind"] for tid, one in by_tid.items()} == {
        27: "qemu",
        26: "idle",
        25: "loop",
    }
    assert by_tid[27]["api"] == "virDomainGetBlockInfo"
    assert by_tid[27]["frames"][3] == "qemuMonitorSend (libvirt_driver_qemu.so)"
    assert [by_tid[tid]["role"] for tid in (27, 26, 25)] == ["worker", "worker", "main thread"]


def test_stacks_of_coredumpctl() -> None:
    stacks = COREDUMPCTL[COREDUMPCTL.index("                Stack trace") :]
    first = snapshot_of_text(stacks, "info.txt")["verdicts"][0]
    assert (first["verdict"], first["thread"]) == ("lock", 27)
    assert first["says"] == "virDomainSuspend (thread 27) waits for a lock."


def test_eu_stack() -> None:
    first = snapshot_of_text(EU_STACK, "eu.txt")["verdicts"][0]
    assert first["verdict"] == "event-loop"
    assert "open" in first["says"]


# Of a kernel 6.18 and of libvirt 9.0.0; the others are in the forms of older releases.
SEGFAULT = (
    "[ 3559.334822] rpc-libvirtd[32588]: segfault at ca ip 00007f7074d0a8de sp 00007f7070dfe9b0 "
    "error 6 in libvirt.so.0.9000.0[10a8de,7f7074c8f000+2a0000] likely on CPU 1 (core 1, socket 0)"
)
OLD_SEGFAULT = (
    "Nov 30 12:50:40 host kernel: libvirtd[1234]: segfault at 0 ip 00007f7074d0a8de "
    "sp 00007f7070dfe9b0 error 4 in libvirt.so.0.4005.0[7f7074c8f000+2a0000]"
)
TRAP = (
    "traps: rpc-virtqemud[77] general protection fault ip:7f7074d0a8de sp:7f7070dfe9b0 error:0 "
    "in libvirt.so.0.9000.0[10a8de,7f7074c8f000+2a0000]"
)
OTHER = "bash[1]: segfault at 0 ip 401000 sp 7ffe0 error 4 in bash[401000+1000]"
JOBS = """\
2026-11-30 12:50:34.771+0000: 32591: warning : virDomainObjBeginJobInternal:433 : Cannot start job \
(query, none, none) in API remoteDispatchConnectGetAllDomainStats for domain vm1; current job is \
(query, none, none) owned by (32588 remoteDispatchDomainGetBlockInfo, 0 <null>, 0 <null> \
(flags=0x0)) for (30s, 0s, 0s)
2026-11-30 12:50:36.536+0000: 32590: warning : virDomainObjBeginJobInternal:433 : Cannot start job \
(suspend, none, none) in API remoteDispatchDomainSuspend for domain vm1; current job is \
(query, none, none) owned by (32588 remoteDispatchDomainGetBlockInfo, 0 <null>, 0 <null> \
(flags=0x0)) for (32s, 0s, 0s)
"""
OLD_JOB = (
    "Nov 30 12:00:00 host libvirtd[12]: Cannot start job (modify, none) for domain a b; current "
    "job is (none, migration in) owned by (0 <null>, 0 remoteDispatchDomainMigratePrepare3Params) "
    "for (0s, 72s)"
)


@pytest.mark.parametrize(
    ("line", "says", "thread"),
    [
        (
            SEGFAULT,
            "SIGSEGV writing address 0xca, a NULL pointer and an offset, where the process had no "
            "memory that allows that, in libvirt.so.0.9000.0+0x10a8de, in the worker (thread "
            "32588).",
            ("rpc-libvirtd", "worker"),
        ),
        (
            OLD_SEGFAULT,
            "SIGSEGV reading address 0x0, a NULL pointer, where the process had no memory that "
            "allows that, in libvirt.so.0.4005.0, 0x7b8de behind the start of its mapping, in "
            "the thread (thread 1234).",
            ("libvirtd", "thread"),
        ),
        (
            TRAP,
            "SIGSEGV in libvirt.so.0.9000.0+0x10a8de, in the worker (thread 77).",
            ("rpc-virtqemud", "worker"),
        ),
        (
            SEGFAULT.replace("at ca", "at 7f70ffff0000").replace("error 6", "error 15"),
            "SIGSEGV executing address 0x7f70ffff0000, where the process did not allow that, in "
            "libvirt.so.0.9000.0+0x10a8de, in the worker (thread 32588).",
            ("rpc-libvirtd", "worker"),
        ),
        (
            "[1.0] virtqemud[5]: segfault at 18 ip 0000000000000018 sp 00007f7070dfe9b0 error 14",
            "SIGSEGV executing address 0x18, a NULL pointer and an offset, where the process had "
            "no memory that allows that, in 0x18, in the thread (thread 5).",
            ("virtqemud", "thread"),
        ),
    ],
)
def test_a_crash_in_the_log_of_the_kernel(line: str, says: str, thread: tuple[str, str]) -> None:
    found = snapshot_of_text(f"[ 0.1] Linux version\n{line}\n{OTHER}\n", "dmesg.txt")
    assert found["verdicts"][0]["verdict"] == "crashed"
    assert found["verdicts"][0]["says"] == f"The daemon crashed with {says}"
    (one,) = found["threads"]
    assert (one["name"], one["role"]) == thread


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "6.18"])
def test_the_log_of_a_real_kernel(release: str) -> None:
    """What tests/support/faulting.py does, in its order; tests/kernels has the same live."""
    log = (DATA / "kernel-logs" / f"linux-{release}.log").read_text()
    crashes = [*kernel_crashes(log)]
    assert [(one.signal, one.access) for one in crashes] == [
        (fault.signal, fault.access) for fault in FAULTS
    ]
    assert crashes[0].address == FAULTS[0].address
    has_offsets = release in ("6.12", "6.18")
    for one in crashes:
        assert one.name == PROGRAM
        assert one.mapping is not None
        assert one.mapping.module == LIBRARY
        assert (one.mapping.offset is not None) == has_offsets
        inside = one.ip - one.mapping.start
        assert 0 < inside < one.mapping.size
        assert one.mapping.offset in (None, 0x1000 + inside, 0x3000 + inside)


def test_a_crash_of_another_program_is_none() -> None:
    with pytest.raises(TraceError, match="no crash"):
        snapshot_of_text(OTHER, "dmesg.txt")


def test_a_name_is_only_given_where_the_code_has_the_same_size() -> None:
    """By the file here, whatever its version: the line is made for a function of it."""
    modules = ModulesHere(LIBVIRT, Path("/"))
    names = [name for name in modules.names if name.startswith("libvirt.so.0.")]
    if not names:
        pytest.skip("libvirt is not installed")
    elf = read_by_child(next(Path("/usr/lib").rglob(names[0])))
    (code,) = (segment for segment in elf.segments if segment.executable)
    start = elf.exported_function("virFree") or elf.exported_function("virBitmapSize")
    assert start is not None
    begins = code.offset // 4096 * 4096
    size = -(-(code.offset + code.size) // 4096) * 4096 - begins
    offset = start - code.address + code.offset + 3
    ip = 0x7F0000000000 + offset - begins
    for form in (f"{offset:x},7f0000000000", "7f0000000000"):
        begin = f"libvirtd[9]: segfault at 0 ip {ip:x} sp 7ffe0 error 4 in {names[0]}[{form}"
        found = snapshot_of_text(f"{begin}+{size:x}]", "x", modules)
        (frame,) = found["threads"][0]["frames"]
        assert re.fullmatch(rf"vir\w+\+0x3 \({re.escape(names[0])}\)", frame)
        assert "has the same size" in found["notes"][0]
        other = snapshot_of_text(f"{begin}+{size + 4096:x}]", "x", modules)
        assert not re.match("vir", other["threads"][0]["frames"][0])
        assert "no file of this name here has code of that size" in other["notes"][0]
        # It jumped into a mapping that is as large, and is no code.
        data = begin.replace("error 4", "error 15")
        lost = snapshot_of_text(f"{data}+{size:x}]", "x", modules)
        assert not re.match("vir", lost["threads"][0]["frames"][0])
        assert "cannot be executed" in lost["notes"][0]


def test_calls_that_gave_up() -> None:
    found = snapshot_of_text(JOBS, "libvirtd.log")
    first = found["verdicts"][0]
    assert first["verdict"] == "held-job"
    assert first["says"] == (
        "vm1 was blocked by virDomainGetBlockInfo (thread 32588): its job query, held for 32.0 s. "
        "These gave up: virConnectGetAllDomainStats on vm1 (thread 32591), virDomainSuspend on "
        "vm1 (thread 32590)."
    )
    assert found["taken"] == "2026-11-30T12:50:36.536000+00:00"
    (domain,) = found["domains"]
    assert domain["jobs"] == [
        {
            "kind": "job",
            "work": "query",
            "owner": 32588,
            "api": "remoteDispatchDomainGetBlockInfo",
            "since": 1796043004.536,
        }
    ]


def test_stacks_and_the_log_of_one_daemon() -> None:
    """The stack says what the holder waits for, the log of which domain the job is."""
    log = JOBS.replace("32588", "27").replace("32591", "26")
    found = snapshot_of_text(f"{log}\n{GDB}", "report.txt")
    assert found["verdicts"][0]["verdict"] == "qemu-asked"
    kinds = {thread["tid"]: thread["wait"]["kind"] for thread in found["threads"]}
    assert kinds == {27: "qemu", 26: "idle", 25: "loop", 32590: "job"}
    jobs = found["domains"][0]["jobs"]
    assert isinstance(jobs, list)
    assert [job["owner"] for job in jobs] == [27]


def test_a_job_without_a_thread_in_a_log_without_times() -> None:
    found = snapshot_of_text(OLD_JOB, "messages")
    (domain,) = found["domains"]
    assert domain["name"] == "a b"
    assert isinstance(domain["jobs"], list)
    assert (domain["jobs"][0]["kind"], domain["jobs"][0]["owner"]) == ("async job", None)
    assert any("the log has no times" in note for note in found["notes"])
    # The line has no thread.
    assert found["threads"] == []
    assert found["verdicts"][0]["verdict"] == "held-job"
    assert found["verdicts"][0]["says"] == (
        "a b was blocked by a job that no thread held: its async job migration in, held for "
        "72.0 s. These gave up: calls that the log does not name."
    )


def test_coredumpctl_says_that_it_crashed() -> None:
    said = COREDUMPCTL.replace("Signal: 11", "Executable: /usr/sbin/libvirtd\n        Signal: 11")
    found = snapshot_of_text(said, "info.txt")
    first = found["verdicts"][0]
    assert first["verdict"] == "crashed"
    assert first["says"] == (
        "The daemon crashed with SIGSEGV in pthread_mutex_lock (libc.so.6), in virDomainSuspend "
        "(thread 27)."
    )
    assert found["daemon"]["pid"] == 25
    assert found["daemon"]["exe"] == "/usr/sbin/libvirtd"
    # Some configurations leave the stacks out.
    alone = snapshot_of_text(said.partition("Stack trace")[0], "info.txt")
    assert alone["verdicts"][0]["verdict"] == "crashed"


def test_a_text_without_stacks_says_what_to_give(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("nothing\n")
    done = virtrace("snapshot", "--stacks", file)
    assert done.returncode == 2
    assert "has no stacks of threads, no crash and no call that waited" in done.stderr
    assert "thread apply all bt" in done.stderr


def test_the_command_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bt.txt"
    file.write_text(GDB)
    done = virtrace("snapshot", "--json", "--stacks", file, "-o", tmp_path / "bt.snapshot")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["source"] == "text"
    shown = virtrace("show", tmp_path / "bt.snapshot")
    assert shown.stdout.startswith("A domain waits for its QEMU")


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        texts = (GDB, COREDUMPCTL, EU_STACK, SEGFAULT, OLD_SEGFAULT, TRAP, JOBS, OLD_JOB)
        lines = [line for text in texts for line in text.splitlines()]
        chance.shuffle(lines)
        text = list("\n".join(lines[: chance.randrange(len(lines))]))
        for _ in range(chance.randrange(40)):
            if text:
                text[chance.randrange(len(text))] = chance.choice(
                    ("#", "0", "(", "\0", "\ud7ff", " ")
                )
        try:
            snapshot_of_text("".join(text), "x")
        except TraceError:
            continue


def test_long_lines_and_numbers_are_read_in_bounded_time() -> None:
    longest = "#4  0x00007fe8 in ?? () from /lib/libvirt.so.0 " * 20_000
    no_id = f"Thread 4 (LWP {'9' * 5000}):\n#0  0x1 in poll ()\n"
    began = time.process_time()
    found = snapshot_of_text(f"{no_id}{GDB}{longest}\n#5  0x1 in {'_' * 500_000}- ()\n", "text")
    assert time.process_time() - began < 5
    assert {thread["tid"] for thread in found["threads"]} == {25, 26, 27}
