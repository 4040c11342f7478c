"""Run by a GDB of its own, with the files that it finds by itself: all threads' frames.

Prints a JSON object: by thread, a list of frames, innermost first, each the values of registers.
"""

from __future__ import annotations

import json

import gdb

REGISTERS = ("rip", "rsp", "rbx", "rbp", "r12", "r13", "r14", "r15")
gdb.execute("set backtrace past-main on")
gdb.execute("set backtrace past-entry on")
found: dict[int, list[dict[str, int]]] = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame: gdb.Frame | None = gdb.newest_frame()
    frames = found[thread.ptid[1]] = []
    while frame is not None:
        # Without those that are no frames, but made of debug info.
        if frame.type() == gdb.NORMAL_FRAME:
            values = {}
            for name in REGISTERS:
                try:
                    values[name] = int(frame.read_register(name)) & (1 << 64) - 1
                except gdb.error:
                    continue
            frames.append(values)
        frame = frame.older()
print(json.dumps(found))
