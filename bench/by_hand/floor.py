"""In GDB: the floor, a stop() that returns False at once, at every place of the chain."""

import json
import os

import gdb

_CHAIN = json.loads(os.environ["BENCH_CHAIN"])


class _Floor(gdb.Breakpoint):
    def stop(self) -> bool:
        return False


for _address in (*_CHAIN["functions"].values(), *map(int, _CHAIN["returns"])):
    _Floor(f"*{_address:#x}", internal=True)
for _probe in _CHAIN["send"], _CHAIN["reply"]:
    _Floor(f"-probe-stap {_probe}", internal=True)
gdb.execute("source " + os.environ["BENCH_UNTIL_TOLD"])
