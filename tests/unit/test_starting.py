"""A process is found as it starts."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

from tests.support.waiting import wait_until
from virtrace.image.model import Program
from virtrace.targets.starts import Starts


def test_the_next_process_of_a_program(tmp_path: Path) -> None:
    """Not one that runs already, nor another program, nor a thread."""
    copy = tmp_path / "daemon"
    shutil.copy("/bin/sleep", copy)
    program = Program(str(copy), Path("/"), ())
    with subprocess.Popen([copy, "100"]) as before, subprocess.Popen(["sleep", "100"]) as other:
        starts = Starts(program)
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            assert starts.look() is None
            with subprocess.Popen([copy, "100"]) as started:
                found = wait_until(starts.look, "it starts")
                assert found is not None
                assert (found.pid, found.exe) == (started.pid, str(copy))
                assert starts.look() is None
                started.kill()
        finally:
            over.set()
            thread.join()
            before.kill()
            other.kill()
