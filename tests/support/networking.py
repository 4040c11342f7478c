"""A real libvirtd with virtual networks, in namespaces of its own: it touches nothing of the host.

Only root's libvirtd starts networks, and with them bridges and dnsmasq.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import SECONDS
from tests.support.waiting import wait_until
from virtrace.snapshot.host import command_of

# All that it writes to is empty, and lasts as long as it does.
_OWN = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
# It insists on a user for QEMU, whom another package makes.
_SCRIPT = """\
set -e
for folder in {own}; do mkdir -p "$folder"; mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/lock
{before}
mount -t sysfs sysfs /sys
for file in passwd group; do
    cp "/etc/$file" "/run/$file"
    mount --bind "/run/$file" "/etc/$file"
done
echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
echo 'libvirt-qemu:x:64055:' >>/etc/group
ip link set lo up
# As the first process of a host, it has to wait for those whose parents end.
libvirtd &
wait
"""
NETWORK = """\
<network>
  <name>{name}</name>
  <forward mode='{mode}'/>
  <bridge name='vt{name}'/>
  {more}
</network>
"""


@dataclass(frozen=True)
class NetworkDaemon:
    """first: the first process of its namespace, by its pid on this host."""

    first: int

    @property
    def pid(self) -> int:
        """The daemon's on this host, while it runs."""
        children = Path(f"/proc/{self.first}/task/{self.first}/children").read_text().split()
        (pid,) = (pid for pid in children if command_of(int(pid)) == "libvirtd")
        return int(pid)

    def virsh_command(self, *words: str) -> list[str]:
        enter = ["nsenter", f"--target={self.first}", "--mount", "--pid"]
        return [*enter, "virsh", "-c", "qemu:///system", *words]

    def virsh(self, *words: str) -> str:
        """Run virsh, which must succeed, and return its output."""
        done = subprocess.run(
            self.virsh_command(*words), capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *words: str) -> None:
        """Run a program of the daemon's host."""
        subprocess.run(
            ["nsenter", f"--target={self.first}", "--mount", "--pid", *words],
            check=True,
            timeout=SECONDS,
        )

    def file(self, path: str) -> Path:
        """A file of the daemon's, as this process reaches it."""
        return Path(f"/proc/{self.first}/root{path}")

    def define(self, name: str, more: str, mode: str = "open") -> None:
        """Define a network. name: short. more: XML. mode: `open` needs no firewall."""
        definition = self.file(f"/run/{name}.xml")
        definition.write_text(NETWORK.format(name=name, mode=mode, more=more))
        self.virsh("net-define", f"/run/{name}.xml")

    def dnsmasq(self, network: str) -> int:
        """The pid on this host that the dnsmasq of a network has, as its own pid file says."""
        own = self.file(f"/run/libvirt/network/{network}.pid").read_text().strip()
        namespace = Path(f"/proc/{self.first}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                status = (process / "status").read_text()
                pids = status.partition("NSpid:")[2].split("\n")[0].split()
                if (process / "ns/pid").readlink() == namespace and pids[-1] == own:
                    found.append(int(process.name))
        (pid,) = found
        return pid


@contextmanager
def network_daemon(before: str = ":") -> Iterator[NetworkDaemon]:
    """Run one meanwhile; all that it has started ends with it.

    before: a shell command that sees the host's /sys, but not its file systems above that
    """
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*unshare, "sh", "-c", _SCRIPT.format(own=" ".join(_OWN), before=before)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            daemon = NetworkDaemon(int(wait_until(children.read_text, "it starts")))
            answers = daemon.virsh_command("uri")
            wait_until(
                lambda: subprocess.run(answers, capture_output=True).returncode == 0, "it answers"
            )
            yield daemon
        finally:
            outer.kill()
