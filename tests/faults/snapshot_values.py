"""Values of snapshots beside what others say of the same: GDB, virsh, virt-admin, QMP, the clients.

    python -m tests.faults.snapshot_values --times 3

In each round some calls wait for a QEMU that is stopped; what others say is asked meanwhile, or
right after. Prints how many values were compared with each source, and each that differs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.support import backtraces
from tests.support.elf_mutants import command_line
from tests.support.hanging import admin, qemu_of, thread_of, waiting
from virtrace.image.process import inspect
from virtrace.image.unwind import StackTrace
from virtrace.lab.daemon import Lab
from virtrace.snapshot.document import snapshot_of
from virtrace.snapshot.model import Look
from virtrace.snapshot.take import take

# What clients ask for: a command of virsh, its function of the API, and what it names.
CALLS = {
    ("domblkinfo", "vm1", "vda"): ("virDomainGetBlockInfo", {"disk": "vda"}),
    ("domblkinfo", "vm1", "vdc"): ("virDomainGetBlockInfo", {"disk": "vdc"}),
    ("dommemstat", "vm1"): ("virDomainMemoryStats", {}),
    ("suspend", "vm1"): ("virDomainSuspend", {}),
    ("domblkerror", "vm1"): ("virDomainGetDiskErrors", {}),
}
# virt-admin's names, and those of a snapshot.
POOL = {"maxWorkers": "most", "nWorkers": "workers", "freeWorkers": "free"}
CLIENTS = {
    "nclients_max": "most_clients",
    "nclients": "clients",
    "nclients_unauth_max": "most_unauthenticated",
    "nclients_unauth": "unauthenticated",
}
Value = tuple[str, str, object, object]


def of_gdb(lab: Lab, look: Look) -> tuple[list[str], int]:
    """What differs, and how many values were compared: positions and registers of all frames."""
    still = {
        thread.tid: StackTrace(tuple(named.frame for named in thread.frames), thread.ended)
        for thread in look.threads
        if not thread.moved
    }
    theirs = backtraces.of_gdb("-p", str(lab.pid))
    theirs = {tid: frames for tid, frames in theirs.items() if tid in still}
    found, frames, registers = backtraces.differences(still, theirs)
    # A program counter and a canonical frame address each.
    return found, 2 * frames + registers


def of_virt_admin(lab: Lab, document: dict[str, Any]) -> Iterator[Value]:
    """What the daemon itself says of its servers."""
    for server in document["servers"]:
        name = server["name"]
        for command, keys, ours in (
            ("srv-threadpool-info", POOL, server["pool"]),
            ("srv-clients-info", CLIENTS, server),
        ):
            said = dict(re.findall(r"^(\w+)\s*: (\d+)$", admin(lab, command, name), re.M))
            for theirs, key in keys.items():
                # Its own connection is one more client, and its call takes a worker.
                is_constant = theirs.endswith("_max") or theirs == "maxWorkers"
                # Limits of a server without a client are not known.
                if (name == "libvirtd" or is_constant) and ours[key] is not None:
                    yield "virt-admin", f"{name} {theirs}", ours[key], int(said[theirs])
    listed = re.findall(r"^ (\d+) ", admin(lab, "srv-clients-list", "libvirtd"), re.M)
    pids = set()
    for number in listed:
        info = admin(lab, "client-info", "libvirtd", number)
        said = dict(re.findall(r"^(\w+)\s*: (.*)$", info, re.M))
        pids.add(int(said["unix_process_id"]))
    ours = {
        one["pid"]
        for server in document["servers"]
        if server["name"] == "libvirtd"
        for one in server["connections"]
    }
    yield "virt-admin", "pids of clients", sorted(ours), sorted(pids)


def of_clients(document: dict[str, Any], clients: list[subprocess.Popen[bytes]]) -> Iterator[Value]:
    """What those who call know themselves."""
    served = {one["client"]["pid"]: one for one in document["threads"] if one["client"]}
    yield "clients", "pids", sorted(served), sorted(client.pid for client in clients)
    for client, (api, arguments) in zip(clients, CALLS.values()):
        thread = served[client.pid]
        assert isinstance(client.args, list)
        yield "clients", "api", thread["api"], api
        yield "clients", "domain", thread["request"]["name"], "vm1"
        yield "clients", "arguments", thread["request"]["arguments"], arguments
        yield "clients", "command", thread["client"]["command"], " ".join(client.args)
        yield "clients", "user", thread["client"]["user"], "root"


def of_kernel(lab: Lab, document: dict[str, Any]) -> Iterator[Value]:
    """What ps(1) says of the threads."""
    listed = subprocess.check_output(
        ["ps", "-L", "-o", "tid=,comm=", "-p", str(lab.pid)], text=True
    )
    names = dict(line.strip().split(" ", 1) for line in listed.strip().split("\n"))
    yield "ps", "threads", sorted(str(one["tid"]) for one in document["threads"]), sorted(names)
    for thread in document["threads"]:
        yield "ps", "name of a thread", thread["name"], names[str(thread["tid"])].strip()


def of_virsh(lab: Lab, document: dict[str, Any]) -> Iterator[Value]:
    """What libvirt and QEMU say once the QEMU goes on."""
    names = lab.virsh_checked("list", "--all", "--name").split()
    domains = {domain["name"]: domain for domain in document["domains"]}
    yield "virsh", "names", sorted(domains), sorted(names)
    for name in names:
        domain = domains[name]
        yield "virsh", "uuid", domain["uuid"], lab.virsh_checked("domuuid", name).strip()
        yield "virsh", "id", domain["id"], int(lab.virsh_checked("domid", name))
        yield "virsh", "pid file", domain["qemu"], qemu_of(lab, name)
        asked = lab.qmp({"execute": "query-name"}, name)["return"]["name"]
        yield "QMP", "name", domain["name"], asked
        asked = lab.qmp({"execute": "query-uuid"}, name)["return"]["UUID"]
        yield "QMP", "uuid", domain["uuid"], asked


def rounds(lab: Lab, times: int) -> tuple[list[str], Counter[str]]:
    """What differs, and how many values were compared with each source."""
    wrong: list[str] = []
    compared: Counter[str] = Counter()
    process = inspect(lab.pid)
    for _ in range(times):
        with lab.stalled(), waiting(lab, *CALLS) as clients:
            look = take(process)
            document: dict[str, Any] = {**snapshot_of(look, process, "process")}
            values = [
                *of_clients(document, clients),
                *of_virt_admin(lab, document),
                *of_kernel(lab, document),
            ]
            root = thread_of(document, document["verdicts"][0]["thread"])
            (job,) = document["domains"][0]["jobs"]
            values.append(("clients", "owner of the job", job["owner"], root["own_tid"]))
            # The last, as it wakes every thread.
            found, count = of_gdb(lab, look)
            os.kill(qemu_of(lab), signal.SIGCONT)
        values += of_virsh(lab, document)
        compared["GDB"] += count
        compared.update(source for source, *_ in values)
        wrong += found
        wrong += [
            f"{source}: {what}: {ours!r}, not {theirs!r}"
            for source, what, ours, theirs in values
            if ours != theirs
        ]
    return wrong, compared


def run(times: int, seed: int = 0) -> list[str]:
    with Lab(Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))) as lab:
        wrong, compared = rounds(lab, times)
    print(f"{times} rounds, {sum(compared.values())} values: {dict(compared)}; {len(wrong)} differ")
    return wrong


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, 3))
