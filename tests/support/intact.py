"""Whether a process was left as it was found."""

from __future__ import annotations

import os
from pathlib import Path

from virtrace.image.process import inspect, read_status


def assert_untraced_and_intact(pid: int) -> None:
    """No tracer, no thread stopped, and every byte of code as its file has it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = read_status(int(task.name))
        if status is None:
            continue  # the thread has ended since
        assert status["TracerPid"] == "0", f"thread {task.name} is traced"
        assert not status["State"].startswith(("t", "T")), f"thread {task.name} is stopped"
    compared = 0
    # maps names files from our root, modules from that of the process.
    root = os.readlink(f"/proc/{pid}/root").rstrip("/")
    files = {root + module.path: module.file for module in inspect(pid).modules}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or "x" not in fields[1] or fields[5] not in files:
                continue
            start, end = (int(address, 16) for address in fields[0].split("-"))
            offset = int(fields[2], 16)
            memory.seek(start)
            loaded = memory.read(end - start)
            with open(files[fields[5]], "rb") as file:
                file.seek(offset)
                stored = file.read(end - start)
            # The last page goes on behind the end of the file.
            assert loaded[: len(stored)] == stored, f"code of {fields[5]} was changed"
            compared += len(stored)
    assert compared > 0
