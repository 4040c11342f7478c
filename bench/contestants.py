"""Who is measured: each traces the chain of `virDomainGetBlockInfo` in a daemon, its own way.

Those by hand are written for libvirt 9.0.0 as Debian 12 builds it: which register holds an
argument of a static function, and where a member lies in its struct, is in them as numbers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tests.support.block_stats import FIELDS
from virtrace import engines
from virtrace.image.model import Module
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.recipe import catalogue
from virtrace.record.resolution import resolve_without_gdb
from virtrace.trace.reader import read_trace

HERE = Path(__file__).resolve().parent
BY_HAND = HERE / "by_hand"
SCRIPT = HERE.parent / "gdb_scripts" / "trace_blockinfo.py"
API, GATHER = "virDomainGetBlockInfo", "qemuDomainBlocksStatsGather"
SEND, REPLY = "libvirt:qemu_monitor_send_msg", "libvirt:qemu_monitor_recv_reply"
INFO = ("capacity", "allocation", "physical")
# The members of qemuBlockStats, in their order.
READY_SECONDS = 60.0

# What was captured: (which fact, its value) and how often.
Facts = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """A function of the chain: its file, where in it, and where in the daemon's memory."""

    file: str
    offset: int
    address: int


@dataclass
class Chain:
    """What there is to trace in a daemon. entries: in one call; returns: where each returns to."""

    functions: dict[str, Place]
    monitor_send: Place
    monitor_line: Place
    driver: str
    entries: dict[str, int]
    returns: dict[int, str]

    @property
    def stops(self) -> int:
        """In one call, where each is met once: entries, returns, and three QMP commands."""
        return 2 * sum(self.entries.values()) + 6

    def as_json(self) -> str:
        return json.dumps(
            {
                "api": API,
                "gather": GATHER,
                "functions": {name: place.address for name, place in self.functions.items()},
                "returns": self.returns,
                "send": SEND,
                "reply": REPLY,
                "monitorSend": hex(self.monitor_send.address),
                "monitorLine": hex(self.monitor_line.address),
            }
        ).replace("\n", "")


class Running:
    """A tracer at work. end: let the daemon go, in an orderly way, and wait for it."""

    def __init__(self, pid: int | None, output: Path | None, end: Callable[[], None]) -> None:
        self.pid = pid
        self.output = output
        self.end = end


@dataclass(frozen=True)
class Ground:
    """Where all of them run. call: make one call of those that are traced."""

    lab: Lab
    folder: Path
    chain: Chain
    call: Callable[[], None]


@dataclass(frozen=True)
class Contestant:
    """start: trace, from when it returns; facts: what its output has; missing: why it cannot run.

    attach_only: it traces nothing, and its gap at the attach alone is a figure.
    """

    name: str
    start: Callable[[Ground, Path], Running] | None = None
    facts: Callable[[Path, int], Facts] | None = None
    missing: Callable[[], str | None] = lambda: None
    attach_only: bool = False


def _needs(command: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(command) else f"{command} is not installed"


def _works(engine: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        problem = engines.load(engine).problem()
        return problem.what if problem else None

    return missing


def _ready(gdb_or_other: subprocess.Popen[bytes], fifo: Path) -> None:
    """Until it has said so; RuntimeError with its own words where it ends instead."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                if os.read(descriptor, 100):
                    return
            if gdb_or_other.poll() is not None:
                break
            time.sleep(0.002)
    finally:
        os.close(descriptor)
    gdb_or_other.kill()
    log = fifo.with_suffix(".log").read_text(errors="replace").strip()
    raise RuntimeError(f"it does not run: {log.splitlines()[-1] if log else 'not a word'}")


def _spawn(
    argv: Sequence[str | Path],
    ground: Ground,
    output: Path,
    end: Callable[[subprocess.Popen[bytes]], None],
    **variables: str,
) -> Running:
    """Start one that says on a pipe when it is ready, and ends when its standard input does."""
    fifo = output.with_suffix(".ready")
    os.mkfifo(fifo)
    environment = {
        **os.environ,
        "BENCH_READY": str(fifo),
        "BENCH_OUTPUT": str(output),
        "BENCH_CHAIN": ground.chain.as_json(),
        "BENCH_UNTIL_TOLD": str(BY_HAND / "until_told.py"),
        **variables,
    }
    with open(output.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [str(argument) for argument in argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
    _ready(process, fifo)

    return Running(process.pid, output, partial(_end, process, end))


def _end(process: subprocess.Popen[bytes], tell: Callable[[subprocess.Popen[bytes]], None]) -> None:
    tell(process)
    try:
        process.wait(READY_SECONDS)
    finally:
        process.kill()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


GDB = ("gdb", "-nx", "-nh", "-q", "-batch", "-iex", "set debuginfod enabled off")
# An attach that reads as good as nothing: the program alone, no library, no threads' library.
NOTHING_LOADED = (
    *("-iex", "set auto-solib-add off", "-iex", "set libthread-db-search-path /dev/null"),
)


def _virtrace(engine: str) -> Callable[[Ground, Path], Running]:
    def start(ground: Ground, output: Path) -> Running:
        argv = [sys.executable, "-m", "virtrace.cli.main", "record", _chain_recipe(ground)]
        argv += ["--engine", engine, "-p", str(ground.lab.pid), "-o", str(output), "--"]
        command = ["sh", "-c", 'echo ready >"$BENCH_READY"; read -r _']
        return _spawn([*argv, *command], ground, output, _close_input)

    return start


def _chain_recipe(ground: Ground) -> str:
    """The shipped recipe without source lines, which none of the others trace."""
    raw = yaml.safe_load(catalogue.file_of("blockinfo").read_text(encoding="utf-8"))
    for span in raw["spans"]:
        span.pop("lines", None)
    recipe = ground.folder / "chain.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    return str(recipe)


def _script(ground: Ground, output: Path) -> Running:
    """By the line that needs no command of virtrace's own."""
    argv = ["gdb", "-batch", "-x", str(SCRIPT), "-p", str(ground.lab.pid)]
    # The pipe is opened by the shell, which is then GDB.
    shell = ["sh", "-c", 'exec 9>"$BENCH_READY"; exec "$@"', "sh", *argv]
    variables = {"VIRTRACE_OUTPUT": str(output), "VIRTRACE_READY_FD": "9"}
    return _spawn(shell, ground, output, _interrupt, **variables)


def _gdb(script: str) -> Callable[[Ground, Path], Running]:
    """GDB as one starts it by hand."""

    def start(ground: Ground, output: Path) -> Running:
        argv = [*GDB, "-p", str(ground.lab.pid), "-x", str(BY_HAND / script)]
        return _spawn(argv, ground, output, _close_input)

    return start


def _floor(ground: Ground, output: Path) -> Running:
    """GDB with the two files it sets breakpoints in, and no other."""
    files = {place.file: place.address - place.offset for place in ground.chain.functions.values()}
    argv = [*GDB, *NOTHING_LOADED]
    for file, base in files.items():
        argv += ["-ex", f"add-symbol-file {file} -o {base:#x}"]
    argv += ["-ex", f"attach {ground.lab.pid}", "-x", str(BY_HAND / "floor.py")]
    return _spawn(argv, ground, output, _close_input)


def _commands(ground: Ground, output: Path, texts: bool = True) -> Running:
    script = output.with_suffix(".gdb")
    script.write_text("\n".join(_commands_lines(ground.chain, output, texts)))
    end = BY_HAND / "until_told.py"
    argv = [*GDB, "-p", str(ground.lab.pid), "-x", str(script), "-x", str(end)]
    return _spawn(argv, ground, output, _close_input)


def _commands_lines(chain: Chain, output: Path, texts: bool) -> Iterator[str]:
    """What one types: breakpoints whose commands print and go on. texts: those of QMP too."""
    yield "set pagination off"
    yield f"set logging file {output}"
    yield "set logging redirect on"
    yield "set logging enabled on"
    for name, place in chain.functions.items():
        said, more = "", ""
        if name == API:
            said, more = ' %s %s\\n", *(char **)($rdi + 32), (char *)$rsi', "set $info = $rdx"
        if name == GATHER:
            more = "set $stats = $rcx"
        yield from (f"break *{place.address:#x}", "commands", "silent", more)
        yield f'printf "enter {name}' + (said or '\\n"')
        yield from ("continue", "end")
    numbers = "((unsigned long *)$found)"
    for address, name in chain.returns.items():
        yield from (f"break *{address:#x}", "commands", "silent")
        line = f'printf "exit {name} %d'
        values = ["(int)$rax"]
        if name in (API, GATHER):
            yield f"set $found = {'$info' if name == API else '*(unsigned long *)$stats'}"
            values += [f"{numbers}[{i}]" for i in range(3 if name == API else 13)]
        if name == GATHER:
            values[12] += " & 1"
        line += " %lu" * (len(values) - 1)
        yield f'{line}\\n", ' + ", ".join(values)
        yield from ("continue", "end")
    for name, probe in ("send", SEND), ("reply", REPLY):
        yield from (f"break -probe-stap {probe}", "commands", "silent")
        # `output` takes twice as long.
        yield f'printf "{name} %s\\n", (char *)$_probe_arg1' if texts else f"echo {name}\\n"
        yield from ("continue", "end")


def _bpftrace(ground: Ground, output: Path) -> Running:
    program = output.with_suffix(".bt")
    program.write_text("\n".join(_bpftrace_lines(ground.chain)))
    pid = ground.lab.pid
    argv = ["bpftrace", "--unsafe", "-B", "line", "-p", str(pid), "-o", str(output), str(program)]
    log = output.with_suffix(".log")
    with open(log, "wb") as said:
        # 200 bytes of a string are what this version can do at most.
        process = subprocess.Popen(
            argv, stdout=said, stderr=said, env={**os.environ, "BPFTRACE_STRLEN": "200"}
        )
    # It says that it attaches, but not when it has: until a whole call has been seen.
    last = f"exit {API} "
    until = time.monotonic() + READY_SECONDS
    while True:
        before = output.stat().st_size if output.exists() else 0
        ground.call()
        time.sleep(0.01)
        text = output.read_bytes()[before:].decode(errors="replace") if output.exists() else ""
        lines = text.splitlines()
        # Two more than there are stops: a line has room for one string.
        if len(lines) >= ground.chain.stops + 2 and any(line.startswith(last) for line in lines):
            break
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"it does not run: {lines[-1] if lines else 'not a word'}")

    return Running(process.pid, output, partial(_end, process, _interrupt))


def _bpftrace_lines(chain: Chain) -> Iterator[str]:
    for name, place in chain.functions.items():
        entry, more = f"uprobe:{place.file}:{place.offset:#x}", ""
        if name == API:
            # Two strings are more than one program has room for.
            yield f'{entry} {{ printf("domain %s\\n", str(*(uint64 *)(reg("di") + 32))); }}'
            yield f'{entry} {{ printf("disk %s\\n", str(reg("si"))); }}'
            more = '@info[tid] = reg("dx");'
        if name == GATHER:
            more = '@stats[tid] = reg("cx");'
        yield f'{entry} {{ printf("enter {name}\\n"); {more} }}'
        values = ['(int32)reg("ax")']
        begin = ""
        if name in (API, GATHER):
            begin = "$found = @info[tid];" if name == API else "$found = *(uint64 *)(@stats[tid]);"
            values += [f"*(uint64 *)($found + {8 * i})" for i in range(3 if name == API else 13)]
        if name == GATHER:
            values[12] += " & 1"
        line = f'printf("exit {name} %d' + " %lu" * (len(values) - 1) + '\\n", '
        yield f"uretprobe:{place.file}:{place.offset:#x} {{ {begin} {line}{', '.join(values)}); }}"
    for name, probe in ("send", SEND), ("reply", REPLY):
        yield f'usdt:{chain.driver}:{probe} {{ printf("{name} %s\\n", str(arg1)); }}'


def _frida(ground: Ground, output: Path) -> Running:
    argv = [sys.executable, str(BY_HAND / "frida_host.py"), str(ground.lab.pid)]
    return _spawn(argv, ground, output, _close_input)


def _log(ground: Ground, output: Path) -> Running:
    """The daemon writes it itself, where its user may."""
    lab = ground.lab
    log = lab.folder / "cache" / f"{output.stem}.log"
    socket = lab.folder / "run" / "libvirt" / "libvirt-admin-sock"

    def admin(setting: str, *value: str) -> str:
        uri = f"libvirtd+unix:///session?socket={socket}"
        done = lab.system.attempt("virt-admin", "-c", uri, setting, *value, as_daemon=True)
        if done.returncode != 0:
            raise RuntimeError(f"virt-admin {setting}: {done.stdout.strip()}")
        return done.stdout.partition(":")[2].strip()

    before = admin("daemon-log-outputs"), admin("daemon-log-filters")
    admin("daemon-log-outputs", f"1:file:{log}")
    admin("daemon-log-filters", "1:qemu.qemu_monitor")

    def end() -> None:
        admin("daemon-log-filters", before[1])
        admin("daemon-log-outputs", before[0])

    return Running(None, log, end)


def _attach(*options: str, program: bool = False) -> Callable[[Ground, Path], Running]:
    """Attach, and detach at once."""

    def start(ground: Ground, output: Path) -> Running:
        pid = ground.lab.pid
        argv = [*GDB, *options]
        if program:
            argv += ["-ex", f"file {inspect(pid).exe}"]
        with open(output.with_suffix(".log"), "wb") as log:
            subprocess.run(
                [*argv, "-ex", f"attach {pid}", "-ex", "detach"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                timeout=READY_SECONDS,
            )
        return Running(None, None, lambda: None)

    return start


# --- What their output has.


def _facts_of_lines(output: Path, offset: int) -> Facts:
    """Of one that prints a line for each event, as all those by hand do."""
    text = output.read_bytes()[offset:].decode(errors="replace")
    facts: Facts = Counter()
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        words = rest.split()
        if kind in ("enter", "exit") and words:
            facts[kind, words[0]] += 1
            names: Sequence[str] = ()
            if words[0] == API:
                names = ("domain", "disk") if kind == "enter" else ("result", *INFO)
            elif words[0] == GATHER and kind == "exit":
                names, words = [f"stats.{name}" for name in FIELDS], words[1:]
            for name, value in zip(names, words[1:]):
                facts[name, value] += 1
        elif kind in ("domain", "disk"):
            facts[kind, rest] += 1
        elif kind in ("send", "reply"):
            _add_qmp(facts, kind, rest)
    return facts


def _add_qmp(facts: Facts, kind: str, text: str) -> None:
    """Whole texts only, without what differs from call to call."""
    with suppress(ValueError):
        facts[kind, normal(json.loads(text))] += 1


def normal(message: dict[str, Any]) -> str:
    """A QMP text without its number, and without how long a disk had nothing to do."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "idle_time_ns"}
        return [*map(without, value)] if isinstance(value, list) else value

    return json.dumps(without({k: v for k, v in message.items() if k != "id"}), sort_keys=True)


def _facts_of_trace(output: Path, _offset: int) -> Facts:
    trace = read_trace(output)
    assert trace.problems == [], trace.problems
    assert trace.switched_off == [], trace.switched_off
    facts: Facts = Counter()
    for event in trace.events:
        if event.type in ("enter", "exit"):
            facts[event.type, event.name] += 1
        values: dict[str, Any] = {}
        if event.name == API:
            values = {**event.values, **(event.values.get("info") or {})}
        elif event.name == GATHER and event.type == "exit":
            values = {f"stats.{name}": value for name, value in event.values["stats"].items()}
        for name, value in values.items():
            facts[name, str(int(value) if isinstance(value, bool) else value)] += 1
        if event.type == "point" and event.name in ("qmp.send", "qmp.reply"):
            _add_qmp(facts, event.name.removeprefix("qmp."), event.values["text"])
    return facts


def _facts_of_log(output: Path, offset: int) -> Facts:
    text = output.read_bytes()[offset:].decode(errors="replace")
    facts: Facts = Counter()
    # A text can have line ends of its own.
    for entry in re.split(r"(?m)^\d{4}-\d\d-\d\d [\d:.]+\+\d{4}: ", text):
        for kind, pattern in (
            ("send", r"QEMU_MONITOR_SEND_MSG: mon=\S+ msg=(.*?)\s+fd=-?\d+\s*$"),
            ("reply", r"QEMU_MONITOR_RECV_REPLY: mon=\S+ reply=(.*)$"),
        ):
            found = re.search(pattern, entry, re.S)
            if found:
                _add_qmp(facts, kind, found[1])
    return facts


def asked(chain: Chain, lab: Lab, guest: str, disk: str, info: Sequence[int]) -> Facts:
    """Of one call all that there is to capture, from the client and from QEMU itself.

    The guest does nothing, so that every call has the same numbers.
    """
    blockstats: dict[str, Any] = {"execute": "query-blockstats"}
    by_node = {**blockstats, "arguments": {"query-nodes": True}}
    nodes = {"execute": "query-named-block-nodes", "arguments": {"flat": True}}
    replies = [lab.qmp(command, guest) for command in (blockstats, by_node, nodes)]
    facts: Facts = Counter()
    for name, entries in chain.entries.items():
        facts["enter", name] += entries
        facts["exit", name] += entries
    facts.update([("domain", guest), ("disk", disk), ("result", "0")])
    facts.update((name, str(number)) for name, number in zip(INFO, info))
    for command, reply in zip((blockstats, by_node, nodes), replies):
        facts["send", normal(command)] += 1
        facts["reply", normal(reply)] += 1
    drive = next(one for one in replies[0]["return"] if one["qdev"].startswith(_path_of(disk)))
    said = drive["stats"]
    highest = drive["parent"]["stats"]["wr_highest_offset"]
    node = next(one for one in replies[2]["return"] if one["node-name"] == drive["node-name"])
    image = node["image"]
    stats = (
        *(said["rd_operations"], said["rd_bytes"], said["wr_operations"], said["wr_bytes"]),
        *(said["rd_total_time_ns"], said["wr_total_time_ns"]),
        *(said["flush_operations"], said["flush_total_time_ns"]),
        *(image["virtual-size"], image.get("actual-size", image["virtual-size"])),
        *(highest, 1, node["write_threshold"]),
    )
    facts.update((f"stats.{name}", str(value)) for name, value in zip(FIELDS, stats))
    return facts


def _path_of(disk: str) -> str:
    """Of a virtio disk in QEMU's tree of devices, as libvirt names it: vda is the first."""
    return f"/machine/peripheral/virtio-disk{ord(disk[-1]) - ord('a')}/"


# --- What there is to trace.


def _exported(module: Module, name: str) -> int:
    offset = module.elf.exported_function(name)
    assert offset is not None, f"{module.name} does not export {name}"
    return offset


def chain_of(lab: Lab, folder: Path, call: Callable[[], None]) -> Chain:
    """By virtrace, as far as names go; where they return to is seen in one call."""
    process = inspect(lab.pid)
    functions = {}
    for probe in resolve_without_gdb(catalogue.find_recipe("blockinfo"), process, {}, ()).probes:
        if probe.kind == "span" and probe.offset is not None:
            functions[probe.name] = _place(process, probe.module, probe.offset)
    driver = process.module("libvirt_driver_qemu.so")
    assert driver is not None
    send, line = (
        _place(process, driver.name, _exported(driver, name))
        for name in ("qemuMonitorSend", "qemuMonitorJSONIOProcessLine")
    )
    chain = Chain(functions, send, line, driver.path, {}, {})
    ground = Ground(lab, folder, chain, call)
    output = folder / "sites.json"
    running = _gdb("sites.py")(ground, output)
    call()
    running.end()
    found = json.loads(output.read_text())
    chain.entries = found["entries"]
    chain.returns = {int(address): name for address, name in found["returns"].items()}
    chain.functions = {name: functions[name] for name in chain.entries}
    return chain


def _place(process: Any, name: str, offset: int) -> Place:
    module = process.module(name)
    return Place(module.path, offset, module.base + offset)


NOTHING, FLOOR, COMMANDS = "nothing attached", "the floor: stop() returns False", "commands ... end"
ATTACH_FLOOR = "gdb that loads nothing"

CONTESTANTS = (
    Contestant(NOTHING),
    Contestant(FLOOR, _floor),
    Contestant("virtrace record --engine gdb", _virtrace("gdb"), _facts_of_trace),
    Contestant(
        "virtrace record --engine uprobes", _virtrace("uprobes"), _facts_of_trace, _works("uprobes")
    ),
    Contestant("virtrace, gdb -x SCRIPT -p PID", _script, _facts_of_trace),
    Contestant(COMMANDS, _commands, _facts_of_lines),
    Contestant(f"{COMMANDS}, no QMP text", partial(_commands, texts=False), _facts_of_lines),
    Contestant("gdb Python, FinishBreakpoint", _gdb("finish.py"), _facts_of_lines),
    Contestant("bpftrace, by hand", _bpftrace, _facts_of_lines, _needs("bpftrace")),
    Contestant(
        "frida",
        _frida,
        _facts_of_lines,
        lambda: None if find_spec("frida") else "the Python package frida is not installed",
    ),
    Contestant("libvirt's log of its monitor", _log, _facts_of_log, _needs("virt-admin")),
    Contestant(ATTACH_FLOOR, _attach(*NOTHING_LOADED, program=True), attach_only=True),
    Contestant("gdb -p PID", _attach(), attach_only=True),
)
