"""Every way that a trace ends, on a real daemon that four clients call all the time.

    python -m tests.faults.ends --times 50                # all of them
    python -m tests.faults.ends --times 50 SIGTERM disk   # those whose names begin so

After each the daemon must be unharmed, where it lives, and the trace readable up to its last whole
line. Prints what came of each; docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.killed import LabWhileItLives, calling, lives, wait_for_breakpoints
from tests.support.command import VIRTRACE
from tests.support.writer import writer_of
from virtrace.engines.gdb.launch import command as gdb_command
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import Trace, read_trace

_PATIENCE = 60
_SCRIPT = Path(__file__).with_name("raising.py")

# What GDB, or a thread of ours, calls while a trace runs: where it is, and at which call it
# raises.
HOOKS = {
    "entry": ("inferior.probes:EntryProbe.met", 9),
    "return": ("inferior.probes:ReturnProbe.met", 9),
    "point": ("inferior.probes:PointProbe.met", 9),
    "thread": ("inferior.probes:StoppedThread.__init__", 20),
    "stopping": ("inferior.session:GdbTrace.stopping", 20),
    "stopped": ("inferior.session:GdbTrace.stopped", 20),
    "budget": ("engine.budget:Budget.spend", 20),
    "tracer": ("engine.tracer:Tracer.enter", 9),
    "on-stop": ("inferior.session:GdbTrace._on_stop", 2),
    "put": ("inferior.recorder:Recorder._put", 9),
    "drain": ("engine.output:Output.take", 9),
    "answers": ("engine.answers:Answers.place", 9),
    "write": ("trace.writer:Writer.write", 9),
    "view-event": ("record.live:TerminalView.event", 9),
    "view-banner": ("record.live:TerminalView.banner", 1),
    "view-summary": ("record.live:TerminalView.summary", 1),
    "insert": ("inferior.breakpoints:Breakpoints.insert", 1),
    "journal": ("guard.journal:Journal.breakpoint", 14),
    "ask-end": ("inferior.session:GdbTrace._ask_end", 1),
    "end": ("inferior.session:GdbTrace._end", 1),
    "footer": ("record.recording:Recording._footer", 1),
}
AT_END = ("view-summary", "ask-end", "end", "footer")


@dataclass(frozen=True)
class Ended:
    """status: exit status of what traced. said: by it, on standard error."""

    status: int
    said: str
    trace: Trace | None


def record(lab: Lab, output: Path) -> subprocess.Popen[str]:
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb", "-p", str(lab.pid)]
    return _begun([*command, "-o", str(output)], {})


def _begun(command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables, "PYTHONFAULTHANDLER": "1"},
    )


def _ended(tracing: subprocess.Popen[str], output: Path) -> Ended:
    """The trace is read, up to its last whole line; TraceError where that is not possible."""
    try:
        _, said = tracing.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"GDB does not end:\n{_doing(tracing)}") from error
    return Ended(tracing.returncode, said, read_trace(output) if output.exists() else None)


def _doing(tracing: subprocess.Popen[str]) -> str:
    """What a GDB that does not end is at; it is ended for it."""
    proc = Path("/proc")
    children = (proc / f"{tracing.pid}/task/{tracing.pid}/children").read_text().split()
    gdb = int(children[0]) if children else tracing.pid
    told = []
    for task in (proc / str(gdb) / "task").iterdir():
        told += [f"{task.name}: {(task / name).read_text().strip()}" for name in ("comm", "stack")]
    # Python's fault handler says where its threads are.
    os.kill(gdb, signal.SIGABRT)
    return "\n".join([*told, tracing.communicate(timeout=_PATIENCE)[1]])


def _reason(ended: Ended) -> str | None:
    assert ended.trace is not None
    return ended.trace.footer["reason"] if ended.trace.footer else None


def by_signal(number: signal.Signals, lab: Lab, folder: Path) -> Ended:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    time.sleep(random.uniform(0, 0.5))
    tracing.send_signal(number)
    ended = _ended(tracing, folder / "t.jsonl")
    assert (ended.status, _reason(ended)) == (INTERRUPTED, "interrupt"), ended.said
    return ended


def disk_full(lab: Lab, folder: Path) -> Ended:
    small = folder / "small"
    small.mkdir()
    # The header and some calls.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        ended = _ended(record(lab, small / "t.jsonl"), small / "t.jsonl")
    finally:
        subprocess.run(["umount", small], check=True)
    assert ended.status == INCOMPLETE, ended.said
    assert "cannot write the trace" in ended.said
    assert ended.trace is not None
    assert ended.trace.events
    return ended


def folder_gone(lab: Lab, folder: Path) -> Ended:
    output = folder / "gone" / "t.jsonl"
    output.parent.mkdir()
    tracing = record(lab, output)
    wait_for_breakpoints(lab.pid)
    shutil.rmtree(output.parent)
    tracing.send_signal(signal.SIGINT)
    ended = _ended(tracing, output)
    assert ended.status == INCOMPLETE, ended
    assert "was removed while it was being written" in ended.said
    return ended


def daemon_killed(lab: Lab, folder: Path) -> Ended:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    time.sleep(random.uniform(0, 0.5))
    os.kill(lab.pid, signal.SIGKILL)
    ended = _ended(tracing, folder / "t.jsonl")
    assert (ended.status, _reason(ended)) == (INCOMPLETE, "target-exit"), ended.said
    return ended


def writer_killed(lab: Lab, folder: Path) -> Ended:
    """The process that writes the trace."""
    output = folder / "t.jsonl"
    tracing = record(lab, output)
    wait_for_breakpoints(lab.pid)
    time.sleep(random.uniform(0, 0.5))
    writer = writer_of(output)
    os.kill(writer, signal.SIGKILL)
    ended = _ended(tracing, output)
    assert ended.status == INCOMPLETE, ended.said
    assert "the process that writes the trace was ended" in ended.said
    return ended


def guest_restarted(lab: Lab, folder: Path) -> Ended:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    lab.virsh_checked("destroy", "vm1")
    lab.virsh_checked("start", "vm1")
    tracing.send_signal(signal.SIGINT)
    ended = _ended(tracing, folder / "t.jsonl")
    assert (ended.status, _reason(ended)) == (INTERRUPTED, "interrupt"), ended.said
    return ended


def hook_raises(hook: str, lab: Lab, folder: Path) -> Ended:
    """It says so, and the trace ends."""
    output = folder / "t.jsonl"
    where, times = HOOKS[hook]
    command = gdb_command("virtrace start blockinfo")
    at = command.index("-ex")
    tracing = _begun(
        [*command[:at], "-x", str(_SCRIPT), *command[at:]],
        {
            "VIRTRACE_PID": str(lab.pid),
            "VIRTRACE_OUTPUT": str(output),
            # What raises at the end waits for it; the rest has time until it is called.
            "VIRTRACE_SECONDS": "1" if hook in AT_END else "50",
            "VIRTRACE_TEST_HOOK": where,
            "VIRTRACE_TEST_CALLS": str(times),
        },
    )
    ended = _ended(tracing, output)
    if hook == "ask-end":
        # It is asked again.
        assert (ended.status, _reason(ended)) == (DONE, "limit"), ended.said
    else:
        assert ended.status == INCOMPLETE, ended.said
        assert where in ended.said
    return ended


ENDS: dict[str, Callable[[Lab, Path], Ended]] = {
    **{
        number.name: partial(by_signal, number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    },
    "disk-full": disk_full,
    "folder-gone": folder_gone,
    "guest-restarted": guest_restarted,
    "writer-killed": writer_killed,
    **{f"raises-{hook}": partial(hook_raises, hook) for hook in HOOKS},
    "daemon-killed": daemon_killed,
}


def main() -> None:
    run_ends(__doc__, ENDS, lives)


def run_ends(
    description: str | None,
    ends: Mapping[str, Callable[[Lab, Path], object]],
    is_unharmed: Callable[[Lab, int], bool],
) -> None:
    """Run the ends that the command line names, and exit with 1 if one of them failed.

    is_unharmed: whether the daemon lives after an end; AssertionError if it lives and was harmed
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("names", nargs="*", help=f"beginnings of {', '.join(ends)}")
    args = parser.parse_args()
    failed = 0
    with LabWhileItLives() as labs:
        for name, end in ends.items():
            if args.names and not name.startswith(tuple(args.names)):
                continue
            whole = 0
            for _ in range(args.times):
                lab = labs.up()
                pid = lab.pid
                with TemporaryDirectory() as folder:
                    unharmed = False
                    try:
                        with calling(lab, args.clients):
                            end(lab, Path(folder))
                        unharmed = is_unharmed(lab, pid)
                        assert unharmed is (name != "daemon-killed"), "the daemon has ended"
                        whole += 1
                    except Exception as error:
                        print(f"{name}: {type(error).__name__}: {error}"[:4000], flush=True)
                if not unharmed:
                    labs.down()
            failed += args.times - whole
            print(f"{name}: {whole} of {args.times}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
