"""1,000 hosts asked by the Ansible collection, all by local connection: time, and peak of memory.

    python -m bench.hosts [--hosts N]

What virtrace says is kept from one answer of a real daemon, so that Ansible is measured and not
virtrace. Three kinds of hosts fail, ten of each: one is dead, one has no Python, and one is asked
by the real virtrace, but may not look at the daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.results import save
from tests.support.ansible import (
    DEAD,
    NO_PYTHON,
    RELEASES,
    Ansible,
    failures,
    install_collection,
    inventory,
    stripped,
)
from tests.support.command import virtrace
from tools import pyz
from virtrace.errors import BAD_INPUT
from virtrace.lab.daemon import Lab

HOSTS, OF_EACH, FORKS = 1000, 10, 20
# In place of virtrace.pyz: what it said once.
KEPT = """import shutil, sys
if sys.argv[1] == "doctor":
    print(open({doctor!r}).read())
else:
    kept = {{"snapshot": {snapshot!r}, "bundle": {bundle!r}}}[sys.argv[1]]
    shutil.copy(kept, sys.argv[sys.argv.index("-o") + 1])
"""
# What is told of each kind.
WHY = {"dead": "Connection refused", "no-python": "interpreter", "no-rights": "root may not"}


def keep_answers(lab: Lab, folder: Path) -> Path:
    """Ask the daemon once; return what says the same again."""
    doctor, snapshot, bundle = (folder / name for name in ("doctor", "snapshot", "bundle.tar.gz"))
    said = virtrace("doctor", "-p", lab.pid, "--json")
    assert said.returncode == 0, said.stderr
    doctor.write_text(said.stdout)
    virtrace("snapshot", "-p", lab.pid, "-o", snapshot)
    virtrace("bundle", snapshot, "-o", bundle)
    kept = folder / "kept.pyz"
    kept.write_text(KEPT.format(doctor=str(doctor), snapshot=str(snapshot), bundle=str(bundle)))
    return kept


def hosts_of(count: int, lab: Lab, real: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The hosts of the inventory, each with its variables."""
    without = {"virtrace_pyz": str(real), "virtrace_pid": lab.pid}
    odd: dict[str, dict[str, Any]] = {
        "dead": DEAD,
        "no-python": NO_PYTHON,
        "no-rights": {**without, "ansible_python_interpreter": str(stripped(folder))},
    }
    hosts = {
        f"{kind}-{number}": variables
        for kind, variables in odd.items()
        for number in range(OF_EACH)
    }
    usual = [f"host-{number:04}" for number in range(count - len(hosts))]
    return {**{name: {} for name in usual}, **hosts}


def times_of(pid: int) -> tuple[float, float]:
    """Seconds of the processor that an ended process used itself, and with its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    itself, children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
    tick = os.sysconf("SC_CLK_TCK")
    return itself / tick, (itself + children) / tick


def ask(ansible: Ansible, words: list[str], output: Path) -> dict[str, Any]:
    """Run ansible-playbook; return what it took."""
    began = time.monotonic()
    with output.open("w") as file, ansible.start(*words, output=file) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - began
        itself, all_of_them = times_of(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == BAD_INPUT, output.read_text()[-3000:]
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(all_of_them, 1),
        "cpu_main_s": round(itself, 1),
        "peak_mib": used.ru_maxrss >> 10,
    }


def check(reports: Path, hosts: dict[str, dict[str, Any]]) -> Counter[str]:
    """The hosts that failed by kind, all others having given everything."""
    told = failures(reports)
    for name, why in told.items():
        kind = name.rpartition("-")[0]
        assert WHY[kind] in why, (name, why)
    for name in hosts.keys() - told.keys():
        for file in ("doctor.json", "snapshot.json"):
            assert (reports / name / file).stat().st_size > 0
    return Counter(name.rpartition("-")[0] for name in told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    count = parser.parse_args().hosts
    with TemporaryDirectory(dir="/var/tmp") as made, TemporaryDirectory(dir="/var/tmp") as own:
        Path(own).chmod(0o755)
        folder = Path(made)
        pyz.build(folder / "virtrace.pyz")
        ansible = install_collection(RELEASES[-1], folder / "ansible", folder / "virtrace.pyz")
        with Lab(Path(own, "lab")) as lab:
            hosts = hosts_of(count, lab, folder / "virtrace.pyz", folder)
            words = [
                *("ansible-playbook", "-i", str(inventory(folder, hosts))),
                *("virtrace.virtrace.ask", "--forks", str(FORKS)),
                *("-e", f"virtrace_dest={folder / 'reports'}"),
            ]
            kept = keep_answers(lab, folder)
            # A host's own, of those without rights, goes first.
            (folder / "group_vars").mkdir()
            (folder / "group_vars" / "all.yml").write_text(f"virtrace_pyz: {kept}\n")
            figures = ask(ansible, words, folder / "output")
        failed = check(folder / "reports", hosts)
    assert failed == dict.fromkeys(WHY, OF_EACH), failed
    figures = {"hosts": count, "forks": FORKS, "failed": dict(failed), **figures}
    output = save("hosts", figures)
    print(f"{count:,} hosts by local connection, {FORKS} at once")
    print(f"  answered {count - sum(failed.values()):,}; each other one is told, with the reason:")
    for kind, number in failed.items():
        print(f"           {number} {kind}")
    print(f"  time     {figures['seconds']} s, {figures['cpu_s']} s of processor time, of which")
    print(f"           {figures['cpu_main_s']} s of the main process of ansible-playbook")
    print(f"  memory   {figures['peak_mib']} MiB in the largest process")
    print(f"  json     {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
