"""Traces of a guest that writes all the time: it loses nothing, and nothing is left behind.

    python -m tests.faults.guest_writes --times 200 --kills 50 --mib 2048

A guest with Linux fills a disk with a pattern while its QEMU is traced, and reads it back. Then it
writes to two disks without end, one of which grows, while traces of it begin and end, and while
tracers are killed. After each, QEMU lives with every byte of its code as before. Prints what came
of it; docs/qemu.md has the figures of a full run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.intact import assert_untraced_and_intact
from tests.support.linux import Linux, linux
from tests.support.stages import staged
from tests.support.waiting import wait_until
from virtrace import engines
from virtrace.cli.main import main as virtrace
from virtrace.errors import DONE
from virtrace.image.process import read_status
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, MIB, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME
from virtrace.targets.qemu.guests import qemu_of
from virtrace.trace.reader import read_trace

_PART = 64 * MIB
# Traces that overlap.
_AT_ONCE = 4
_BUSY = (
    f"while :; do io fill /dev/vdb 0 {16 * MIB} || echo failed >>/tmp/failed; done &",
    "i=0; while :; do io write /dev/vdc $((4096 * i)) 4096 7 || echo failed >>/tmp/failed; "
    "i=$((i + 1)); done &",
)


@dataclass
class Writing:
    """A guest. pid: of its QEMU. folder: for traces."""

    lab: Lab
    linux: Linux
    pid: int
    folder: Path
    traces: int = 0

    def begin(self, *command: str) -> tuple[int, Path]:
        """Start a recording in a process of its own; return its pid, and the trace."""
        self.traces += 1
        output = self.folder / f"{self.traces}.jsonl"
        options = ("-p", str(self.lab.pid), "--domain", GUEST_NAME, "-o", str(output))
        tracer = os.fork()
        if tracer == 0:
            # Without another start of Python, which takes longer than a trace.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            # One of four compares what is written, too, which takes the kernel longer to load.
            more = ("--classify-writes",) if self.traces % 4 == 1 else ()
            status = virtrace(["record", "high-water", *more, *options, *command])
            os._exit(status)
        return tracer, output

    def is_left_as_it_was(self) -> bool:
        """Whether QEMU lives, and every byte of its code is as in its file."""
        try:
            assert_untraced_and_intact(self.pid)
        except AssertionError:
            return False
        status = read_status(self.pid)
        return status is not None and not status["State"].startswith("Z")

    def require_unharmed(self) -> None:
        wait_until(self.is_left_as_it_was, "the kernel removes the probes")
        assert qemu_of(self.lab.pid, GUEST_NAME)[0] == self.pid
        self.linux.run("test ! -e /tmp/failed")


@contextmanager
def writing(release: str | None, mib: int) -> Iterator[Writing]:
    """The guest, with a disk of so many MiB, and two more."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp")), release=release)
    try:
        lab.up()
        with staged(lab) as stage, tempfile.TemporaryDirectory() as folder:
            sizes = {"vda": mib * MIB, "vdb": 64 * MIB, "vdc": 4 * GIB}
            xml = "".join(
                disk_xml("file", file_source(stage.image(f"{disk}.raw", size)), disk)
                for disk, size in sizes.items()
            )
            with linux(stage, xml) as running:
                pid, _ = qemu_of(lab.pid, GUEST_NAME)
                yield Writing(lab, running, pid, Path(folder))
                # A block device says here what failed.
                running.run("! dmesg | grep -i 'i/o error'")
    finally:
        lab.down()


def on_each_part(guest: Writing, what: str, mib: int) -> list[str]:
    """Run `io` on a disk of so many MiB, some of them at a time, as the processor is emulated."""
    parts = range(0, mib * MIB, _PART)
    return [guest.linux.run(f"io {what} /dev/vda {at} {_PART}") for at in parts]


def wrong_bytes(guest: Writing, mib: int) -> int:
    return sum(map(int, on_each_part(guest, "check", mib)))


def pattern(guest: Writing, mib: int) -> int:
    """Fill a disk under trace; return how many bytes of it are not what was written."""
    tracer, output = guest.begin()
    wait_until(partial(_has_begun, output), "the recording begins")
    on_each_part(guest, "fill", mib)
    os.kill(tracer, signal.SIGINT)
    os.waitpid(tracer, 0)
    events = read_trace(output).events
    assert any(event.values["mark"] == mib * MIB for event in events)
    guest.require_unharmed()
    return wrong_bytes(guest, mib)


def starts_and_ends(guest: Writing, times: int) -> int:
    """Begin and end so many traces; return how many writes they saw that raised a mark."""
    seen = 0
    for first in range(0, times, _AT_ONCE):
        count = min(_AT_ONCE, times - first)
        begun = [guest.begin("--", "sleep", f"{random.uniform(0, 0.5):.3f}") for _ in range(count)]
        for tracer, output in begun:
            _, status = os.waitpid(tracer, 0)
            assert os.waitstatus_to_exitcode(status) == DONE
            footer = read_trace(output).footer
            assert footer is not None
            seen += footer["hits"]["mark.raised"]
            output.unlink()
        guest.require_unharmed()
    return seen


def kills(guest: Writing, times: int) -> None:
    """Kill so many tracers, at any moment of a trace."""
    for first in range(0, times, _AT_ONCE):
        for tracer, output in [guest.begin() for _ in range(min(_AT_ONCE, times - first))]:
            wait_until(partial(_has_begun, output), "the recording begins")
            time.sleep(random.uniform(0, 0.3))
            os.kill(tracer, signal.SIGKILL)
            os.waitpid(tracer, 0)
        guest.require_unharmed()


def _has_begun(output: Path) -> bool:
    return output.exists() and output.stat().st_size > 0


def run(release: str | None, times: int, killed: int, mib: int, say: Callable[[str], None]) -> None:
    """All of it. Raises: AssertionError."""
    # All that a recording imports is there once it is forked.
    engines.chosen(engines.AUTO)
    with writing(release, mib) as guest:
        wrong = pattern(guest, mib)
        say(f"{mib} MiB written under trace and read back: {wrong} bytes differ")
        assert wrong == 0
        for line in _BUSY:
            guest.linux.run(line)
        seen = starts_and_ends(guest, times)
        assert seen > times
        say(f"{times} starts and ends of a trace under load: {seen} writes raised a mark")
        kills(guest, killed)
        say(f"{killed} tracers killed: no probe left, the same QEMU")
        guest.linux.run("kill $(jobs -p); sleep 1")
        assert wrong_bytes(guest, mib) == 0
        say("the pattern is still there, and the guest met no error of a disk")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--release", help="of Debian; default: this host")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mib", type=int, default=2048)
    args = parser.parse_args()
    run(args.release, args.times, args.kills, args.mib, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
