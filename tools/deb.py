"""Build the Debian package in a root of a release, and check it by the release's lintian; as root.

.venv/bin/python tools/deb.py SUITE FOLDER
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from virtrace.errors import VirtraceError
from virtrace.lab.roots import ensure_root, inside

REPOSITORY = Path(__file__).resolve().parents[1]
# What debian/control builds with, and what checks the result.
TOOLS = (
    *("build-essential", "debhelper", "dh-python", "pybuild-plugin-pyproject", "python3-all"),
    *("python3-hatchling", "lintian"),
)
# Nothing is downloaded: neither by pip, nor by anything that it starts.
_BUILD = ("unshare", "--net", "dpkg-buildpackage", "--unsigned-source", "--unsigned-changes")
_CHECK = ("lintian", "--fail-on=error,warning", "--info", "--tag-display-limit=0")
_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8")
_INSIDE = ("env", "-i", "--chdir=/mnt/virtrace", *_ENVIRONMENT)


def copy_sources(folder: Path) -> None:
    """Copy the files that git has, as they are here. Modes are those of a new checkout."""
    listed = subprocess.check_output(["git", "-C", str(REPOSITORY), "ls-files", "-z"], text=True)
    for name in filter(None, listed.split("\0")):
        copied = folder / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, copied)
        copied.chmod(0o755 if os.access(copied, os.X_OK) else 0o644)


def build(suite: str, folder: Path) -> list[Path]:
    """Write the package, its sources and what describes them into a folder.

    suite: code name of the release

    Raises:
        LabError: there is no root of the release
        CalledProcessError: the package could not be built, or lintian complains
    """
    root = ensure_root(suite, print, TOOLS)
    with TemporaryDirectory(prefix="virtrace-deb-", dir="/var/tmp") as work:
        sources = Path(work, "virtrace")
        copy_sources(sources)

        def run(*command: str) -> None:
            words = inside(root, {"/mnt": Path(work)}, [*_INSIDE, *command])
            subprocess.run(words, check=True)

        run(*_BUILD)
        made = sorted(file for file in Path(work).iterdir() if file.is_file())
        run(*_CHECK, *(f"../{file.name}" for file in made if file.suffix == ".changes"))
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(file, folder)) for file in made]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        for file in build(sys.argv[1], Path(sys.argv[2])):
            print(f"{file}: {file.stat().st_size:,} bytes")
    except VirtraceError as error:
        sys.exit(f"virtrace: {error.what}\ntry: {error.remedy}")
