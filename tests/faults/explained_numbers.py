"""Numbers of explanations beside their sources, which are asked directly before and after.

    python -m tests.faults.explained_numbers --times 31 --release trixie

A guest changes all the time: its processors run, its disks are written, its network is sent to, and
a vCPU is added. In each round virsh asks for every number that can be explained, while this is
recorded. Each number of each explanation has to be the one that virsh printed, and to be what the
source has: QEMU by QMP, /proc, /sys, the file system, qemu-img. Where the source moves, it has to
be between the two. Prints how many were compared with each, and each that differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.support.command import virtrace
from tests.support.hanging import qemu_of
from tests.support.mounts import mounted
from tests.support.own_files import copied
from tests.support.stages import staged
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.trace.reader import read_trace

KIB, TICK_NS, PAGE_KIB = 1024, 10_000_000, 4
GUEST = """
<domain type='qemu'>
  <name>vm2</name>
  <memory unit='MiB'>32</memory>
  <currentMemory unit='MiB'>24</currentMemory>
  <vcpu current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><bios rebootTimeout='1'/></os>
  <devices>
    <emulator>{emulator}</emulator>{disks}
    <controller type='usb' model='none'/>
    <interface type='ethernet'>
      <target dev='{tap}' managed='no'/>
      <model type='virtio'/>
    </interface>
    <memballoon model='virtio'><stats period='2'/></memballoon>
  </devices>
</domain>
"""
POOL, RAW, QCOW2 = "numbers", "raw.img", "image.qcow2"
# A number: what explains it, what it is about, and its name below the answer.
Key = tuple[str, str, str]
Numbers = dict[Key, int]
RSS: Key = ("memory", "vm2", "rss")
# What the source has, before and after.
Bounds = dict[Key, tuple[int, int]]


# What virsh prints


def _pairs(text: str, pattern: str) -> Iterator[tuple[str, int]]:
    for name, number in re.findall(pattern, text, re.M):
        yield name, int(number)


def _domstats(text: str) -> Numbers:
    lines = dict(re.findall(r"^  ([\w.]+)=(.*)$", text, re.M))
    return {**_of_devices(lines), **_of_processors(lines)}


def _of_devices(lines: dict[str, str]) -> Numbers:
    counters = [
        f"{way}.{what}" for way in ("rx", "tx") for what in ("bytes", "pkts", "errs", "drop")
    ]
    found: Numbers = {}
    for group, explainer, names in (
        ("block", "statistics", ["capacity", "allocation", "physical"]),
        ("net", "network", counters),
    ):
        for index in range(int(lines.get(f"{group}.count", 0))):
            device = lines[f"{group}.{index}.name"]
            for name in names:
                found[explainer, f"vm2 {device}", name] = int(lines[f"{group}.{index}.{name}"])
    return found


def _of_processors(lines: dict[str, str]) -> Numbers:
    found: Numbers = {}
    for name in ("time", "user", "system"):
        if f"cpu.{name}" in lines:
            found["cpu", "vm2", name] = int(lines[f"cpu.{name}"])
    for name, number in lines.items():
        vcpu = re.fullmatch(r"vcpu\.(\d+)\.(time|delay)", name)
        if vcpu:
            below = " delay" if vcpu[2] == "delay" else ""
            found["cpu", "vm2", f"vCPU {vcpu[1]}{below}"] = int(number)
    for name, ours in (("current", "balloon"), ("maximum", "maximum"), ("rss", "rss")):
        found["memory", "vm2", ours] = int(lines[f"balloon.{name}"]) * KIB
    return found


def _dommemstat(text: str) -> Numbers:
    names = {"actual": "balloon", "rss": "rss"}
    said = dict(_pairs(text, r"^(\w+) (\d+)$"))
    return {("memory", "vm2", ours): said[name] * KIB for name, ours in names.items()}


def _dominfo(text: str) -> Numbers:
    said = dict(_pairs(text, r"^(Max memory|Used memory): +(\d+) KiB$"))
    return {
        ("memory", "vm2", "balloon"): said["Used memory"] * KIB,
        ("memory", "vm2", "maximum"): said["Max memory"] * KIB,
    }


def _vcpuinfo(_: str) -> Numbers:
    # It prints tenths of seconds.
    return {}


def _domifstat(text: str) -> Numbers:
    found: Numbers = {}
    for device, name, number in re.findall(r"^(\S+) ([rt]x_\w+) (\d+)$", text, re.M):
        ours = name.replace("packets", "pkts").replace("_", ".")
        found["network", f"vm2 {device}", ours] = int(number)
    return found


def _domblkinfo(text: str) -> Numbers:
    said = _pairs(text, r"^(Capacity|Allocation|Physical): +(\d+)$")
    return {("disk-sizes", "vm2 vda", name.lower()): number for name, number in said}


def _domblkstat(text: str) -> Numbers:
    said = dict(_pairs(text, r"^vda (\w+) (\d+)$"))
    names = {"rd_req": "rd_operations", "wr_req": "wr_operations"}
    return {("counters", "vm2 vda", names.get(name, name)): said[name] for name in said}


def _nodeinfo(text: str) -> Numbers:
    names = {
        "CPU(s)": "cpus",
        "CPU frequency": "mhz",
        "CPU socket(s)": "sockets",
        "Core(s) per socket": "cores",
        "Thread(s) per core": "threads",
        "NUMA cell(s)": "nodes",
        "Memory size": "memory",
    }
    said = dict(_pairs(text, r"^([\w() ]+): +(\d+)(?: \w+)?$"))
    return {
        ("hosts", "host", ours): said[name] * (KIB if ours == "memory" else 1)
        for name, ours in names.items()
    }


def _nodememstats(text: str) -> Numbers:
    said = _pairs(text, r"^(\w+) *: +(\d+) KiB$")
    return {("hosts", "host's memory", name): number * KIB for name, number in said}


def _nodecpustats(text: str) -> Numbers:
    said = _pairs(text, r"^(\w+): +(\d+)$")
    names = {"system": "kernel"}
    return {("hosts", "host's CPU times", names.get(name, name)): number for name, number in said}


def _pool_info(text: str) -> Numbers:
    said = _pairs(text, r"^(Capacity|Allocation|Available): +(\d+)$")
    return {("volumes", POOL, name.lower()): number for name, number in said}


def _vol_info(text: str) -> Numbers:
    [name] = re.findall(r"^Name: +(.*)$", text, re.M)
    said = _pairs(text, r"^(Capacity|Allocation|Physical): +(\d+) bytes$")
    return {("volumes", f"{POOL} {name}", what.lower()): number for what, number in said}


# By recipe: each command of virsh, the function of the API whose explanation has its numbers, and
# what reads what it prints.
Command = tuple[str, tuple[str, ...], Callable[[str], Numbers]]
STATISTICS = ("virDomainListGetStats", "virConnectGetAllDomainStats")
VOLUME = ("virStorageVolGetInfo", "virStorageVolGetInfoFlags")


def commands(tap: str) -> dict[str, list[Command]]:
    return {
        "domstats": [("domstats vm2", STATISTICS, _domstats)],
        "blockinfo": [("domblkinfo vm2 vda", ("virDomainGetBlockInfo",), _domblkinfo)],
        "blockstats": [("domblkstat vm2 vda", ("virDomainBlockStatsFlags",), _domblkstat)],
        "memory": [("dommemstat vm2", ("virDomainMemoryStats",), _dommemstat)],
        "numbers": [
            ("dominfo vm2", ("virDomainGetInfo",), _dominfo),
            ("vcpuinfo vm2", ("virDomainGetVcpus",), _vcpuinfo),
            (f"domifstat vm2 {tap}", ("virDomainInterfaceStats",), _domifstat),
            ("nodeinfo", ("virNodeGetInfo",), _nodeinfo),
            ("nodememstats", ("virNodeGetMemoryStats",), _nodememstats),
            ("nodecpustats", ("virNodeGetCPUStats",), _nodecpustats),
            (f"pool-info --bytes {POOL}", ("virStoragePoolGetInfo",), _pool_info),
            (f"vol-info --bytes {RAW} {POOL}", VOLUME, _vol_info),
            (f"vol-info --bytes --physical {RAW} {POOL}", VOLUME, _vol_info),
            (f"vol-info --bytes {QCOW2} {POOL}", VOLUME, _vol_info),
        ],
    }


# What the sources have


def _ticks(file: str) -> dict[str, int]:
    fields = Path(file).read_text().rpartition(")")[2].split()
    user, system = (int(field) * TICK_NS for field in fields[11:13])
    rss = int(fields[21]) * PAGE_KIB * KIB
    return {"time": user + system, "user": user, "system": system, "rss": rss}


def _meminfo(file: Path) -> dict[str, int]:
    return {name: kib * KIB for name, kib in _pairs(file.read_text(), r"(\w+): +(\d+) kB$")}


def of_proc(lab: Lab) -> Numbers:
    """What the kernel says of QEMU and of the host."""
    found: Numbers = {}
    pid = qemu_of(lab, "vm2")
    of_process = _ticks(f"/proc/{pid}/stat")
    for name in ("time", "user", "system"):
        found["cpu", "vm2", name] = of_process[name]
    found[RSS] = of_process["rss"]
    for vcpu in lab.qmp({"execute": "query-cpus-fast"}, "vm2")["return"]:
        number, thread = vcpu["cpu-index"], f"/proc/{pid}/task/{vcpu['thread-id']}"
        found["cpu", "vm2", f"vCPU {number}"] = _ticks(f"{thread}/stat")["time"]
        delay = int(Path(thread, "schedstat").read_text().split()[1])
        found["cpu", "vm2", f"vCPU {number} delay"] = delay
    first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, idle, iowait, irq, softirq, *_ = (int(each) * TICK_NS for each in first)
    times = {"user": user + nice, "kernel": system + irq + softirq, "idle": idle, "iowait": iowait}
    for name, number in times.items():
        found["hosts", "host's CPU times", name] = number
    found["hosts", "host's memory", "total"] = _meminfo(Path("/proc/meminfo"))["MemTotal"]
    return found


def of_network(lab: Lab, tap: str) -> Numbers:
    """What the kernel says of the device: the guest receives what the host sends."""
    [line] = [
        line for line in Path("/proc/net/dev").read_text().splitlines() if f" {tap}:" in f" {line}"
    ]
    numbers = list(map(int, line.partition(":")[2].split()))
    found: Numbers = {}
    # Libvirt 7.0.0 takes a device of type ethernet for the guest's own end.
    swapped = lab.libvirt_version >= (9, 0)
    for way, begin in (("tx" if swapped else "rx", 0), ("rx" if swapped else "tx", 8)):
        for name, number in zip(("bytes", "pkts", "errs", "drop"), numbers[begin:]):
            found["network", f"vm2 {tap}", f"{way}.{name}"] = number
    return found


def _listed(text: str) -> int:
    """How many numbers a list such as ``0-3,5`` has."""
    ranges = [part.split("-") for part in text.strip().split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def of_sys() -> Numbers:
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    memory = sum(_meminfo(node / "meminfo")["MemTotal"] for node in nodes)
    return {
        ("hosts", "host", "memory"): memory,
        ("hosts", "host", "cpus"): _listed(Path("/sys/devices/system/cpu/online").read_text()),
        ("hosts", "host", "nodes"): len(nodes),
    }


def of_qemu(lab: Lab) -> Numbers:
    """What QEMU says by QMP."""
    found: Numbers = {}

    def ask(command: str, **arguments: Any) -> Any:
        reply = lab.qmp({"execute": command, "arguments": arguments}, "vm2")
        return reply["return"]

    found["memory", "vm2", "balloon"] = ask("query-balloon")["actual"]
    inserted = {
        device["qdev"].split("/")[3]: device["inserted"]["image"]
        for device in ask("query-block")
        if device.get("inserted")
    }
    for index, disk in enumerate(("vda", "vdb")):
        image = inserted[f"virtio-disk{index}"]
        found["statistics", f"vm2 {disk}", "capacity"] = image["virtual-size"]
        found["statistics", f"vm2 {disk}", "physical"] = image["actual-size"]
    found["disk-sizes", "vm2 vda", "capacity"] = inserted["virtio-disk0"]["virtual-size"]
    stats = {each["qdev"].split("/")[3]: each["stats"] for each in ask("query-blockstats")}
    for name, number in stats["virtio-disk0"].items():
        if type(number) is int:
            ours = name.replace("_total_time_ns", "_total_times")
            found["counters", "vm2 vda", ours] = number
    return found


def of_files(pool: Path) -> Numbers:
    """What the file system says of the volumes."""
    found: Numbers = {}
    for name in (RAW, QCOW2):
        about = (pool / name).stat()
        found["volumes", f"{POOL} {name}", "allocation"] = about.st_blocks * 512
    about = (pool / RAW).stat()
    found["volumes", f"{POOL} {RAW}", "physical"] = about.st_size
    system = os.statvfs(pool)
    found["volumes", POOL, "capacity"] = system.f_blocks * system.f_frsize
    return found


def of_qemu_img(pool: Path) -> Numbers:
    found: Numbers = {}
    for name, kind in ((RAW, "raw"), (QCOW2, "qcow2")):
        command = ["qemu-img", "info", "-U", "--output=json", "-f", kind, str(pool / name)]
        said = json.loads(subprocess.check_output(command))
        found["volumes", f"{POOL} {name}", "capacity"] = said["virtual-size"]
    return found


def sources(lab: Lab, pool: Path, tap: str) -> dict[str, Numbers]:
    return {
        "/proc": of_proc(lab),
        "/proc/net/dev": of_network(lab, tap),
        "/sys": of_sys(),
        "QMP": of_qemu(lab),
        "file system": of_files(pool),
        "qemu-img": of_qemu_img(pool),
    }


# The run


@contextmanager
def tap_device(lab: Lab) -> Iterator[str]:
    """A tap device that the lab's user may open, and that is up. The lab has a /dev of its own."""
    name, owner = f"vt{os.getpid()}", str(lab.system.uid)
    node = lab.folder / "tun"
    os.mknod(node, stat.S_IFCHR, Path("/dev/net/tun").stat().st_rdev)
    node.chmod(0o666)
    with mounted(lab.pid, Path("/dev/net/tun"), "--bind", str(node)):
        add = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "user", owner]
        subprocess.run(add, check=True)
        try:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            yield name
        finally:
            subprocess.run(["ip", "link", "del", name], check=True)
            node.unlink()


@contextmanager
def changing_guest(lab: Lab, tap: str) -> Iterator[Path]:
    """Run vm2 with two disks and a network; return the folder of a pool with two volumes."""
    with staged(lab) as stage, ExitStack() as ends:
        images = (stage.image("vda.qcow2", 8 * MIB, "qcow2"), stage.image("vdb.raw", 4 * MIB))
        disks = disk_xml("file", file_source(images[0]), "vda", "type='qcow2'")
        disks += disk_xml("file", file_source(images[1]), "vdb")
        definition = stage.folder / "vm2.xml"
        definition.write_text(GUEST.format(emulator=lab.system.emulator, disks=disks, tap=tap))
        pool = stage.images / "pool"
        pool.mkdir()
        os.chown(pool, lab.system.uid, lab.system.gid)
        lab.virsh_checked("define", str(definition))
        lab.virsh_checked("start", "vm2")
        lab.virsh_checked("pool-create-as", POOL, "dir", "--target", str(pool))
        ends.callback(lab.virsh, "pool-destroy", POOL)
        lab.virsh_checked("vol-create-as", POOL, RAW, "4M", "--format", "raw", "--allocation", "0")
        lab.virsh_checked("vol-create-as", POOL, QCOW2, "4M", "--format", "qcow2")
        yield pool


def change(lab: Lab, pool: Path, tap: str, round_: int) -> None:
    lab.qemu_io("vm2", round_ % 2, f"write -P {round_ + 1} {round_ % 60 * 64}k 4k")
    lab.qemu_io("vm2", round_ % 2, "flush")
    if round_ == 1:
        lab.virsh_checked("setvcpus", "vm2", "2", "--live")
    with (pool / RAW).open("r+b") as file:
        file.seek(round_ % 60 * 64 * KIB)
        file.write(b"\1" * 4096)
        file.flush()
        os.fsync(file.fileno())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((tap, 0))
        for size in range(60, 60 + 7 * (round_ + 1), 7):
            link.send(b"\xff" * 12 + b"\x88\xb5" + bytes(size))


def facts(explanation: Explanation[Any]) -> Numbers:
    name, about = explanation.explainer, " ".join(explanation.case.subject)
    found = {(name, about, fact.name): fact.value for fact in explanation.case.facts}
    found |= {(name, about, each.number): each.answer.value for each in explanation.lineages}
    return {key: int(value) for key, value in found.items() if isinstance(value, int)}


def numbers_of(file: Path, wanted: list[Command]) -> Iterator[tuple[Command, Numbers]]:
    """Each command with the numbers of its explanation, in their order."""
    trace = read_trace(file)
    assert trace.problems == [], trace.problems
    calls: dict[tuple[str, ...], list[Numbers]] = defaultdict(list)
    for call in CallBuilder().everything(trace.events):
        if not isinstance(call, Call):
            continue
        apis = next((apis for _, apis, _ in wanted if call.root.name in apis), None)
        if apis is None:
            continue
        numbers: Numbers = {}
        for explanation in explain_trace(trace, file.name, call.id):
            first = explanation.findings[0].cause.name
            assert first not in ("contradiction", "unknown"), (first, explanation.case)
            numbers |= facts(explanation)
        # A caller can ask first for how many there are.
        if numbers:
            calls[apis].append(numbers)
    for command in wanted:
        # Some commands of virsh ask for other numbers as well, by calls of other commands.
        yield command, calls[command[1]].pop(0)


def rounds(lab: Lab, times: int, folder: Path) -> tuple[list[str], Counter[str]]:
    """What differs, and how many numbers were compared with each source."""
    wrong: list[str] = []
    compared: Counter[str] = Counter()
    with tap_device(lab) as tap, changing_guest(lab, tap) as pool:
        for round_ in range(times):
            change(lab, pool, tap, round_)
            lab.virsh_checked("pool-refresh", POOL)
            before = sources(lab, pool, tap)
            said: list[tuple[str, Numbers, Numbers]] = []
            with rss_meanwhile(qemu_of(lab, "vm2")) as memory:
                for recipe, wanted in commands(tap).items():
                    file = folder / f"{recipe}-{round_}.jsonl"
                    said += recorded(lab, recipe, wanted, file)
            after = sources(lab, pool, tap)
            # It falls, too: QEMU gives pages back when it throws away what it has translated.
            before["/proc"][RSS], after["/proc"][RSS] = min(memory), max(memory)
            for command, ours, printed in said:
                missing = printed.keys() - ours.keys()
                wrong += [f"{command}: {key} is not explained" for key in missing]
                compared["numbers"] += len(ours)
                for key, number in ours.items():
                    if key in printed:
                        compared["virsh"] += 1
                        if number != printed[key]:
                            wrong.append(f"{command}: {key}: {number}, virsh {printed[key]}")
                    for source, values in before.items():
                        if key not in values or key not in after[source]:
                            continue
                        low, high = sorted((values[key], after[source][key]))
                        compared[source] += 1
                        if not low - _slack(key) <= number <= high + _slack(key):
                            wrong.append(f"{command}: {key}: {number}, {source} {low} to {high}")
    return wrong, compared


@contextmanager
def rss_meanwhile(pid: int) -> Iterator[list[int]]:
    """Collect the memory of a process, bytes, as often as it can be read."""
    found, is_over = [_ticks(f"/proc/{pid}/stat")["rss"]], threading.Event()

    def look() -> None:
        while not is_over.wait(0.002):
            found.append(_ticks(f"/proc/{pid}/stat")["rss"])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        is_over.set()
        looking.join()


def _slack(key: Key) -> int:
    """What a number may be off that can fall between two looks.

    QEMU takes pages and gives them back, and the kernel corrects the time of processors that wait.
    """
    _, about, name = key
    if key == RSS:
        return 8 * MIB
    return TICK_NS if about == "host's CPU times" and name in ("idle", "iowait") else 0


def recorded(
    lab: Lab, recipe: str, wanted: list[Command], file: Path
) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Each command, the numbers of its explanation, and those that virsh printed."""
    asked = "; echo ----; ".join(command for command, _, _ in wanted)
    options = ("-p", str(lab.pid), "-o", str(file))
    done = virtrace("record", recipe, *options, "--", *lab.virsh_command(asked))
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("----\n")
    for (command, ours), text in zip(numbers_of(file, wanted), printed):
        yield command[0], ours, command[2](text)


def run(times: int, release: str | None) -> list[str]:
    """What differs. release: code name of a Debian release, or this host's."""
    folder = Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    traces = Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    # With mounts of its own.
    with copied([], traces), Lab(folder, release=release) as lab:
        version = ".".join(map(str, lab.libvirt_version))
        wrong, compared = rounds(lab, times, traces)
    print(f"libvirt {version}, {times} rounds: {dict(compared)}; {len(wrong)} differ")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=31)
    parser.add_argument("--release")
    args = parser.parse_args()
    failures = run(args.times, args.release)
    print("\n".join(failures))
    sys.exit(1 if failures else 0)
