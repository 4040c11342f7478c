"""Stacks as text: what names of functions tell, in each of the forms."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.command import virtrace
from virtrace.errors import TraceError
from virtrace.snapshot.document import snapshot_of_text

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


def test_coredumpctl() -> None:
    found = snapshot_of_text(COREDUMPCTL, "info.txt")
    first = found["verdicts"][0]
    assert (first["verdict"], first["thread"]) == ("lock", 27)
    assert first["says"] == "virDomainSuspend (thread 27) waits for a lock."


def test_eu_stack() -> None:
    first = snapshot_of_text(EU_STACK, "eu.txt")["verdicts"][0]
    assert first["verdict"] == "event-loop"
    assert "open" in first["says"]


def test_a_text_without_stacks_says_what_to_give(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("nothing\n")
    done = virtrace("snapshot", "--stacks", file)
    assert done.returncode == 2
    assert "has no stacks of threads" in done.stderr
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
        lines = [*GDB.splitlines(), *COREDUMPCTL.splitlines(), *EU_STACK.splitlines()]
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
