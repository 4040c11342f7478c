"""In GDB: say that all is set up, go on until standard input ends, and detach."""

import os
import threading

import gdb


def _interrupt() -> None:
    os.read(0, 1)
    gdb.post_event(lambda: gdb.execute("interrupt"))


with open(os.environ["BENCH_READY"], "w") as ready:
    ready.write("ready\n")
threading.Thread(target=_interrupt, daemon=True).start()
gdb.execute("continue", to_string=True)
gdb.execute("delete")
gdb.execute("detach", to_string=True)
