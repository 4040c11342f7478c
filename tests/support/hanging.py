"""Ways to make a lab's daemon hang, each for real, and what a snapshot has to say of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.command import virtrace
from tests.support.namespaces import here, pid_namespace, within
from tests.support.waiting import wait_for_end, wait_until
from virtrace.errors import ANSWER_IS_NO, DONE
from virtrace.lab.daemon import Lab

# For a situation to be there, s.
PATIENCE = 60.0


def snapshot(lab: Lab, *options: str) -> dict[str, Any]:
    """Take a snapshot as a user does, and return its document."""
    done = virtrace("snapshot", "--json", "-p", lab.pid, *options)
    assert done.returncode in (DONE, ANSWER_IS_NO), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def wait_for(
    lab: Lab, verdict: str, behind: Sequence[subprocess.Popen[bytes]] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take snapshots until the first verdict is this one; return the snapshot and the verdict.

    behind: clients whose calls must be among those that wait for it
    """
    end = time.monotonic() + PATIENCE
    while True:
        document = snapshot(lab)
        first: dict[str, Any] = document["verdicts"][0]
        if first["verdict"] == verdict and {one.pid for one in behind} <= clients(document, first):
            return document, first
        assert time.monotonic() < end, document["verdicts"]


def clients(document: dict[str, Any], verdict: dict[str, Any]) -> set[int]:
    """Return the pids of the clients whose calls wait behind the root of a verdict."""
    threads = [thread_of(document, tid) for tid in verdict["behind"]]
    return {thread["client"]["pid"] for thread in threads if thread["client"] is not None}


def thread_of(document: dict[str, Any], tid: int) -> dict[str, Any]:
    """Return a thread of a snapshot."""
    found: dict[str, Any] = next(one for one in document["threads"] if one["tid"] == tid)
    return found


def domain_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a domain of a snapshot."""
    found: dict[str, Any]
    (found,) = (one for one in document["domains"] if one["name"] == name)
    return found


def root_of(
    document: dict[str, Any], verdict: dict[str, Any], client: subprocess.Popen[bytes], api: str
) -> dict[str, Any]:
    """The thread that a verdict is about, which serves this client."""
    root = thread_of(document, verdict["thread"])
    assert (root["api"], root["client"]["pid"]) == (api, client.pid)
    assert isinstance(client.args, list)
    assert root["client"]["command"] == " ".join(client.args)
    assert not root["moved"]
    return root


class Moment(NamedTuple):
    """time: of time.time(). stolen: what hypervisors had taken of all processors since boot, s."""

    time: float
    stolen: float


_TICK = 1 / os.sysconf("SC_CLK_TCK")
_STEAL = 8


def now() -> Moment:
    steal = Path("/proc/stat").read_text().split()[_STEAL]
    return Moment(time.time(), int(steal) * _TICK)


def assert_asleep_since(
    document: dict[str, Any], thread: dict[str, Any], began: float, asked: Moment
) -> None:
    """A thread went to sleep between two times; how long ago was read during the snapshot.

    asked: when it had asked, and slept
    """
    taken = datetime.fromisoformat(document["taken"]).timestamp()
    # The scheduler's clock stands while a hypervisor has the processor.
    missed = now().stolen - asked.stolen + _TICK
    assert taken - thread["asleep_s"] < asked.time + missed
    assert began < taken + document["seconds"] - thread["asleep_s"]


def client_of(lab: Lab, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a client whose process a lab's daemon can name, as it is in the same PID namespace."""
    with within(lab.pid, "pid"):
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def calling(lab: Lab, *commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run virsh commands meanwhile; all of them must have ended some time after."""
    calls = [client_of(lab, lab.virsh_command(*words)) for words in commands]
    try:
        yield calls
        for call in calls:
            call.wait(PATIENCE)
    finally:
        for call in calls:
            call.kill()
            call.wait()


@contextmanager
def stalled_migration(
    source: Lab, to: Lab, guest: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Let a guest migrate, whose memory nobody reads. Yields the client, and what lets it fail.

    source: a lab that is `elsewhere`
    """
    with within(source.pid, "net"):
        sink = socket.create_server(("127.0.0.1", 0))
    with sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        through = f"tcp://127.0.0.1:{sink.getsockname()[1]}"
        asked = ("migrate", guest, to.uri, "--live", "--migrateuri", through)
        with calling(source, (*asked, "--listen-address", "127.0.0.2")) as (migration,):
            connection, _ = sink.accept()

            def let_fail() -> None:
                connection.close()
                sink.close()

            try:
                yield migration, let_fail
            finally:
                let_fail()


@contextmanager
def waiting(lab: Lab, *commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run virsh commands meanwhile, whose domain's QEMU is stopped: the first one asks it."""
    first, *others = commands
    with calling(lab, first) as (asking,):
        wait_for(lab, "qemu-stopped")
        with calling(lab, *others) as behind:
            wait_for(lab, "qemu-stopped", behind)
            yield [asking, *behind]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process by a signal meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def held_by_gdb(pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let GDB hold a process meanwhile."""
    command = ["gdb", "-nx", "-q", "-p", str(pid)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as gdb:
        try:
            yield gdb
        finally:
            let_go(gdb)


def let_go(gdb: subprocess.Popen[bytes]) -> None:
    """End a GDB; what it held goes on."""
    if gdb.poll() is None:
        gdb.communicate(b"detach\nquit\n", PATIENCE)


def relaunch(lab: Lab, *words: str) -> None:
    """End a lab's daemon, whatever it does, and start it anew; its guests run on.

    Returns while it may still be starting. words: of a command that runs it
    """
    pid = lab.pid
    with starting(lab, pid, *words):
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)


def relaunch_with(lab: Lab, name: str) -> None:
    """Start a lab's daemon anew, with functions of one of the programs here in place of its own."""
    library = lab.folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    # Its functions are wanted as they are written.
    subprocess.run(["gcc", "-O0", "-shared", "-fPIC", source, "-o", library], check=True)
    relaunch(lab, "env", f"LD_PRELOAD={library}")


@contextmanager
def starting(lab: Lab, like: int, *words: str) -> Iterator[None]:
    """Start a lab's daemon afterwards, with the namespaces, root and environment of a process.

    The process may end meanwhile. words: of a command that runs the daemon
    """
    pid_file = lab.folder / "run" / f"{lab.daemon}.pid"
    daemon = (*lab.system.become(), lab.program(), "-d", "-p", str(pid_file))
    namespace, environment = pid_namespace(like), environment_of(like)
    environment.pop("LD_PRELOAD", None)
    enter = ("nsenter", "--target", str(like), "--all", "--root", "--wd")
    with subprocess.Popen(
        [*enter, "sh", "-c", 'echo; read _ && exec "$@"', "sh", *words, *daemon],
        env=environment,
        umask=0o077,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        yield
        starter.communicate(b"\n", PATIENCE)
    assert starter.returncode == 0
    # The lab looks for it by the number that it has here.
    pid_file.write_text(str(here(namespace, int(pid_file.read_text()))))


def environment_of(pid: int) -> dict[str, str]:
    """The variables of a process, as it was begun with."""
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


def when_asleep(lab: Lab) -> Moment:
    """Wait until all threads of a lab's daemon sleep: one may have asked, and not sleep yet."""

    def sleeps(thread: Path) -> bool:
        try:
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] != "S":
                return False
            # On its way to sleep it may have lost its processor; the kernel waits here until it
            # sleeps.
            return (thread / "syscall").read_text() != "running\n"
        except (FileNotFoundError, ProcessLookupError):
            # It has ended meanwhile.
            return True

    def all_sleep() -> bool:
        return all(map(sleeps, Path(f"/proc/{lab.pid}/task").iterdir()))

    wait_until(all_sleep, "all threads of the daemon sleep")
    return now()


def define_pool(lab: Lab, point: Path) -> None:
    lab.virsh_checked("pool-define-as", "pool", "dir", "--target", str(point))


def admin(lab: Lab, *words: str) -> str:
    """Administer a lab's daemon, which lets only its own user do that."""
    socket = lab.folder / "run" / "libvirt" / "libvirt-admin-sock"
    uri = f"libvirtd+unix:///session?socket={socket}"
    return lab.system.run("virt-admin", "-c", uri, *words, as_daemon=True)


def set_workers(lab: Lab, number: int) -> None:
    admin(lab, "srv-threadpool-set", "libvirtd", "--min-workers", "1", "--max-workers", str(number))


def qemu_of(lab: Lab, guest: str = "vm1") -> int:
    """The pid that this host has for a guest's QEMU, whose pid file has the daemon's number."""
    file = lab.folder / "run" / "libvirt" / "qemu" / "run" / f"{guest}.pid"
    return here(pid_namespace(lab.pid), int(file.read_text()))


def wait_for_verdicts(
    lab: Lab, first: str, second: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Take snapshots until these are the verdicts; return both, and the snapshot."""
    end = time.monotonic() + PATIENCE
    while True:
        document = snapshot(lab)
        if [each["verdict"] for each in document["verdicts"]] == [first, second]:
            return document["verdicts"][0], document["verdicts"][1], document
        assert time.monotonic() < end, document["verdicts"]


def connections_of(document: dict[str, Any], pid: int) -> list[dict[str, Any]]:
    """What a snapshot says of a client's connections."""
    found = (each for server in document["servers"] for each in server["connections"])
    return [each for each in found if each["pid"] == pid]
