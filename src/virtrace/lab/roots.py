"""Root file systems of Debian releases, made by mmdebstrap and kept in a cache.

The host gets none of their packages. Every package is checked by apt against the host's
keyring of Debian's archive.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from virtrace.errors import LabError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What the lab runs, what traces it, and what builds the tests' own programs.
PACKAGES = (
    *("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    *("qemu-system-x86", "qemu-utils"),
    *("gdb", "python3", "python3-venv", "gcc", "libc6-dev"),
)

# Releases whose libvirt-daemon has the storage driver; later ones have a package for it.
_STORAGE_WITHIN = ("bullseye", "bookworm")


def packages(suite: str) -> tuple[str, ...]:
    """What the root of a release has."""
    return PACKAGES if suite in _STORAGE_WITHIN else (*PACKAGES, "libvirt-daemon-driver-storage")


def cache_folder() -> Path:
    """Where builds and roots are kept; everybody may pass, as root's lab is run by nobody."""
    if os.geteuid() == 0:
        return Path("/var/cache/virtrace")
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", os.path.expanduser("~"))
    if not os.path.isabs(base) and not os.path.isabs(home):
        raise LabError(
            f"HOME is {home!r}, and no path from /: there is no folder for what is kept",
            "set HOME or XDG_CACHE_HOME to the path of a folder",
        )
    return (Path(base) if os.path.isabs(base) else Path(home, ".cache")) / "virtrace"


def key_of(contents: Sequence[str]) -> str:
    """For the name of what the cache holds, so that one made with other contents is not used."""
    return hashlib.sha256(" ".join(contents).encode()).hexdigest()[:8]


def root_folder(suite: str) -> Path:
    """The root of a release with its packages; the folder exists only once it is whole."""
    return cache_folder() / "roots" / f"{suite}-{key_of(packages(suite))}"


def ensure_root(suite: str, progress: Callable[[str], None]) -> Path:
    """The root of a Debian release, by its code name, made now if the cache does not have it.

    Takes under a minute and 1 GB. A root of sid stays the sid of the day it was made.
    LabError where the user is not root, a tool is missing or it cannot be made; the log is
    then kept in the cache.
    """
    if os.geteuid() != 0:
        raise LabError(
            f"only root can make and enter a root file system of Debian's {suite}",
            "run this as root",
        )
    finished = root_folder(suite)
    if finished.is_dir():
        return finished
    require_tools(f"a root of Debian's {suite} cannot be made")
    sources = apt_sources(suite)
    if not sources:
        raise LabError(
            f"a root of Debian's {suite} comes from Debian's archive, "
            "and none is configured for apt here",
            "run on Debian",
        )

    def fill(work: Path) -> None:
        progress(f"making a root of Debian's {suite} with libvirt, QEMU and GDB")
        # Nobody but root passes here: the roots' set-user-ID programs get no updates.
        finished.parent.chmod(0o700)
        log = finished.parent / f"{finished.name}.log"
        # A mirror that is a snapshot serves sid beyond the week that its Release file is valid
        # for. An old sid is as good here, and the signature is checked all the same.
        status = run_mmdebstrap(
            [
                *("--variant=minbase", f"--include={','.join(packages(suite))}"),
                '--aptopt=Acquire::Check-Valid-Until "false"',
                *(suite, str(work), *sources),
            ],
            log,
        )
        if status != 0:
            raise LabError(
                f"a root of Debian's {suite} could not be made (mmdebstrap ended with {status})",
                f"read the end of {log}",
            )
        log.unlink()

    keep_in_cache(finished, fill, progress)
    return finished


def inside(root: Path, binds: Mapping[str, Path], command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a root; only root may run it.

    In a mount namespace of its own, which ends with the last process in it; the command ends with
    whoever started it, unless it has become another user. The root is read-only there, with the
    host's devices; /run and /tmp are empty. binds: what is to be under each path inside, in this
    order. LabError for a path that cannot be made there.
    """
    top = str(root)
    steps = [
        ("mount", "--bind", top, top),
        ("mount", "-o", "remount,bind,ro", top),
        *(("mount", "--rbind", f"/{name}", f"{top}/{name}") for name in ("dev", "sys")),
        ("mount", "-t", "proc", "proc", f"{top}/proc"),
        *(("mount", "-t", "tmpfs", "tmpfs", f"{top}/{name}") for name in ("run", "tmp")),
    ]
    bound: list[str] = []
    for path, source in binds.items():
        place = root / path.lstrip("/")
        if not path.startswith(tuple(bound)) and not place.exists():
            steps.append(("mount", "-t", "tmpfs", "tmpfs", str(_to_be_covered(root, path))))
            steps.append(("mkdir", "-p", str(place)))
        steps.append(("mount", "--bind", str(source), str(place)))
        bound.append(f"{path}/")
    script = " && ".join(map(shlex.join, [*steps, ("exec", "chroot", top, *command)]))
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script]


def _to_be_covered(root: Path, path: str) -> Path:
    """The folder of a read-only root that a path which it lacks can be made in."""
    found = root
    for part in Path(path).parts[1:]:
        if not (found / part).exists():
            break
        found /= part
    if found == root or found.resolve() != found:
        raise LabError(
            f"{path} cannot be made inside of {root}",
            "give a folder in /var/tmp with --dir",
        )
    return found


def keep_in_cache(
    finished: Path, fill: Callable[[Path], None], progress: Callable[[str], None]
) -> None:
    """Have `fill` make, in a new folder, what becomes `finished` once it is whole.

    Processes that find the same thing missing make it once: one fills a folder of the cache
    at a time, and the others wait for it. LabError when the cache cannot be written.
    """
    try:
        finished.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=finished.parent))
    except OSError as error:
        raise LabError(
            f"the cache {finished.parent} cannot be written: {error.strerror}",
            "make the folder writable, or point XDG_CACHE_HOME at one that is",
        ) from error
    lock = os.open(finished.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process, which is filling {finished.parent}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.is_dir():
            fill(work)
            work.chmod(0o755)
            work.rename(finished)
    finally:
        os.close(lock)
        shutil.rmtree(work, ignore_errors=True)


def require_tools(failure: str) -> None:
    """LabError, which begins with `failure`, where mmdebstrap or what it needs is missing."""
    missing = [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
    if os.geteuid() != 0 and not shutil.which("newuidmap"):
        missing.append("uidmap")
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise LabError(
            f"{failure}: missing {', '.join(missing)}",
            f"apt-get install {' '.join(missing)}",
        )


def apt_sources(suite: str, kinds: Sequence[str] = ("deb",)) -> list[str]:
    """One-line apt entries of a release, on the mirrors that this host is configured for.

    Empty where apt is not here, or no archive of this host's own Debian release.
    """
    try:
        listed = subprocess.run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"),
                *("Created-By: Packages", "Component: main"),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=60,
        ).stdout
        host_suite = _codename()
    except (OSError, subprocess.SubprocessError):
        return []
    # Archives besides Debian's (a vendor's) do not carry Debian's suite names.
    parts = ("",) if suite == "sid" else ("", "-updates", "-security")
    wanted = {host_suite + part: suite + part for part in parts}
    entries = []
    for line in dict.fromkeys(listed.splitlines()):
        uri, _, release = line.rpartition(" ")
        if release in wanted:
            entries += [
                f"{kind} [signed-by={KEYRING}] {uri} {wanted[release]} main" for kind in kinds
            ]
    return entries


def _codename() -> str:
    """The host's Debian release; empty on what is not Debian."""
    fields = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text(errors="replace").splitlines()
        if "=" in line
    )
    return fields.get("VERSION_CODENAME", "").strip('"')


def _ignore(_line: str) -> None:
    pass


def run_mmdebstrap(
    arguments: Sequence[str], log: Path, on_line: Callable[[str], None] = _ignore
) -> int:
    """Run mmdebstrap; its exit status. Its output goes to the log, each line to `on_line` too.

    However it ends, no mount and nothing of its own temporary files is left.
    """
    # In a mount namespace of its own, which --mode=unshare makes by itself: removing the
    # chroot cannot reach through a mount.
    own_mounts, mode = (["unshare", "--mount"], "root") if os.geteuid() == 0 else ([], "unshare")
    temporary = tempfile.mkdtemp(prefix="virtrace-build-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    os.chmod(temporary, 0o755)
    process = subprocess.Popen(
        [*own_mounts, "mmdebstrap", f"--mode={mode}", *arguments],
        env=dict(os.environ, TMPDIR=temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        # A process group of its own, to be interrupted as a whole.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as log_file:
            for line in process.stdout:
                log_file.write(line)
                on_line(line)
    except BaseException:
        with suppress(ProcessLookupError):
            # The one signal on which mmdebstrap tidies up while a hook runs.
            os.killpg(process.pid, signal.SIGINT)
        raise
    finally:
        process.communicate()
        shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode
