"""Sourced in GDB beside virtrace: what GDB's own `print` says, at the same returns.

Writes to $GDB_PRINT a JSON object for each return: function, and GDB's text of each
expression. Only the tests evaluate expressions; virtrace never does.
"""

from __future__ import annotations

import json
import os

import gdb

FUNCTIONS = {
    "virDomainGetBlockInfo": {"info": "*(virDomainBlockInfoPtr) {info}"},
    "qemuDomainGetBlockInfo": {"info": "*(virDomainBlockInfoPtr) {info}"},
    "qemuDomainBlocksStatsGather": {"stats": "**(struct _qemuBlockStats **) {retstats}"},
}


class Return(gdb.Breakpoint):
    """At the one place that a call returns to; the tests make one call at a time.

    Not gdb.FinishBreakpoint, which misses returns into a function that was inlined.
    """

    def __init__(self, function: str, expressions: dict[str, str]) -> None:
        caller = gdb.parse_and_eval("*(unsigned long *) $rsp")
        super().__init__(f"*{int(caller):#x}", internal=True)
        self.function = function
        self.expressions = expressions

    def stop(self) -> bool:
        self.enabled = False
        texts = {
            name: gdb.execute(f"print/r {expression}", to_string=True)
            for name, expression in self.expressions.items()
        }
        result = int(gdb.parse_and_eval("(int) $rax"))
        with open(os.environ["GDB_PRINT"], "a") as output:
            json.dump({"function": self.function, **texts, "result": result}, output)
            output.write("\n")
        return False


class Entry(gdb.Breakpoint):
    def __init__(self, function: str) -> None:
        super().__init__(function, internal=True)
        self.function = function

    def stop(self) -> bool:
        frame = gdb.newest_frame()
        arguments = {
            symbol.name: int(symbol.value(frame)) for symbol in frame.block() if symbol.is_argument
        }
        Return(
            self.function,
            {
                name: template.format_map(arguments)
                for name, template in FUNCTIONS[self.function].items()
            },
        )
        return False


for name in FUNCTIONS:
    Entry(name)
