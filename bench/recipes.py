"""What `explain` costs of each recipe: time and memory for traces of 10^4 to 10^6 events.

    python -m bench.recipes [--most N] [--only RECIPE]...

Each trace is made of one that a lab recorded. Time is of the processor, and memory is the peak of
the process (VmHWM). `screen` is when the first screen of `show` was there, by the clock on the
wall. `json` is how many times as long `explain` took as to parse each line of the trace alone.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from bench.large import first_screen, measured, parsed
from bench.results import FOLDER, save
from tests.support import large
from tests.support.command import ENVIRONMENT, VIRTRACE
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, backend, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage

# What virsh asks meanwhile of vm2, which has one disk, and whose agent does not answer. What
# daemon-start records is over before virsh can ask.
_SIZES = "domblkinfo vm2 vda"
_SNAPSHOT = "snapshot-create-as vm2 --disk-only --no-metadata --diskspec vda,file=IMAGES/{}.qcow2"
_AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
SIZES = (10_000, 100_000, 1_000_000)
ASKED: Mapping[str, str] = {
    "backup": "backup-begin vm2; domjobabort vm2",
    "blockinfo": _SIZES,
    "blockjob": f"{_SNAPSHOT.format('a')}; blockcommit vm2 vda --active --pivot --wait",
    "blockstats": "domblkstat vm2 vda",
    "dominfo": "dominfo vm2",
    "domstats": "domstats vm2",
    "errors": "domblkinfo vm2 vdz",
    "events": "suspend vm2; resume vm2",
    "guest-agent": "domfsinfo vm2",
    "guest-end": "destroy vm2; start vm2",
    "high-water": f"qemu-monitor-command vm2 --hmp 'qemu-io -d {backend(0)} \"write 512 512\"'",
    "hotplug": "attach-disk vm2 IMAGES/hot.raw vdb; detach-disk vm2 vdb",
    "io-error": f"qemu-monitor-command vm2 --hmp 'qemu-io -d {backend(0)} \"write 512 512\"'",
    "job-lock": _SIZES,
    "memory": "dommemstat vm2",
    "migration": "migrate vm2 --p2p qemu+unix:///session?socket=/none",
    "monitor-stall": _SIZES,
    "numbers": "vcpuinfo vm2; dominfo vm2; nodememstats",
    "pool-refresh": "pool-refresh pool",
    "qmp": _SIZES,
    "qmp-slow": "suspend vm2; resume vm2",
    "rpc": f"{_SIZES}; domstate none",
    "slow": _SIZES,
    "snapshot-disk": _SNAPSHOT.format("b"),
    "start-failure": "destroy vm2; start vm2",
}


def record_each(lab: Lab, recipes: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Record recipes while virsh asks for what they are about; yield the name and the trace."""
    stage = Stage(lab)
    try:
        stage.image("hot.raw", MIB)
        image = stage.image("vda.qcow2", MIB, "qcow2")
        disk = disk_xml("file", file_source(image), TARGET, "type='qcow2'")
        stage.start(disk + _AGENT)
        pool = Path(mkdtemp(dir=stage.images))
        pool.chmod(0o755)
        lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
        for name in recipes:
            trace = folder / f"{name}.jsonl"
            asked = lab.virsh_command(ASKED[name].replace("IMAGES", str(stage.images)))
            of_qemu = (
                ("--domain", GUEST_NAME) if name in ("high-water", "io-error", "qmp-slow") else ()
            )
            options = ("-p", str(lab.pid), "-o", str(trace), *of_qemu)
            # What virsh is refused is recorded as well.
            done = subprocess.run(
                [*VIRTRACE, "record", name, *options, "--", "sh", "-c", f"{shlex.join(asked)}; :"],
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            yield name, trace
    finally:
        lab.virsh("pool-destroy", "pool")
        stage.clear()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=SIZES[-2], help="no trace of more events")
    parser.add_argument("--only", action="append", choices=sorted(ASKED))
    args = parser.parse_args()
    found: dict[str, dict[int, dict[str, Any]]] = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    heads = f"{'cpu s':>8} {'peak MiB':>8} {'json':>6} {'screen s':>8} {'load':>6}"
    print(f"{'explain':<16} {'events':>9} {heads}")
    with (
        TemporaryDirectory(dir=FOLDER) as name,
        Lab(Path(mkdtemp(prefix="virtrace-bench-", dir="/var/tmp"))) as lab,
    ):
        folder = Path(name)
        for recipe, trace in record_each(lab, args.only or sorted(ASKED), folder):
            for size in (each for each in SIZES if each <= args.most):
                many = large.write(folder / "many.jsonl", size, trace)
                alone = parsed(many)
                figures = measured(["explain", str(many)])
                figures["json"] = round(figures["cpu_s"] / max(alone, 0.001), 1)
                figures["screen_s"] = first_screen(["show", str(many)])
                found.setdefault(recipe, {})[size] = figures
                print(
                    f"{recipe:<16} {size:>9,} {figures['cpu_s']:>8.2f} {figures['peak_mib']:>8} "
                    f"{figures['json']:>6} {figures['screen_s']:>8.2f} {figures['load']:>6}",
                    flush=True,
                )
                output = save("recipes", found)
    print(f"json {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
