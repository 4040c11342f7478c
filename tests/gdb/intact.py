"""What a tracer must leave behind: a process that runs untraced, with its code as in the files."""

from __future__ import annotations

import signal
from pathlib import Path

# Pending ones would hit the process after the tracer is gone.
_LEFTOVERS = (signal.SIGINT, signal.SIGTRAP, signal.SIGSTOP)


def assert_untraced_and_intact(pid: int) -> None:
    """Every thread untraced and not stopped, nothing pending, every code byte as in its file."""
    proc = Path(f"/proc/{pid}")
    for task in (proc / "task").iterdir():
        status = dict(
            line.split(":\t", 1)
            for line in (task / "status").read_text().splitlines()
            if ":" in line
        )
        assert status["TracerPid"] == "0", f"{task} is traced"
        assert status["State"][0] not in "tTZX", f"{task} is in state {status['State']}"
        for mask in ("SigPnd", "ShdPnd"):
            pending = int(status[mask], 16)
            left = [number.name for number in _LEFTOVERS if pending & 1 << (number - 1)]
            assert not left, f"{task} has pending {left}"
    changed = changed_code(pid)
    assert not changed, f"code of {pid} differs from its files: {changed}"


def changed_code(pid: int) -> list[str]:
    """Where an executable mapping differs from its file: ``path+0xoffset: file, memory``."""
    proc = Path(f"/proc/{pid}")
    changed = []
    with (proc / "mem").open("rb") as memory:
        for line in (proc / "maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or "x" not in fields[1] or not fields[5].startswith("/"):
                continue
            start, end = (int(address, 16) for address in fields[0].split("-"))
            offset = int(fields[2], 16)
            with (proc / "map_files" / f"{start:x}-{end:x}").open("rb") as file:
                file.seek(offset)
                expected = file.read(end - start)
            memory.seek(start)
            actual = memory.read(len(expected))
            if actual != expected:
                changed += [
                    f"{fields[5]}+{offset + i:#x}: {was:#04x}, {now:#04x}"
                    for i, (was, now) in enumerate(zip(expected, actual))
                    if was != now
                ]
    return changed
