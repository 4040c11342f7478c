"""Names of the functions in a backtrace."""

from __future__ import annotations

from bisect import bisect_right

from virtrace.errors import TargetError
from virtrace.image.model import Module, Program
from virtrace.image.unwind import Frame


class FrameNames:
    """Names frames by the functions that files export, and by others that are known.

    known: names by the first address of the function in the program
    """

    def __init__(self, program: Program, known: dict[int, str]) -> None:
        self._program = program
        self._known = known
        self._exported: dict[Module, tuple[list[int], list[tuple[int, int, str]]]] = {}

    def describe(self, frame: Frame, *, is_innermost: bool) -> str:
        """Return a frame in words: ``virEventRunDefaultImpl+0x1f (libvirt.so.0)``.

        is_innermost: no call led out of it, so that its program counter is inside of it
        """
        module = frame.module
        if module is None:
            return f"{frame.pc:#x} (in no file)"
        # A call can be the last instruction of its function: where it returns to is the next one.
        inside = frame.pc - (0 if is_innermost else 1)
        start, name = self._named(module, inside, frame.function)
        if name is None:
            return f"{module.name}+{frame.pc - module.base:#x}"
        return f"{name}+{frame.pc - start:#x} ({module.name})"

    def function(self, frame: Frame, *, is_innermost: bool) -> str | None:
        """Return the name of a frame's function; None if it is not known."""
        if frame.module is None:
            return None
        inside = frame.pc - (0 if is_innermost else 1)
        return self._named(frame.module, inside, frame.function)[1]

    def _named(self, module: Module, inside: int, function: int | None) -> tuple[int, str | None]:
        if function is not None and function in self._known:
            return function, self._known[function]
        starts, functions = self._functions(module)
        address = inside - module.base
        at = bisect_right(starts, address) - 1
        if at >= 0 and address < functions[at][1]:
            return module.base + functions[at][0], functions[at][2]
        return 0, None

    def _functions(self, module: Module) -> tuple[list[int], list[tuple[int, int, str]]]:
        if module not in self._exported:
            try:
                functions = module.elf.exported_functions()
            except TargetError:
                functions = []
            self._exported[module] = [start for start, *_ in functions], functions
        return self._exported[module]
