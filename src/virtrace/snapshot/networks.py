"""The networks of a daemon, and the dnsmasq of each, which answers their guests by DHCP and DNS.

libvirt keeps a file NAME.xml of each active network beside its sockets, and lets dnsmasq write its
pid into NAME.pid there (src/network/bridge_driver.c, networkStartDhcpDaemon).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from virtrace.files import texts_inside
from virtrace.image.process import read_status
from virtrace.markup import parse_xml
from virtrace.snapshot.host import Commands, own_folders
from virtrace.snapshot.model import Network

_FOLDER, _ACTIVE, _PID = "network", ".xml", ".pid"
_LARGEST = 1 << 16


def networks(pid: int, here: Callable[[int], int | None], commands: Commands) -> Iterator[Network]:
    """Yield the active networks of a daemon that need a dnsmasq.

    here: this host's number of a process that the daemon names by its own
    """
    root = Path(f"/proc/{pid}/root")
    for folder in own_folders(pid):
        files = texts_inside(root, os.path.join(folder, _FOLDER), (_ACTIVE, _PID), _LARGEST)
        for file, text in sorted(files.items()):
            name = file[: -len(_ACTIVE)]
            if not file.endswith(_ACTIVE) or not _needs_dnsmasq(text):
                continue
            number = files.get(f"{name}{_PID}", "").strip()
            is_number = number.isascii() and number.isdecimal() and len(number) < 10
            found = here(int(number)) if is_number else None
            # Another process can have got its number.
            if found is not None and not commands.is_dnsmasq_of(found, name):
                found = None
            status = None if found is None else read_status(found)
            state = None if status is None else status["State"][0]
            has_ended = state in (None, "Z")
            yield Network(name, *((None, None) if has_ended else (found, state)))


def _needs_dnsmasq(text: str) -> bool:
    """Whether libvirt starts a dnsmasq for a network. text: of its file, or what is none."""
    try:
        network = parse_xml(text).find("network")
    except ValueError:
        return False
    if network is None or network.find("ip") is None:
        return False
    dns = network.find("dns")
    has_dns = dns is None or dns.get("enable") != "no"
    return has_dns or any(network.find(f"ip/dhcp/{each}") is not None for each in ("range", "host"))
