"""The timeouts that end something if a call of libvirt is held too long."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from virtrace.files import text_inside
from virtrace.image.process import Process, read_status, text_of_process

# QEMU_JOB_WAIT_TIME of qemu_domainjob.c.
_JOB_SECONDS = 30.0
# The defaults of libvirtd.conf.
_KEEPALIVE = {"keepalive_interval": 5, "keepalive_count": 5}
_MAX_TEXT = 1 << 18


def timeouts(process: Process, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds, by who waits."""
    return timeouts_with(_configuration(process, environment))


def timeouts_with(configuration: str) -> dict[str, float]:
    """configuration: text of libvirtd.conf."""
    waits = {"another call waits for the domain": _JOB_SECONDS}
    settings = dict(re.findall(r"^\s*(keepalive_\w+)\s*=\s*(-?\d+)", configuration, re.M))
    interval, count = (int(settings.get(name, value)) for name, value in _KEEPALIVE.items())
    if interval > 0:
        waits["the daemon's keepalive lets a client wait"] = interval * (count + 1)
    return waits


def _configuration(process: Process, environment: Mapping[str, str]) -> str:
    """The daemon's configuration file; empty where it has none or it cannot be read."""
    status = read_status(process.pid)
    if status is None:
        return ""
    proc = Path(f"/proc/{process.pid}")
    started = text_of_process(process.pid, "cmdline", _MAX_TEXT)
    arguments = started.replace("--config=", "--config\0").split("\0")
    given = [file for option, file in zip(arguments, arguments[1:]) if option in ("-f", "--config")]
    if given:
        path = given[-1]
    else:
        home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
        folder = "/etc" if status["Uid"].split()[0] == "0" else home
        path = f"{folder}/libvirt/{os.path.basename(process.exe)}.conf"
    with suppress(OSError):
        # Its working folder as the process sees it, inside its own root.
        root, folder = os.readlink(proc / "root"), os.readlink(proc / "cwd")
        inside = folder[len(root) :] if root != "/" and folder.startswith(root) else folder
        return text_inside(proc / "root", os.path.join(inside, path), _MAX_TEXT)
    return ""
