"""Builds libvirt 9.0.0 with debug info, once, into a cache.

The build runs in a temporary chroot that mmdebstrap makes and removes, so that no build dependency
is installed on the host. Source, compiler, flags and build folder are those of Debian's own
package: code and addresses are the same, and the debug info stays in the files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from virtrace.errors import LabError
from virtrace.lab.roots import (
    apt_sources,
    cache_folder,
    keep_in_cache,
    key_of,
    require_tools,
    run_mmdebstrap,
)

VERSION = "9.0.0"
SUITE = "bookworm"

DAEMON = "libvirtd"
# Two of the modular daemons, which have one driver each. Debian packages none of them.
QEMU_DAEMON, STORAGE_DAEMON = "virtqemud", "virtstoraged"
FILES = (
    DAEMON,
    QEMU_DAEMON,
    STORAGE_DAEMON,
    "libvirt.so.0",
    "libvirt-qemu.so.0",
    "libvirt-lxc.so.0",
    "libvirt_driver_qemu.so",
    "libvirt_driver_storage.so",
    "libvirt_storage_backend_fs.so",
    "libvirt_storage_file_fs.so",
)
# Ninja knows the libraries only by their full names.
TARGETS = tuple(f"src/{name}.9000.0" if name.endswith(".0") else f"src/{name}" for name in FILES)

STEP = "virtrace-step: "
STEPS = (
    "a chroot with a compiler",
    "libvirt's build dependencies",
    "the source, unpacked and configured",
    "the daemon and its libraries, compiled",
)

# The folder of dpkg-buildpackage: __FILE__ and the debug info name it.
SOURCE_PARENT = "/build/reproducible-path"
SOURCE = f"{SOURCE_PARENT}/libvirt-{VERSION}"
OUTPUT = "/build/output"


def build_folder() -> Path:
    """The folder of the build. It exists only when the build is complete."""
    return cache_folder() / f"libvirt-{VERSION}-debug-{key_of(FILES)}"


def ensure_built(progress: Callable[[str], None]) -> Path:
    """The folder with FILES, built now if it is not in the cache.

    The build takes minutes, and about 2 GB below $TMPDIR or /var/tmp.

    Raises:
        LabError: a tool is missing, or the build failed; the log is then in the cache
    """
    finished = build_folder()
    if finished.is_dir():
        return finished
    sources = apt_sources(SUITE, kinds=("deb", "deb-src"))
    if not sources:
        raise LabError(
            f"libvirt {VERSION} with debug info is built from Debian's {SUITE}, "
            "and no Debian archive is configured for apt here",
            "run on Debian, or lab up without --debug-info",
        )
    require_tools(f"libvirt {VERSION} with debug info cannot be built")
    log = finished.parent / "build.log"
    keep_in_cache(finished, lambda work: _build(work, sources, log, progress), progress)
    return finished


def _chroot_scripts() -> list[str]:
    """The scripts that run in the finished chroot, one for each of STEPS[1:]."""
    ninja = ["ninja", "-C", "debian/build", f"-j{len(os.sched_getaffinity(0))}", *TARGETS]
    # The libraries under their full names, which contain the version, and the links to them.
    built = [f"debian/build/{target}" for target in TARGETS]
    built += [f"debian/build/src/{name}" for name in FILES if name.endswith(".0")]
    return [
        "apt-get install -y --no-install-recommends build-essential fakeroot; "
        "apt-get build-dep -y --no-install-recommends libvirt",
        f"mkdir -p {SOURCE_PARENT}; cd {SOURCE_PARENT}; "
        "apt-get source --download-only libvirt; "
        f"dpkg-source --extract libvirt_*.dsc {SOURCE}; cd {SOURCE}; "
        # The option that dh passes to the package's configure step.
        "DH_INTERNAL_OPTIONS=-O--builddirectory=debian/build "
        "debian/rules override_dh_auto_configure",
        # dtrace runs the compiler with the flags that dpkg-buildpackage has in the environment.
        f'cd {SOURCE}; eval "$(dpkg-buildflags --export=sh)"; '
        f"{shlex.join(ninja)}; mkdir {OUTPUT}; "
        f"cp --no-dereference {shlex.join(built)} {OUTPUT}; "
        f"dpkg-parsechangelog -S Version > {OUTPUT}/version",
    ]


def _build(output: Path, sources: list[str], log: Path, progress: Callable[[str], None]) -> None:
    hooks = []
    environment = "DEB_BUILD_OPTIONS=nocheck DEB_BUILD_PROFILES=nocheck"
    for number, script in enumerate(_chroot_scripts(), start=2):
        inner = f"set -eux; export {environment}; {script}"
        hooks.append(f'echo {STEP}{number} >&2; chroot "$1" sh -c {shlex.quote(inner)}')
    hooks.append(f"sync-out {OUTPUT} {output}")
    command = ["--variant=minbase", "--format=null"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    command += [SUITE, "-", *sources]

    def announce(number: int) -> None:
        progress(
            f"building libvirt {VERSION} with debug info: {number}/{len(STEPS)} {STEPS[number - 1]}"
        )

    def announce_next(line: str) -> None:
        if line.startswith(STEP):
            announce(int(line[len(STEP) :]))

    announce(1)
    status = run_mmdebstrap(command, log, announce_next)
    missing = [name for name in FILES if not (output / name).is_file()]
    if status != 0 or missing:
        raise LabError(
            f"libvirt {VERSION} with debug info could not be built "
            f"(mmdebstrap ended with {status})",
            f"read the end of {log}",
        )
    log.unlink()
