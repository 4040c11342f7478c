"""Ansible as the tests run it: releases of ansible-core in environments of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tools import collection
from virtrace import __version__
from virtrace.lab.roots import cache_folder, keep_in_cache

# Those that are supported, and run on Python 3.11.
RELEASES = ("2.18", "2.19")
# Seconds.
_TIMEOUT = 900.0
# ansible-test fetches it from a site of its own, in this version. Python brings one.
_PIP = ".ansible/test/cache/get_pip_24_2.py"
_GET_PIP = "import ensurepip\n\nensurepip.bootstrap()\n"
# Variables of hosts that cannot be asked.
DEAD = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
NO_PYTHON = {"ansible_python_interpreter": "/nonexistent"}
# Root as in a container: may not trace, and not load programs into the kernel.
_STRIPPED = '#!/bin/sh\nexec setpriv --bounding-set=-all --inh-caps=-all /usr/bin/python3 "$@"\n'
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

    def start(
        self, *words: object, output: IO[str] | int, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start one of the programs."""
        name, *rest = map(str, words)
        where = cwd or self.folder
        return subprocess.Popen(
            [self.program(name), *rest],
            cwd=where,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_REMOTE_TEMP": str(self.temporary),
                "ANSIBLE_TIMEOUT": "5",
                "COLUMNS": "200",
                "HOME": str(self.folder / "home"),
                "LC_ALL": "C.UTF-8",
                "PATH": f"{self.folder / 'venv' / 'bin'}:{os.environ['PATH']}",
                "PWD": str(where),
                "TMPDIR": str(self.temporary),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of the programs to its end, whatever its exit status."""
        with self.start(*words, output=subprocess.PIPE, cwd=cwd) as process:
            try:
                told, _ = process.communicate(timeout=_TIMEOUT)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, told)

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


def install_collection(release: str, folder: Path, one_file: Path) -> Ansible:
    """Install a release of ansible-core to a new folder, with the collection as it is built.

    one_file: virtrace.pyz
    """
    ansible = install(release, folder)
    collection.build(one_file, folder, ansible.program("ansible-galaxy"))
    archive = folder / f"virtrace-virtrace-{__version__}.tar.gz"
    ansible.run_checked(
        "ansible-galaxy", "collection", "install", archive, "-p", ansible.collections
    )
    return ansible


def inventory(folder: Path, hosts: dict[str, dict[str, Any]]) -> Path:
    """Write an inventory of hosts that are this one. hosts: the variables of each."""
    usual = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    file = folder / "hosts.yml"
    file.write_text(json.dumps({"all": {"vars": usual, "hosts": hosts}}))
    return file


def stripped(folder: Path) -> Path:
    """Write a Python for hosts where root may not trace."""
    python = folder / "python3"
    python.write_text(_STRIPPED)
    python.chmod(0o755)
    return python


def failures(reports: Path) -> dict[str, str]:
    """What each host did not give, and why."""
    told = json.loads((reports / ".failures.json").read_text())
    return {each["host"]: "; ".join(each["why"]) for each in told}
