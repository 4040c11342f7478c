"""Run by a GDB of its own: every frame of every thread, by GDB's own unwinders.

Prints one JSON object: by thread id the frames, innermost first: each its pc, its canonical frame
address (0 where GDB does not say), and the registers that a function keeps, as far as known.
"""

from __future__ import annotations

import json
import re

import gdb

KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")

gdb.execute("set backtrace past-main on")
gdb.execute("set backtrace past-entry on")
threads: dict[int, list[tuple[int, int, dict[str, int]]]] = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frames = []
    frame: gdb.Frame | None = gdb.newest_frame()
    while frame is not None:
        # Others are no frames, but made of debug info.
        if frame.type() in (gdb.NORMAL_FRAME, gdb.SIGTRAMP_FRAME):
            frame.select()
            described = gdb.execute("info frame", to_string=True)
            place = re.search(r"frame at (0x[0-9a-f]+):", described)
            values = {name: frame.read_register(name) for name in KEPT}
            known = {
                name: int(value) & (1 << 64) - 1
                for name, value in values.items()
                if not value.is_optimized_out
            }
            frames.append((frame.pc(), int(place[1], 16) if place else 0, known))
        frame = frame.older()
    threads[thread.ptid[1]] = frames
print(json.dumps(threads))
