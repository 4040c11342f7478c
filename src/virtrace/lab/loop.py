"""Loop devices: real block devices on files of a lab. They take root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from virtrace.errors import LabError

_TIMEOUT = 20.0


def attach(file: Path) -> Path:
    """A new loop device on the file; LabError where there can be none."""
    return Path(_losetup("--find", "--show", str(file)).strip())


def of_lab(folder: Path) -> Iterator[Path]:
    """The loop devices on files in the folder, also on files that are removed by now."""
    inside = os.fsencode(folder) + b"/"
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = entry.read_bytes()
        except OSError:
            continue  # detached meanwhile
        if file.startswith(inside):
            yield Path("/dev", entry.parts[3])


def detach_all(folder: Path) -> int:
    """Detach the folder's loop devices; how many there were. Nobody may have them open any more."""
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
