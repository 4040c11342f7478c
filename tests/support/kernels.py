"""Kernels of Debian releases, kept in the cache of roots, and virtual machines that boot them."""

from __future__ import annotations

import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.downloads import ensure_downloaded
from tests.support.toolchain import need

# It has no drivers of hardware, and everything that a tracer needs.
PACKAGE = "linux-image-cloud-amd64"

# Runs when apt knows the release's packages. The package above is empty, and depends on the real
# one, of which one file is needed, and nothing that makes it bootable elsewhere.
_DOWNLOAD = f"""\
set -eux; cd "$1"; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; \
apt-get download "$(apt-cache depends {PACKAGE} | sed -n 's/^  Depends: //p')"; \
dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*'; \
mv boot/vmlinuz-* boot/vmlinuz"""

# The processor is emulated, as KVM on a virtual host may boot kernels made for that host alone.
# Python starts only where the kernel has random numbers: it trusts the processor's.
_PROCESSOR = ("-accel", "tcg", "-cpu", "max", "-smp", "2")
# A panic ends the machine, as a reboot does.
_PARAMETERS = "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on"
_MEMORY_MIB = 1024


def ensure_kernel(suite: str) -> Path:
    """The newest kernel of a Debian release, downloaded now if none is in the cache.

    suite: code name of the release

    Raises:
        LabError: it could not be downloaded; the log is then in the cache
    """
    return ensure_downloaded("kernels", suite, _DOWNLOAD, "/boot") / "vmlinuz"


@dataclass(frozen=True)
class Ended:
    """A virtual machine that was powered off.

    console: what the kernel and the program printed
    results: a folder with what the program left
    """

    console: str
    results: Path
    seconds: float


def boot(kernel: Path, initramfs: Path, folder: Path, parameters: str, seconds: float) -> Ended:
    """Boot a kernel, and wait until it has powered the machine off.

    The program in the initramfs sends a tar archive with its results through the second serial
    port. The machine has no network, no disk and two processors.

    folder: for the console's text and the results
    parameters: of the kernel, besides those that every machine has
    seconds: how long it may take

    Raises:
        AssertionError: it did not end in time, or left no results; with the console's text
    """
    need("qemu-system-x86_64")
    console, archive, results = folder / "console", folder / "results.tar", folder / "results"
    command: list[str | Path] = [
        *("qemu-system-x86_64", *_PROCESSOR, "-m", str(_MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", kernel, "-initrd", initramfs),
        *("-append", f"{_PARAMETERS} {parameters}"),
        *("-serial", f"file:{console}", "-serial", f"file:{archive}"),
    ]
    started = time.monotonic()
    problem = None
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode != 0:
            problem = f"QEMU ended with {done.returncode}: {done.stderr}"
    except subprocess.TimeoutExpired:
        problem = f"the machine had not ended after {seconds:g} s"
    printed = console.read_text(errors="replace") if console.exists() else ""
    if problem is None:
        try:
            with tarfile.open(archive, "r:gz") as opened:
                opened.extractall(results)
        except (tarfile.TarError, EOFError, OSError) as error:
            problem = f"the machine left no results: {error}"
    assert problem is None, f"{problem}\n{printed}"
    return Ended(printed, results, time.monotonic() - started)
