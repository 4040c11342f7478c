"""A lab's daemon and its guest in namespaces of their own, as in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.hanging import environment_of, starting
from tests.support.namespaces import open_loopback
from tests.support.waiting import wait_for_end
from virtrace.lab.daemon import Lab

_NAMESPACES = ("--user", "--mount", "--pid", "--net", "--fork")
# Once its user namespace has users, the first process begins anew, as their root.
_BEGIN = 'echo; read _; exec "$@"'
_FIRST = """
import signal, subprocess, sys
subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
print(flush=True)
# Whoever is left over has ended at once when it ends.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
# The end of the test ends it, and with it all that is in the namespaces.
sys.stdin.read()
"""
_ALL_USERS = "0 0 65536"


@contextmanager
def contained(lab: Lab) -> Iterator[None]:
    """Move a lab's daemon and its guest into user, mount, PID and network namespaces."""
    lab.virsh_checked("destroy", "vm1")
    pid = lab.pid
    with _container(environment_of(pid)) as first:
        with starting(lab, first):
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
        lab.virsh_checked("start", "vm1")
        yield


@contextmanager
def _container(environment: dict[str, str]) -> Iterator[int]:
    """Such namespaces, empty but for a first process, whose pid here is yielded."""
    with subprocess.Popen(
        ["unshare", *_NAMESPACES, "sh", "-c", _BEGIN, "sh", sys.executable, "-c", _FIRST],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        container.stdout.readline()
        first = int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text())
        for kind in ("uid", "gid"):
            Path(f"/proc/{first}/{kind}_map").write_text(_ALL_USERS)
        container.stdin.write(b"\n")
        container.stdin.flush()
        assert container.stdout.readline()
        open_loopback(first)
        yield first
