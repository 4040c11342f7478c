"""A file system that is frozen for a while: whoever writes to it waits until it is thawed."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts import mounted
from virtrace.lab import loop
from virtrace.lab.guest import MIB
from virtrace.lab.stage import Stage

# How long it stays frozen once somebody waits for it.
FROZEN_SECONDS = 0.7


class Frozen:
    """folder: as the daemon and its guests see it."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.folder = folder
        self._daemon = stage.lab.pid
        self._place = os.readlink(f"/proc/{self._daemon}/root").rstrip("/") + str(folder)

    def _inside(self, script: str) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._daemon}/ns/mnt", "sh", "-ec", script]

    def run(self, script: str) -> None:
        """Run a script in the folder."""
        subprocess.run(self._inside(f"cd {shlex.quote(self._place)}; {script}"), check=True)

    def meanwhile(self, qemu: int, before: str, *commands: str) -> Sequence[str]:
        """Make a command that runs others at once while the file system is frozen.

        qemu: the process that waits; once one of its threads does, after `before`, and again when
        all of the others have been started, it is thawed after a while.
        """
        freeze, thaw = (
            shlex.join(self._inside(f"fsfreeze {option} {shlex.quote(self._place)}"))
            for option in ("--freeze", "--unfreeze")
        )
        waits = f"grep -q '^State:.D' /proc/{qemu}/task/*/status"
        until = f"until {waits} || ! kill -0 $first; do sleep 0.02; done"
        others = "".join(f"{command} & " for command in commands)
        line = (
            f"{freeze}; {before} & first=$!; {until}; {others} sleep {FROZEN_SECONDS}; {thaw}; wait"
        )
        return ["sh", "-c", line]


@contextmanager
def freezable(stage: Stage) -> Iterator[Frozen]:
    """Mount a file system meanwhile that the guest's user can write to."""
    file, folder = stage.folder / "file-system", stage.images / "frozen"
    with file.open("xb") as image:
        image.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(file)], check=True)
    folder.mkdir()
    device = loop.attach(file)
    with mounted(stage.lab.pid, folder, str(device)):
        frozen = Frozen(stage, folder)
        frozen.run(f"chown {stage.lab.system.uid}:{stage.lab.system.gid} .")
        yield frozen
        stage.lab.virsh("destroy", "vm2")
