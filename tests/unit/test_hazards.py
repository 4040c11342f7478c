"""What is said before a trace, of daemons and hosts that it would be dangerous for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.acting import NOBODY, ROOT_ONLY
from tests.support.waiting import wait_until
from virtrace.image.process import inspect
from virtrace.targets import LIBVIRT
from virtrace.targets.hazards import Look, Sample, patience, pressure, swapping
from virtrace.targets.libvirt.timeouts import timeouts_with

WAITS = "echo running; read line"
WORKS = "echo running; while :; do :; done"

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a shell with a script, arguments and variables of its environment; its pid."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: str, user: int | None = None, **variables: str) -> int:
        shell = subprocess.Popen(
            ["sh", "-c", script, "libvirtd", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=user,
            env={"PATH": os.environ["PATH"], **variables},
        )
        started.append(shell)
        assert shell.stdout is not None
        assert shell.stdout.readline() == "running\n"
        return shell.pid

    yield run
    for shell in started:
        shell.kill()
        shell.communicate()


def said(pid: int, stop_ms: float = 2000) -> str:
    look = Look(inspect(pid), LIBVIRT)
    return "\n".join(hazard.what for hazard in look.hazards(stop_ms) if "host" not in hazard.what)


def test_of_a_daemon_that_idles_nothing_is_said(start: Start) -> None:
    assert said(start(WAITS)) == ""


def test_a_watchdog(start: Start) -> None:
    warned = said(start(WAITS, WATCHDOG_USEC="30000000"))
    assert warned == "systemd ends this daemon when it is silent for 30 s (a watchdog)"
    own = start("export WATCHDOG_PID=$$; exec sh -c '" + WAITS + "'", WATCHDOG_USEC="1500000")
    assert "for 1.5 s" in said(own)
    # It was the watchdog of whoever started this one.
    assert said(start(WAITS, WATCHDOG_USEC="30000000", WATCHDOG_PID="1")) == ""


def test_a_daemon_that_works(start: Start) -> None:
    pid = start(WORKS)
    look = Look(inspect(pid), LIBVIRT)
    began = time.clock_gettime(~pid << 3 | 2)
    wait_until(lambda: time.clock_gettime(~pid << 3 | 2) >= began + 0.02, "it works for 20 ms")
    [busy] = [hazard for hazard in look.hazards(2000) if "is busy" in hazard.what]
    assert "% of a processor" in busy.what
    assert "--engine uprobes" in busy.remedy


def test_the_configuration_that_it_was_started_with(start: Start, tmp_path: Path) -> None:
    conf = tmp_path / "mine.conf"
    conf.write_text("#keepalive_interval = 9\nkeepalive_interval = 2\nkeepalive_count = 1\n")
    warning = "a call may be held for 2000 ms, but the daemon's keepalive lets a client wait "
    for option in (["-f", str(conf)], ["--config", str(conf)], [f"--config={conf}"]):
        pid = start(WAITS, *option)
        assert said(pid) == warning + "for only 4 s"
        assert said(pid, stop_ms=1999) == ""
    link = tmp_path / "link"
    link.symlink_to(conf)
    assert said(start(WAITS, "-f", str(link))) == ""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert said(start(WAITS, "-f", str(fifo))) == ""


@ROOT_ONLY
@pytest.mark.parametrize("variable", ["XDG_CONFIG_HOME", "HOME"])
def test_the_configuration_of_a_user_s_daemon(start: Start, tmp_path: Path, variable: str) -> None:
    pid = start(WAITS, user=NOBODY, **{variable: str(tmp_path)})
    assert said(pid) == ""
    folder = tmp_path / (".config" if variable == "HOME" else "") / "libvirt"
    folder.mkdir(parents=True)
    name = os.path.basename(inspect(pid).exe)
    (folder / f"{name}.conf").write_text("keepalive_interval = 1\nkeepalive_count = 0\n")
    assert "for only 1 s" in said(pid)


@pytest.mark.parametrize(
    ("conf", "stop_ms", "seconds"),
    [
        ("", 2000, None),
        ("", 15000, "30"),
        ("keepalive_interval = -1", 14999, None),
        ("keepalive_interval = -1", 15000, "30"),
        ("keepalive_interval = 5\nkeepalive_count = 3", 10000, "20"),
        ("keepalive_interval = 60", 15000, "30"),
    ],
)
def test_who_gives_up_first(conf: str, stop_ms: float, seconds: str | None) -> None:
    found = patience(stop_ms, timeouts_with(conf))
    assert (found and found.what.split(" for ")[-1]) == (seconds and f"only {seconds} s")


def test_a_host_that_swaps() -> None:
    before = Sample(at=10.0, worked=0.0, swapped=5000)
    assert swapping(before, Sample(10.5, 0.0, 5000)) is None
    found = swapping(before, Sample(10.5, 0.0, 6000))
    assert found is not None
    assert "this host swaps (2000 pages a second)" in found.what
    assert swapping(before, Sample(10.5, 0.0, None)) is None


def test_a_host_that_is_short_of_memory() -> None:
    line = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00\n"
    assert pressure("") is None
    assert pressure(line.format("0.40")) is None
    found = pressure(line.format("23.10"))
    assert found is not None
    assert "in 23.1 % of the last 10 s" in found.what
