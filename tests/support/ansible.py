"""Ansible as the tests run it: releases of ansible-core in environments of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from virtrace.lab.roots import cache_folder, keep_in_cache

# Those that are supported, and run on Python 3.11.
RELEASES = ("2.18", "2.19")
# Seconds.
_TIMEOUT = 900.0
# ansible-test fetches it from a site of its own, in this version. Python brings one.
_PIP = ".ansible/test/cache/get_pip_24_2.py"
_GET_PIP = "import ensurepip\n\nensurepip.bootstrap()\n"
_RECAP = re.compile(
    r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+) ", re.MULTILINE
)


@dataclass(frozen=True)
class Recap:
    """What the last lines of a play say of a host."""

    changed: int
    unreachable: int
    failed: int


@dataclass(frozen=True)
class Ansible:
    """A release of ansible-core. folder: its environment, home, collections and temporary files."""

    folder: Path

    @property
    def collections(self) -> Path:
        return self.folder / "collections"

    @property
    def temporary(self) -> Path:
        """What the modules leave on a host that is this one."""
        return self.folder / "tmp"

    def program(self, name: str) -> str:
        return str(self.folder / "venv" / "bin" / name)

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of the programs to its end, whatever its exit status."""
        name, *rest = map(str, words)
        where = cwd or self.folder
        return subprocess.run(
            [self.program(name), *rest],
            cwd=where,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_TIMEOUT": "5",
                "COLUMNS": "200",
                "HOME": str(self.folder / "home"),
                "LC_ALL": "C.UTF-8",
                "PATH": f"{self.folder / 'venv' / 'bin'}:{os.environ['PATH']}",
                "PWD": str(where),
                "TMPDIR": str(self.temporary),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
        )

    def run_checked(self, *words: object, cwd: Path | None = None) -> str:
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, done.stdout
        return done.stdout


def recaps(output: str) -> dict[str, Recap]:
    """What the last lines of a play say, by host."""
    return {name: Recap(*map(int, numbers)) for name, *numbers in _RECAP.findall(output)}


def install(release: str, folder: Path) -> Ansible:
    """Install a release of ansible-core to an empty folder, from wheels in the cache."""
    python = sys.version_info
    wheels = cache_folder() / "ansible" / f"{release}-python{python[0]}.{python[1]}"

    def fill(work: Path) -> None:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(work)]
        subprocess.run([*pip, f"ansible-core~={release}.0"], check=True)

    if not wheels.is_dir():
        keep_in_cache(wheels, fill, print)
    ansible = Ansible(folder)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [ansible.program("pip"), "install", "--quiet", "--no-index", "--find-links", str(wheels)]
    subprocess.run([*pip, "ansible-core"], check=True)
    ansible.temporary.mkdir()
    fetched = folder / "home" / _PIP
    fetched.parent.mkdir(parents=True)
    fetched.write_text(_GET_PIP)
    return ansible
