"""Run by a GDB of its own, with the files that it finds by itself: the frames of a thread.

Prints a JSON list, innermost first: of each its address, and what `info symbol` says of it.
"""

from __future__ import annotations

import json
import os

import gdb

TID = int(os.environ["GDB_FRAMES_TID"])

for thread in gdb.selected_inferior().threads():
    if thread.ptid[1] == TID:
        thread.switch()
frames = []
frame: gdb.Frame | None = gdb.newest_frame()
while frame is not None:
    # Without those that are no frames, but made of debug info.
    if frame.type() == gdb.NORMAL_FRAME:
        symbol = gdb.execute(f"info symbol {frame.pc():#x}", to_string=True)
        frames.append((frame.pc(), symbol))
    frame = frame.older()
print(json.dumps(frames))
