"""Who waits for whom, and what that means, on looks that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virtrace.snapshot.format import NOT_KNOWN
from virtrace.snapshot.graph import roots
from virtrace.snapshot.model import (
    AGENT_JOB,
    Client,
    Crash,
    Domain,
    Job,
    Look,
    Network,
    Request,
    SeenThread,
    Wait,
)
from virtrace.snapshot.verdicts import verdicts

NOW = 1_800_000_000.0
DOMAIN = 0x7F0000001000


def thread(tid: int, wait: Wait, *, name: str | None = "vm1", moved: bool = False) -> SeenThread:
    request = None if name is None else Request(0x20008086, 1, tid, "domain", name, {})
    return SeenThread(
        tid,
        tid,
        "rpc-libvirtd",
        "worker",
        "S",
        (),
        None,
        None,
        None,
        5.0,
        moved,
        "virDomainSave",
        Client(7, "root", "virsh"),
        request,
        wait,
    )


def look(*threads: SeenThread, jobs: tuple[Job, ...] = ()) -> Look:
    domain = Domain(DOMAIN, "vm1", "u", 1, None, jobs)
    return Look(1, NOW, 1.0, threads, (domain,), (), (), {}, None, {}, ())


def job(owner: int | None, kind: str = "job") -> Job:
    return Job(kind, "modify", owner, "remoteDispatchDomainSave", NOW - 9)


def names(found: Look) -> list[str]:
    return [verdict.name for verdict in verdicts(found, "libvirtd")]


def test_a_chain_leads_to_its_end() -> None:
    found = look(
        thread(1, Wait("job", domain=DOMAIN)),
        thread(2, Wait("mutex", what="a lock", owner=3)),
        thread(3, Wait("system call", system_call="read")),
        jobs=(job(2),),
    )
    (root,) = roots(found)
    assert root.thread.tid == 3
    assert [one.tid for one in root.behind] == [1, 2]
    (verdict,) = verdicts(found, "libvirtd")
    assert (verdict.name, verdict.thread, verdict.behind) == ("kernel", 3, (1, 2))
    assert "2 other calls on vm1 wait for that" in verdict.says


def test_threads_that_wait_for_each_other_are_a_deadlock() -> None:
    found = look(
        thread(1, Wait("mutex", what="lock A", owner=2)),
        thread(2, Wait("mutex", what="lock B", owner=1)),
        thread(3, Wait("mutex", what="lock A", owner=2)),
    )
    for threads in (found.threads, (*found.threads[2:], *found.threads[:2])):
        (root,) = roots(replace(found, threads=threads))
        assert [one.tid for one in root.cycle] == [1, 2]
        assert [one.tid for one in root.behind] == [3]
    assert names(found) == ["deadlock"]


def test_a_job_that_no_thread_holds_is_the_root() -> None:
    found = look(
        thread(1, Wait("job", domain=DOMAIN)),
        thread(2, Wait("job", domain=DOMAIN)),
        jobs=(job(None, "async job"),),
    )
    (verdict,) = verdicts(found, "libvirtd")
    assert (verdict.name, verdict.thread, verdict.behind) == ("ownerless-job", 1, (2,))


def test_calls_of_the_agent_wait_for_those_of_the_agent_alone() -> None:
    begins = ("virDomainObjBeginJob", "virDomainObjBeginAgentJob", "virDomainObjBeginJobInternal")
    waiting = [
        thread(tid, Wait("job", domain=DOMAIN, function=function))
        for tid, function in enumerate(begins, 3)
    ]
    found = look(
        thread(1, Wait("qemu", domain=DOMAIN)),
        thread(2, Wait("agent", domain=DOMAIN)),
        *waiting[:2],
        jobs=(job(1), job(2, AGENT_JOB)),
    )
    assert {root.thread.tid: [one.tid for one in root.behind] for root in roots(found)} == {
        1: [3],
        2: [4],
    }
    # Which job is not known, but there is only one.
    found = look(thread(2, Wait("agent", domain=DOMAIN)), waiting[2], jobs=(job(2, AGENT_JOB),))
    (root,) = roots(found)
    assert [one.tid for one in root.behind] == [5]


def test_a_thread_that_moves_does_not_hang() -> None:
    waits = thread(1, Wait("qemu", domain=DOMAIN), moved=True)
    assert names(look(waits)) == ["busy"]
    assert names(look(replace(waits, moved=False, asleep=0.2))) == ["busy"]
    assert names(look(replace(waits, moved=False))) == ["qemu-asked"]


def test_a_dnsmasq_that_serves_nobody() -> None:
    well = Network("lan", 7, "S")
    assert names(replace(look(), networks=(well,))) == ["healthy"]
    stopped, gone = Network("a", 8, "T"), Network("b", None, None)
    found = verdicts(replace(look(), networks=(well, stopped, gone)), "virtnetworkd")
    assert [(one.name, one.thread) for one in found] == [
        ("dnsmasq-stopped", None),
        ("dnsmasq-gone", None),
    ]
    assert "network a get no addresses and names; its dnsmasq (process 8) is" in found[0].says
    assert found[1].do[0][0] == "systemctl reload virtnetworkd"


def test_what_a_crash_interrupts_does_not_hang() -> None:
    """A core does not say for how long a thread has slept."""
    crashed = replace(thread(1, Wait("computes")), asleep=None, moved=None)
    stats = replace(thread(2, Wait("system call", system_call="stat")), asleep=None, moved=None)
    found = replace(look(crashed, stats), crash=Crash(11, 1, 0x4000))
    assert names(found) == ["crashed"]
    # What others wait for, or what has lasted, as far as libvirt itself noted when it began.
    behind = thread(3, Wait("mutex", what="a lock", owner=2))
    assert names(replace(found, threads=(crashed, stats, behind))) == ["crashed", "kernel"]
    old = replace(stats, wait=replace(stats.wait, since=NOW - 20))
    assert names(replace(found, threads=(crashed, old))) == ["crashed", "kernel"]
    new = replace(stats, wait=replace(stats.wait, since=NOW - 0.1))
    assert names(replace(found, threads=(crashed, new))) == ["crashed"]
    # Somebody takes a core of what hangs.
    assert names(look(stats)) == ["kernel"]


@pytest.mark.parametrize(
    ("crash", "says"),
    [
        (Crash(11, 1, 0x10), "SIGSEGV at address 0x10, a NULL pointer and an offset, which is not"),
        (Crash(11, 2, 0x4000), "SIGSEGV at address 0x4000, which does not allow the access, in "),
        (Crash(7, 2, 0x4000), "SIGBUS at address 0x4000 in "),
        (Crash(7, 2, 0), "SIGBUS at address 0x0, a NULL pointer, in "),
        (Crash(11, 128, None), "SIGSEGV in "),
        (Crash(11, 0, None, 7), "SIGSEGV, sent by process 7, in "),
    ],
)
def test_what_a_signal_says_of_its_reason(crash: Crash, says: str) -> None:
    (verdict,) = verdicts(replace(look(thread(1, Wait("computes"))), crash=crash), "libvirtd")
    assert verdict.says.startswith(f"The daemon crashed with {says}")


def test_threads_whose_stacks_end_may_wait_for_work() -> None:
    ends = replace(thread(1, Wait(NOT_KNOWN)), ended="it is too short")
    main = replace(ends, tid=2, own_tid=2, role="main thread")
    (verdict,) = verdicts(look(ends, main), "libvirtd")
    assert verdict.name == "not-known"
    assert verdict.says == "What 2 threads wait for is not known: it is too short."
    behind = thread(3, Wait("mutex", what="a lock", owner=1))
    verdict, _ = verdicts(look(ends, behind), "libvirtd")
    assert (verdict.name, verdict.thread, verdict.behind) == ("not-known", 1, (3,))


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("vm1", 1, "1 call is being served, not for long."),
        ("vm1", 2, "2 calls are being served, none of them for long."),
        (None, 2, "2 threads are at work, none of them for long."),
    ],
)
def test_a_busy_daemon_is_healthy(name: str | None, number: int, says: str) -> None:
    at_work = [thread(tid, Wait("computes"), name=name, moved=True) for tid in range(1, number + 1)]
    (verdict,) = verdicts(look(*at_work), "libvirtd")
    assert (verdict.name, verdict.says) == ("busy", f"The daemon is healthy and busy: {says}")


def test_a_daemon_at_rest_is_healthy() -> None:
    assert names(look(thread(1, Wait("idle"), name=None))) == ["healthy"]


def test_names_of_strangers_are_quoted_in_commands() -> None:
    hostile = "/x; rm -rf $HOME {domain} #"
    wait = Wait("system call", system_call="openat", file=hostile, is_fifo=True)
    (verdict,) = verdicts(look(thread(1, wait)), "libvirtd")
    assert verdict.name == "fifo"
    assert hostile in verdict.says
    assert [command for command, _ in verdict.do] == [
        f"cat '{hostile}' >/dev/null",
        f"rm '{hostile}'",
    ]
