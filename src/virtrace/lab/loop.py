"""Loop devices: real block devices on files of a lab. Only root can make them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtrace.errors import LabError

_TIMEOUT = 20.0


def attach(file: Path) -> Path:
    """Make a loop device for the file. Raises LabError if that fails."""
    return Path(_losetup("--find", "--show", str(file)).strip())


def of_lab(folder: Path) -> Iterator[Path]:
    """The loop devices for files in the folder, also for files that were removed since."""
    inside = os.fsencode(folder) + b"/"
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = entry.read_bytes()
        except OSError:
            continue  # It was detached meanwhile.
        if file.startswith(inside):
            yield Path("/dev", entry.parts[3])


def detach_all(folder: Path) -> int:
    """Detach the folder's loop devices, which nobody may have open; return how many there were."""
    devices = list(of_lab(folder))
    for device in devices:
        _losetup("--detach", str(device))
    return len(devices)


def _losetup(*args: str) -> str:
    try:
        return subprocess.run(
            ["losetup", *args],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise LabError(
            f"`losetup {' '.join(args)}` failed: {said.strip()}",
            "see with `losetup --list` which loop devices are in use, "
            "and that /dev/loop-control is there",
        ) from error
