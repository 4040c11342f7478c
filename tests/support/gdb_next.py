"""Sourced in GDB: the lines of qemuDomainGetBlockInfo that its own `next` walks through.

Writes to $GDB_LINES a JSON array for each call, until $GDB_CALLS calls are walked. The pipe
$GDB_READY is told when the first can come.
"""

from __future__ import annotations

import json
import os

import gdb

FUNCTION = "qemuDomainGetBlockInfo"


def walk() -> list[int]:
    lines = []
    frame = gdb.newest_frame()
    end = int(gdb.parse_and_eval("$rsp")) + 8
    while frame.name() == FUNCTION and int(frame.read_register("rsp")) < end:
        lines.append(frame.find_sal().line)
        gdb.execute("next", to_string=True)
        frame = gdb.newest_frame()
    return lines


gdb.execute("set confirm off")
gdb.execute("set pagination off")
gdb.Breakpoint(FUNCTION)
os.write(int(os.environ["GDB_READY"]), b"ready\n")
with open(os.environ["GDB_LINES"], "a") as output:
    for _ in range(int(os.environ["GDB_CALLS"])):
        gdb.execute("continue", to_string=True)
        output.write(json.dumps(walk()) + "\n")
gdb.execute("detach")
