"""In GDB: the chain as plain GDB Python has it, with a FinishBreakpoint made at each call."""

import json
import os

import gdb

_CHAIN = json.loads(os.environ["BENCH_CHAIN"])
_API, _GATHER = _CHAIN["api"], _CHAIN["gather"]
_output = open(os.environ["BENCH_OUTPUT"], "w")  # noqa: SIM115 - as long as GDB runs


def _say(*words: object) -> None:
    print(*words, file=_output, flush=True)


def _number(expression: str) -> int:
    return int(gdb.parse_and_eval(expression))


def _text(expression: str) -> str:
    return gdb.parse_and_eval(expression).string()


class _Return(gdb.FinishBreakpoint):
    def __init__(self, name: str, pointer: int) -> None:
        super().__init__(gdb.newest_frame(), internal=True)
        self.silent = True
        self._name = name
        self._pointer = pointer

    def stop(self) -> bool:
        values = []
        if self._name == _API:
            values = [_number(f"((unsigned long *){self._pointer})[{i}]") for i in range(3)]
        elif self._name == _GATHER:
            stats = _number(f"*(unsigned long *){self._pointer}")
            values = [_number(f"((unsigned long *){stats})[{i}]") for i in range(13)]
            values[11] &= 1
        _say("exit", self._name, _number("(int)$rax"), *values)
        return False


class _Entry(gdb.Breakpoint):
    def __init__(self, name: str, address: int) -> None:
        super().__init__(f"*{address:#x}", internal=True)
        self._name = name

    def stop(self) -> bool:
        pointer, values = 0, []
        if self._name == _API:
            pointer = _number("$rdx")
            values = [_text("*(char **)($rdi + 32)"), _text("(char *)$rsi")]
        elif self._name == _GATHER:
            pointer = _number("$rcx")
        _say("enter", self._name, *values)
        _Return(self._name, pointer)
        return False


class _Probe(gdb.Breakpoint):
    def __init__(self, name: str, probe: str) -> None:
        super().__init__(f"-probe-stap {probe}", internal=True)
        self._name = name

    def stop(self) -> bool:
        _say(self._name, _text("(char *)$_probe_arg1"))
        return False


for _name, _address in _CHAIN["functions"].items():
    _Entry(_name, _address)
for _name in "send", "reply":
    _Probe(_name, _CHAIN[_name])
gdb.execute("source " + os.environ["BENCH_UNTIL_TOLD"])
