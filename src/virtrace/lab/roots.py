"""Root file systems of Debian releases, made by mmdebstrap and kept in a cache.

No package is installed on the host. apt verifies every package with the host's keyring of Debian's
archive.
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

# Packages that the lab runs, that trace it, and that build the programs of the tests.
PACKAGES = (
    *("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    *("qemu-system-x86", "qemu-utils"),
    *("gdb", "python3", "python3-venv", "gcc", "libc6-dev"),
)

# Releases whose libvirt-daemon contains the storage driver; later ones have a package for it.
_STORAGE_WITHIN = ("bullseye", "bookworm")


def packages(suite: str) -> tuple[str, ...]:
    """The packages in the root of a release."""
    return PACKAGES if suite in _STORAGE_WITHIN else (*PACKAGES, "libvirt-daemon-driver-storage")


def cache_folder() -> Path:
    """The folder for builds and roots. Everybody may pass through it, as root's lab runs as nobody.

    Raises:
        LabError: the user has no home folder
    """
    if os.geteuid() == 0:
        return Path("/var/cache/virtrace")
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", os.path.expanduser("~"))
    if not os.path.isabs(base) and not os.path.isabs(home):
        raise LabError(
            f"HOME is {home!r}, which is not an absolute path: there is no folder for the cache",
            "set HOME or XDG_CACHE_HOME to the path of a folder",
        )
    return (Path(base) if os.path.isabs(base) else Path(home, ".cache")) / "virtrace"


def key_of(contents: Sequence[str]) -> str:
    """A key for the name of something in the cache: other contents have another key."""
    return hashlib.sha256(" ".join(contents).encode()).hexdigest()[:8]


def ensure_root(
    suite: str, progress: Callable[[str], None], contents: Sequence[str] | None = None
) -> Path:
    """The root of a Debian release, made now if it is not in the cache: a minute and 1 GB.

    A root of sid remains the sid of the day on which it was made.

    suite: code name of the release
    contents: packages, instead of libvirt, QEMU and GDB

    Raises:
        LabError: the user is not root, a tool is missing, or making it failed; the log is then in
            the cache
    """
    if os.geteuid() != 0:
        raise LabError(
            f"only root can make and enter a root file system of Debian's {suite}",
            "run this as root",
        )
    contents = packages(suite) if contents is None else contents
    # The folder exists only when it is complete.
    finished = cache_folder() / "roots" / f"{suite}-{key_of(contents)}"
    if finished.is_dir():
        return finished
    require_tools(f"a root of Debian's {suite} cannot be made")
    sources = apt_sources(suite)
    if not sources:
        raise LabError(
            f"a root of Debian's {suite} is made from Debian's archive, "
            "and none is configured for apt here",
            "run on Debian",
        )

    def fill(work: Path) -> None:
        progress(f"making a root of Debian's {suite}")
        # Only root may pass: the set-user-ID programs of the roots get no updates.
        finished.parent.chmod(0o700)
        log = finished.parent / f"{finished.name}.log"
        # A mirror that is a snapshot serves sid for longer than the week in which its Release file
        # is valid. An old sid is as good here, and the signature is checked all the same.
        status = run_mmdebstrap(
            [
                *("--variant=minbase", f"--include={','.join(contents)}"),
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

    The command gets its own mount namespace, which ends with the last process in it. It ends when
    the process that started it ends, unless it has changed its user. The root is read-only, with
    the host's devices; /run and /tmp are empty.

    binds: for paths in the root, what is mounted there, in this order

    Raises:
        LabError: a mount point cannot be made
    """
    top = str(root)
    steps = [
        ("mount", "--rbind", top, top),
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
            # Unlike mkdir, it lets everybody pass, whatever the umask.
            steps.append(("install", "-d", str(place)))
        steps.append(("mount", "--bind", str(source), str(place)))
        bound.append(f"{path}/")
    script = " && ".join(map(shlex.join, [*steps, ("exec", "chroot", top, *command)]))
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script]


def _to_be_covered(root: Path, path: str) -> Path:
    """The folder of a read-only root in which a missing path can be made, under a tmpfs."""
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
    """Let `fill` fill a new folder, and rename the folder to `finished` when it is complete.

    Only one process at a time fills a folder of the cache; others that miss the same wait for it.

    Raises:
        LabError: the cache cannot be written
    """
    try:
        finished.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=finished.parent))
    except OSError as error:
        raise LabError(
            f"the cache {finished.parent} cannot be written: {error.strerror}",
            "make the folder writable, or set XDG_CACHE_HOME to one that is",
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
    """Raises LabError, starting with `failure`, where mmdebstrap or a part of it is missing."""
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
    """One-line apt entries for a release, from the mirrors that this host is configured for.

    Empty if there is no apt, or no archive for this host's own Debian release.
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
    # Archives of vendors do not have the suite names of Debian.
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
    """The code name of the host's Debian release; empty on other systems."""
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
    """Run mmdebstrap and return its exit status.

    However it ends, it leaves no mount and no temporary file.

    log: gets its output
    on_line: called with each line of the output
    """
    # In its own mount namespace, so that removing the chroot cannot reach through a mount.
    # --mode=unshare makes one itself.
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
        # Its own process group, which can be interrupted as a whole.
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
            # The only signal on which mmdebstrap cleans up while a hook runs.
            os.killpg(process.pid, signal.SIGINT)
        raise
    finally:
        process.communicate()
        shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode
