"""What kernels of Debian's releases log of a daemon that faults, and what is known from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.test_kernels import SECONDS
from tests.support import initramfs
from tests.support.faulting import FAULTS, LIBRARY, assert_known, build_faulting
from tests.support.kernels import boot, ensure_kernel

# Machines have a bound of their own.
pytestmark = [pytest.mark.kernels, pytest.mark.timeout(0)]

GUEST = Path(__file__).with_name("guest_faults.py")


@pytest.mark.parametrize(
    ("suite", "version"), [("bullseye", "5.10"), ("bookworm", "6.1"), ("trixie", "6.12")]
)
def test_each_fault_is_known_from_the_log(suite: str, version: str, tmp_path: Path) -> None:
    program = build_faulting(tmp_path)
    library = tmp_path / "usr" / "lib" / LIBRARY
    image = tmp_path / "image"
    words = [GUEST, program, library, *(fault.function for fault in FAULTS)]
    command = [initramfs.INTERPRETER, *map(str, words)]
    initramfs.write(image, command, [GUEST, program, library])
    ended = boot(ensure_kernel(suite), image, tmp_path, "", SECONDS)
    assert (ended.results / "status").read_text() == "0", ended.console
    log = (ended.results / "log").read_text()
    assert f"Linux version {version}." in log
    print(log)
    pids = (ended.results / "pids").read_text().split()
    for fault, pid in zip(FAULTS, map(int, pids)):
        assert_known(fault, pid, log, tmp_path)
