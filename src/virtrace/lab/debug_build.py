"""Builds libvirt 9.0.0 with debug info, once, into a cache.

The build runs in a throw-away chroot that mmdebstrap makes and removes, so the host gets
no build dependencies. Source, compiler, flags and build folder are those of Debian's own
package: code and addresses come out the same, with the debug info left in the files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from virtrace.errors import LabError

VERSION = "9.0.0"
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

DAEMON = "libvirtd"
FILES = (
    DAEMON,
    "libvirt.so.0",
    "libvirt-qemu.so.0",
    "libvirt-lxc.so.0",
    "libvirt_driver_qemu.so",
    "libvirt_storage_file_fs.so",
)
# Ninja knows the libraries by their full names only.
TARGETS = tuple(f"src/{name}.9000.0" if name.endswith(".0") else f"src/{name}" for name in FILES)

STEP = "virtrace-step: "
STEPS = (
    "a chroot with a compiler",
    "libvirt's build dependencies",
    "the source, unpacked and configured",
    "the daemon and its libraries, compiled",
)

# dpkg-buildpackage's own folder: __FILE__ and the debug info name it.
SOURCE_PARENT = "/build/reproducible-path"
SOURCE = f"{SOURCE_PARENT}/libvirt-{VERSION}"
OUTPUT = "/build/output"


def cache_folder() -> Path:
    """Where builds are kept: readable by the unprivileged daemon that root's lab runs."""
    if os.geteuid() == 0:
        return Path("/var/cache/virtrace")
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "virtrace"


def build_folder() -> Path:
    """The finished build; the folder exists only once the build is whole."""
    return cache_folder() / f"libvirt-{VERSION}-debug"


def ensure_built(progress: Callable[[str], None]) -> Path:
    """The folder that holds FILES, built now if the cache does not have it.

    Takes minutes and some 2 GB below $TMPDIR or /var/tmp while it builds. LabError where
    a tool is missing or the build fails; the log is then kept in the cache.
    """
    finished = build_folder()
    if finished.is_dir():
        return finished
    sources = _apt_sources()
    _require_tools()
    try:
        finished.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=finished.parent))
    except OSError as error:
        raise LabError(
            f"the cache {finished.parent} cannot be written: {error.strerror}",
            "make the folder writable, or point XDG_CACHE_HOME at one that is",
        ) from error
    try:
        _build(work, sources, finished.parent / "build.log", progress)
        work.chmod(0o755)
        try:
            work.rename(finished)
        except OSError:
            # Somebody else was faster: theirs is as good.
            if not finished.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return finished


def _require_tools() -> None:
    missing = [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
    if os.geteuid() != 0 and not shutil.which("newuidmap"):
        missing.append("uidmap")
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise LabError(
            f"libvirt with debug info cannot be built: missing {', '.join(missing)}",
            f"apt-get install {' '.join(missing)}",
        )


def _apt_sources() -> list[str]:
    """One-line apt entries of SUITE, on the mirrors that this host is configured for."""
    no_debian = LabError(
        f"libvirt {VERSION} with debug info is built from Debian's {SUITE}, "
        "and no Debian archive is configured for apt here",
        "run on Debian, or lab up without --debug-info",
    )
    try:
        listed = subprocess.run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"),
                *("Created-By: Packages", "Component: main"),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        host_suite = _codename()
    except (OSError, subprocess.SubprocessError) as error:
        raise no_debian from error
    # Archives besides Debian's (a vendor's) do not carry Debian's suite names.
    wanted = {host_suite + kind: SUITE + kind for kind in ("", "-updates", "-security")}
    entries = []
    for line in dict.fromkeys(listed.splitlines()):
        uri, _, release = line.rpartition(" ")
        if release in wanted:
            entries += [
                f"{kind} [signed-by={KEYRING}] {uri} {wanted[release]} main"
                for kind in ("deb", "deb-src")
            ]
    if not entries:
        raise no_debian
    return entries


def _codename() -> str:
    """The host's Debian release; empty on what is not Debian."""
    fields = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    return fields.get("VERSION_CODENAME", "").strip('"')


def _chroot_scripts() -> list[str]:
    """What is run in the chroot once it stands, one script for each of STEPS[1:]."""
    ninja = ["ninja", "-C", "debian/build", f"-j{len(os.sched_getaffinity(0))}", *TARGETS]
    # The libraries under their full names, which tell the version, and the links to them.
    built = [f"debian/build/{target}" for target in TARGETS]
    built += [f"debian/build/src/{name}" for name in FILES if name.endswith(".0")]
    return [
        "apt-get install -y --no-install-recommends build-essential fakeroot; "
        "apt-get build-dep -y --no-install-recommends libvirt",
        f"mkdir -p {SOURCE_PARENT}; cd {SOURCE_PARENT}; "
        "apt-get source --download-only libvirt; "
        f"dpkg-source --extract libvirt_*.dsc {SOURCE}; cd {SOURCE}; "
        # As dh hands it to the package's own configure step.
        "DH_INTERNAL_OPTIONS=-O--builddirectory=debian/build "
        "debian/rules override_dh_auto_configure",
        # dtrace compiles by itself, with the flags that dpkg-buildpackage has in the environment.
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
    # In a mount namespace of its own, which --mode=unshare makes by itself: however the build
    # ends, no mount is left, and removing the chroot cannot reach through one.
    own_mounts, mode = (["unshare", "--mount"], "root") if os.geteuid() == 0 else ([], "unshare")
    command = [*own_mounts, "mmdebstrap", f"--mode={mode}", "--variant=minbase", "--format=null"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    command += [SUITE, "-", *sources]

    def announce(number: int) -> None:
        progress(
            f"building libvirt {VERSION} with debug info: {number}/{len(STEPS)} {STEPS[number - 1]}"
        )

    announce(1)
    chroot_parent = tempfile.mkdtemp(
        prefix="virtrace-build-", dir=os.environ.get("TMPDIR", "/var/tmp")
    )
    os.chmod(chroot_parent, 0o755)
    process = subprocess.Popen(
        command,
        env=dict(os.environ, TMPDIR=chroot_parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # A process group of its own, to be interrupted as a whole.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with log.open("w") as log_file:
            for line in process.stdout:
                log_file.write(line)
                if line.startswith(STEP):
                    announce(int(line[len(STEP) :]))
    except BaseException:
        with suppress(ProcessLookupError):
            # The one signal on which mmdebstrap tidies up while a hook runs.
            os.killpg(process.pid, signal.SIGINT)
        raise
    finally:
        process.communicate()
        shutil.rmtree(chroot_parent, ignore_errors=True)
    missing = [name for name in FILES if not (output / name).is_file()]
    if process.returncode != 0 or missing:
        raise LabError(
            f"libvirt {VERSION} with debug info could not be built "
            f"(mmdebstrap ended with {process.returncode})",
            f"read the end of {log}",
        )
    log.unlink()
