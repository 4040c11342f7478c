"""In GDB: where the functions of the chain return to in one call, and how often each is entered."""

import json
import os

import gdb

_CHAIN = json.loads(os.environ["BENCH_CHAIN"])
_entries: dict[str, int] = {}
_returns: dict[int, str] = {}


class _Entry(gdb.Breakpoint):
    def __init__(self, name: str, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self._name = name

    def stop(self) -> bool:
        _entries[self._name] = _entries.get(self._name, 0) + 1
        sp = int(gdb.newest_frame().read_register("rsp"))
        found = gdb.selected_inferior().read_memory(sp, 8)
        _returns[int.from_bytes(bytes(found), "little")] = self._name
        return False


for _name, _address in _CHAIN["functions"].items():
    _Entry(_name, _address)
gdb.execute("source " + os.environ["BENCH_UNTIL_TOLD"])
with open(os.environ["BENCH_OUTPUT"], "w") as _output:
    json.dump({"entries": _entries, "returns": _returns}, _output)
