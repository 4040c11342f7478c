"""Debug info that is not on this host: from debuginfod servers, or the command to install it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from virtrace.files import text_inside

_FETCH_SECONDS = 600
_MAX_RELEASE = 1 << 16


def has_servers() -> bool:
    """Whether the user has named servers and debuginfod-find is installed."""
    named = os.environ.get("DEBUGINFOD_URLS", "").strip()
    return bool(named) and shutil.which("debuginfod-find") is not None


def fetch(
    build_id: str, name: str, source: str | None = None, *, is_executable: bool = False
) -> Path | None:
    """Fetch a debug file into debuginfod's cache; None if no server is set or has it.

    name: of the file that it belongs to, for messages
    source: path of a source file in the debug info, to fetch that file instead
    is_executable: fetch the executable or shared library itself instead
    """
    if not has_servers():
        return None
    wanted, what = ["debuginfo", build_id], f"the debug info of {name}"
    if source is not None:
        wanted, what = ["source", build_id, source], f"{os.path.basename(source)} of {name}"
    elif is_executable:
        wanted, what = ["executable", build_id], name
    print(f"virtrace: asking debuginfod for {what}", file=sys.stderr)
    try:
        answer = subprocess.run(
            ["debuginfod-find", *wanted],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"virtrace: no answer in {_FETCH_SECONDS} s, continuing without it", file=sys.stderr)
        return None
    return Path(answer.stdout.strip()) if answer.returncode == 0 else None


def how_to_get(program: str, packages: Sequence[str] | None, root: Path) -> str:
    """The command that installs debug info, on the distribution whose files are below root.

    packages: names in Debian and in distributions with RPM; None where the program has no packages
    """
    release = _distribution(root)
    family = _family(release)
    codename = release.get("VERSION_CODENAME", "CODENAME")
    debian, rpm = packages or ("", "")
    if not packages:
        command = f"build {program} with debug info"
    elif family in ("debian", "ubuntu"):
        archive = f"the {codename}-debug suite" if family == "debian" else "the ddebs archive"
        command = f"`sudo apt install {debian}-dbgsym`, with {archive} among apt's sources"
    elif family in ("fedora", "rhel"):
        command = f"`sudo dnf debuginfo-install {rpm}`"
    elif family == "suse":
        command = f"`sudo zypper --plus-content debug install {rpm}-debuginfo`"
    else:
        command = f"your distribution's debug package of {program}"
    if not os.environ.get("DEBUGINFOD_URLS", "").strip():
        server = "or set DEBUGINFOD_URLS to your distribution's debuginfod server"
    elif shutil.which("debuginfod-find") is None:
        server = "or install debuginfod-find: `virtrace record` asks the servers you named"
    else:
        server = "or do nothing: `virtrace record` asks the servers of DEBUGINFOD_URLS"
    return f"{command}; {server}"


def how_to_trust(path: str) -> str:
    """What to do about the debug info of a file that users other than root can have written."""
    return (
        f"if you trust {path}, let only root write to it (chown, chmod go-w); or make a symbol "
        "pack of it: virtrace pack make"
    )


# Each file is read by a child, which takes as long as to resolve a function.
@cache
def _distribution(root: Path) -> dict[str, str]:
    for name in ("etc/os-release", "usr/lib/os-release"):
        pairs = (line.partition("=") for line in text_inside(root, name, _MAX_RELEASE).splitlines())
        found = {key: value.strip("\"'") for key, separator, value in pairs if separator}
        if found:
            return found
    return {}


def _family(release: dict[str, str]) -> str:
    kin = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    for family in ("ubuntu", "debian", "fedora", "rhel", "suse"):
        if any(name == family or (family == "suse" and "suse" in name) for name in kin):
            return family
    return ""


def install_command(root: Path) -> str:
    """The command that installs a package, on the distribution whose files are below root."""
    commands = {
        "debian": "sudo apt install",
        "ubuntu": "sudo apt install",
        "fedora": "sudo dnf install",
        "rhel": "sudo dnf install",
        "suse": "sudo zypper install",
    }
    return commands.get(_family(_distribution(root)), "install the package")
