"""Instructions around what a program reads: which event it is, and its record."""

from __future__ import annotations

from virtrace.engines.uprobes import layout as record
from virtrace.engines.uprobes.assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    Assembler,
    Symbol,
)
from virtrace.engines.uprobes.layout import WORD
from virtrace.engines.uprobes.reads import (
    KEY_SLOT,
    NTH_SLOT,
    OWN_TID_SLOT,
    PT_REGS,
    TID_SLOT,
    Now,
    Reads,
)

# Symbols that are known when the programs are loaded.
THREADS, LOST, NEXT = (Symbol(name, is_map=True) for name in ("threads", "lost", "next"))
PID, NAMESPACE_DEVICE, NAMESPACE_INODE = map(Symbol, ("pid", "namespace_device", "namespace_inode"))

# BPF_FUNC_* of <linux/bpf.h>.
_GET_PID_TGID, _NS_PID_TGID = 14, 120


class Envelope:
    """Writes the beginning and the end of one program, once it is known how large its record is."""

    def __init__(self, reads: Reads, *, of_next: bool = False) -> None:
        """of_next: of a process that is named only later, in the map NEXT."""
        self._reads = reads
        self._of_next = of_next

    def begin(self, program: int, condition: Assembler) -> None:
        """condition: decides whether the event is recorded."""
        code, reads = self._reads.code, self._reads
        self.require_process()
        code.insert(condition)
        self._count()
        reads.reserve(self._reads.layout.size)
        code.jump_if(R0, "==", 0, "lost")
        code.do(R7, "=", R0)
        code.store(R7, 0, record.HIT | program << 16, 4)
        code.load(R1, FP, TID_SLOT)
        code.store(R7, record.TID, R1, 4)
        code.load(R1, FP, NTH_SLOT)
        code.store(R7, record.NTH, R1)
        reads.into(R1, Now())
        code.store(R7, record.TIME, R1)
        code.load(R1, FP, OWN_TID_SLOT)
        code.store(R7, record.PARTS, 0, 4)
        code.store(R7, record.OWN_TID, R1, 4)
        code.do(R1, "=", (1 << len(self._reads.layout.values)) - 1)
        code.store(R7, record.KNOWN, R1)
        for offset, name in ((record.SP, "rsp"), (record.IP, "rip")):
            code.load(R1, R6, PT_REGS[name])
            code.store(R7, offset, R1)
        reads.mark_not_reached(R7, self._reads.layout)

    def require_process(self) -> None:
        """Go on where a thread of the process runs the program; else go to `out`."""
        code, reads = self._reads.code, self._reads
        code.do(R6, "=", R1)
        # The process counts its threads in a namespace of its own.
        if self._of_next:
            code.store(FP, KEY_SLOT, 0)
            reads.look_up(NEXT, KEY_SLOT)
            code.jump_if(R0, "==", 0, "out")
            code.load(R1, R0, 2 * WORD)
            code.store(FP, OWN_TID_SLOT, R1)
            code.load(R1, R0, 0)
            code.load(R2, R0, WORD)
        else:
            code.load_symbol(R1, NAMESPACE_DEVICE)
            code.load_symbol(R2, NAMESPACE_INODE)
        reads.frame_address(R3, KEY_SLOT)
        code.store(FP, KEY_SLOT, 0)
        code.do(R4, "=", WORD)
        code.call(_NS_PID_TGID)
        code.jump_if(R0, "!=", 0, "out")
        if self._of_next:
            code.load(R1, FP, OWN_TID_SLOT)
        else:
            code.load_symbol(R1, PID)
        code.load(R2, FP, KEY_SLOT + 4, 4)
        code.jump_if(R2, "!=", R1, "out")
        code.load(R1, FP, KEY_SLOT, 4)
        code.store(FP, OWN_TID_SLOT, R1)
        code.call(_GET_PID_TGID)
        code.do(R0, "<<=", 32)
        code.do(R0, ">>=", 32)
        code.store(FP, TID_SLOT, R0)

    def require_main_thread(self) -> None:
        """Go on in the first thread of the process, whose number is the process's."""
        code = self._reads.code
        code.call(_GET_PID_TGID)
        code.do(R1, "=", R0)
        code.do(R1, ">>=", 32)
        code.load(R2, FP, TID_SLOT)
        code.jump_if(R1, "!=", R2, "out")

    def _count(self) -> None:
        """Count the event among those of its thread, so that a gap shows what was lost."""
        code, reads = self._reads.code, self._reads
        reads.look_up(THREADS, TID_SLOT)
        code.jump_if(R0, "!=", 0, "known")
        code.store(FP, NTH_SLOT, 1)
        reads.update(THREADS, TID_SLOT, NTH_SLOT)
        code.jump("counted")
        code.label("known")
        code.load(R1, R0, 0)
        code.do(R1, "+=", 1)
        code.store(R0, 0, R1)
        code.store(FP, NTH_SLOT, R1)
        code.label("counted")

    def out(self) -> None:
        """End here, and where the instructions go to `out`."""
        code = self._reads.code
        code.label("out")
        code.do(R0, "=", 0)
        code.exit()

    def end(self) -> None:
        code, reads = self._reads.code, self._reads
        # Whose backtrace is wanted may go on any time.
        reads.submit(R7, wakes=bool(self._reads.layout.backtraces))
        self.out()
        code.label("lost")
        code.store(FP, KEY_SLOT, 0)
        reads.look_up(LOST, KEY_SLOT)
        code.jump_if(R0, "==", 0, "out")
        code.do(R1, "=", 1)
        code.atomic_add(R0, 0, R1)
        code.jump("out")
