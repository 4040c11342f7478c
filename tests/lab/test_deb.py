"""The Debian package, built, checked by lintian, installed and run in roots of its releases."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.paths import REPOSITORY
from tools import deb
from virtrace import __version__
from virtrace.lab.roots import ensure_root, inside

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a root file system"),
    pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a checkout of git"),
]
DEPENDS = ("python3:any", "python3-jinja2", "python3-pyelftools", "python3-pygments")
SECONDS = 600
PYTHON = "/usr/lib/python3/dist-packages/virtrace"
# What runs the package's test; it asks for the second.
RUNNER = ("autopkgtest", "dpkg-dev")
# The root is read-only, and what is installed goes with the namespace. Nothing is downloaded. The
# namespace is what isolates.
RUN_TEST = """
set -eu
for place in etc usr var; do
    over=/tmp/over/$place
    mkdir -p $over/upper $over/work
    mount -t overlay -o lowerdir=/$place,upperdir=$over/upper,workdir=$over/work overlay /$place
done
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
exec autopkgtest --ignore-restrictions isolation-container /mnt/virtrace_*_all.deb /mnt/virtrace/ \
    -- null
"""


def dpkg_deb(option: str, *words: str | Path) -> str:
    return subprocess.check_output(["dpkg-deb", option, *map(str, words)], text=True)


def names(field: str) -> list[str]:
    """The packages in a list of a control file, without versions and substitutions."""
    listed = (item.split("(")[0].strip() for item in field.split(","))
    return [name for name in listed if name and name[0] not in "@$"]


def depends(package: Path) -> list[str]:
    return names(dpkg_deb("--field", package, "Depends"))


class OfRelease:
    """A class for each release, as a class is what a worker is given at a time."""

    suite: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> Iterator[Path]:
        """A folder with the package, in which lintian has found nothing to complain about."""
        # Not pytest's own folder: the user that runs the lab passes through it.
        with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as folder:
            Path(folder).chmod(0o755)
            deb.build(cls.suite, Path(folder))
            yield Path(folder)

    @pytest.fixture(scope="class")
    @staticmethod
    def package(built: Path) -> Path:
        (file,) = built.glob("*.deb")
        assert file.name == f"virtrace_{__version__}_all.deb"
        return file

    def test_it_has_everything_where_debian_has_it(self, package: Path) -> None:
        lines = dpkg_deb("--contents", package).splitlines()
        paths = {line.split()[5].removeprefix(".") for line in lines}
        assert {
            "/usr/bin/virtrace",
            "/usr/share/bash-completion/completions/virtrace",
            "/usr/share/doc/virtrace/changelog.gz",
            "/usr/share/doc/virtrace/copyright",
            "/usr/share/doc/virtrace/docs/start.md",
            "/usr/share/doc/virtrace/examples/sos/virtrace.py",
            "/usr/share/fish/vendor_completions.d/virtrace.fish",
            "/usr/share/man/man1/virtrace.1.gz",
            "/usr/share/zsh/vendor-completions/_virtrace",
            *(f"{PYTHON}/recipes/{file.name}" for file in (REPOSITORY / "recipes").glob("*.yaml")),
            *(f"{PYTHON}/gdb_scripts/{x.name}" for x in (REPOSITORY / "gdb_scripts").glob("*.py")),
        } <= paths
        assert not [path for path in paths if "__pycache__" in path or path.endswith(".pyc")]
        assert {*DEPENDS} <= {*depends(package)}

    def test_it_traces_a_real_daemon(self, built: Path, package: Path) -> None:
        """By the test that the package comes with, and with the packages that both name."""
        deb.copy_sources(built / "virtrace")
        control = (built / "virtrace/debian/tests/control").read_text()
        (listed,) = re.findall(r"^Depends:((?:.*\n)(?: .*\n)*)", control, re.MULTILINE)
        needed = [
            name.removesuffix(":any") for name in (*depends(package), *names(listed), *RUNNER)
        ]
        root = ensure_root(self.suite, print, sorted({*needed}))
        variables = [f"PATH={os.defpath}:/usr/sbin:/sbin", "HOME=/tmp", "LC_ALL=C.UTF-8"]
        # Whatever it starts ends with it.
        private = ("unshare", "--pid", "--fork", "--kill-child")
        command = ("env", "-i", *variables, "sh", "-c", RUN_TEST)
        done = subprocess.run(
            [*private, *inside(root, {"/mnt": built}, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout
        assert f"Setting up virtrace ({__version__})" in done.stdout
        assert re.search(r"^trace-a-daemon +PASS$", done.stdout, re.MULTILINE)


class TestTrixie(OfRelease):
    suite = "trixie"


class TestSid(OfRelease):
    suite = "sid"
