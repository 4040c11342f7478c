"""Runs in a virtual machine: what the engine does with its kernel, for the tests to judge.

    guest.py PLANS PROGRAM DRIVER COMMAND...

Leaves in `/results`: `programs.json`, with the verifier's answers to the plans; and of a recording
of the program, which does the commands meanwhile: the trace, virtrace's output `said` and status
`recorded`; the program's answers, `log`; those of a process beside it that did the same, `other`;
and `after`, how many of the program's static probes are still on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from virtrace.engines.uprobes.attach import load_programs
from virtrace.engines.uprobes.kernel import KernelError
from virtrace.engines.uprobes.processes import Processes
from virtrace.engines.uprobes.trial import Abilities, abilities
from virtrace.errors import TargetError
from virtrace.image.process import Process, inspect
from virtrace.plan.file import read
from virtrace.plan.model import Plan

RESULTS = Path("/results")
# Bounds each of the two, also where the processor is emulated.
SECONDS = 240.0
# The verifier's last lines say what it refused.
LAST_LINES = 12
# Asks the program for each command, and keeps what it answers.
ASK = """
import sys
with open(sys.argv[1], "w") as asked, open(sys.argv[2]) as answered, open(sys.argv[3], "w") as log:
    for command in sys.argv[4:]:
        print(command, file=asked, flush=True)
        while (line := answered.readline()) != ".\\n":
            assert line, "the program ended"
            log.write(line)
"""


def say(what: str) -> None:
    """Print what is done next, and how long after the start."""
    print(f"{time.monotonic():7.1f} s {what}", flush=True)


def kinds() -> Iterable[Abilities]:
    """What the kernel can do, and the least that any kernel can do."""
    able = abilities()
    return {able, replace(able, sleepable=False, multi=False)}


def refused(plan: Plan, process: Process, able: Abilities) -> Sequence[str]:
    """Load the programs of a plan, and return what the verifier said of the first it refused."""
    try:
        with closing(load_programs(plan, Processes(process), able)[1]):
            return []
    except TargetError as error:
        log = error.__cause__.log if isinstance(error.__cause__, KernelError) else ""
        return [str(error), *log.splitlines()[-LAST_LINES:]]


def load_all(plans: Sequence[Path]) -> None:
    """Load all programs of all plans, in each way that the kernel allows."""
    process = inspect(os.getpid())
    answers = []
    for able in kinds():
        kind = {"sleepable": able.sleepable, "multi": able.multi}
        for file in plans:
            say(f"load {file.name} {kind}")
            plan = read(file.read_bytes()).plan
            answers.append({"plan": file.name, **kind, "refused": refused(plan, process, able)})
    found = {"release": os.uname().release, "plans": answers}
    (RESULTS / "programs.json").write_text(json.dumps(found))


class Asked:
    """A process of the program, which does what it is asked through a named pipe."""

    def __init__(self, program: Sequence[str], name: str) -> None:
        self._pipes = [f"/tmp/{name}.asked", f"/tmp/{name}.answered"]
        for pipe in self._pipes:
            os.mkfifo(pipe)
        # For reading and writing, as neither end is there before the other.
        asked, answered = (os.open(pipe, os.O_RDWR) for pipe in self._pipes)
        self.pid = subprocess.Popen(program, stdin=asked, stdout=answered).pid
        with open(self._pipes[1]) as ready:
            assert ready.readline() == ".\n"
        os.close(answered)

    def command(self, log: str, *commands: str) -> list[str]:
        """The command line that has it do the commands, and keeps its answers in a file."""
        return [sys.executable, "-c", ASK, *self._pipes, str(RESULTS / log), *commands]


def record(program: Sequence[str], commands: Sequence[str]) -> None:
    """Record what one process of the program does while another does the same."""
    traced, other = Asked(program, "traced"), Asked(program, "other")
    recording = [
        *(sys.executable, "-m", "virtrace.cli.main", "record", "blockinfo", "-p", str(traced.pid)),
        *("--engine", "uprobes", "-o", str(RESULTS / "trace.jsonl"), "--"),
        *traced.command("log", *commands),
    ]
    with subprocess.Popen(other.command("other", *commands)) as beside:
        with (RESULTS / "said").open("w") as said:
            done = subprocess.run(recording, stdout=said, stderr=said, timeout=SECONDS)
        beside.wait(SECONDS)
    (RESULTS / "recorded").write_text(str(done.returncode))
    subprocess.run(traced.command("after", "semaphores"), timeout=SECONDS, check=True)


if __name__ == "__main__":
    load_all(sorted(Path(sys.argv[1]).glob("*")))
    say("record")
    record(sys.argv[2:4], sys.argv[4:])
    say("done")
