"""Keep calls of a trace until they are asked for, in a file if there are many."""

from __future__ import annotations

import os
import pickle
import zlib
from typing import IO

from virtrace.analysis.compare.model import Alone
from virtrace.analysis.compare.pairing import calls_of
from virtrace.analysis.spans import Call
from virtrace.errors import TraceError
from virtrace.trace.reader import ReadableTrace

# Calls that wait in memory.
_MOST_NEAR = 200


class CallsByPlace:
    """Calls of trace B by their places; each is asked for once, in nearly any order.

    Calls in between are kept: a few in memory, the rest in a file.
    """

    def __init__(
        self, trace: ReadableTrace, alone: dict[int, Alone | None], file: IO[bytes]
    ) -> None:
        """alone: places that will not be asked for; receives the calls there."""
        self._rest = enumerate(calls_of(trace))
        self._alone = alone
        self._near: dict[int, Call] = {}
        self._far: dict[int, tuple[int, int]] = {}
        self._file = file

    def call(self, place: int) -> Call:
        if place in self._near:
            return self._near.pop(place)
        if place in self._far:
            start, size = self._far.pop(place)
            self._file.seek(start)
            kept: Call = pickle.loads(zlib.decompress(self._file.read(size)))
            return kept
        for passed, call in self._rest:
            if passed == place:
                return call
            self._keep(passed, call)
        raise trace_changed()

    def finish(self) -> None:
        """Read the trace to its end, where its problems become known."""
        for passed, call in self._rest:
            self._keep(passed, call)

    def _keep(self, place: int, call: Call) -> None:
        if place in self._alone:
            self._alone[place] = Alone("b", call.alone())
            return
        if len(self._near) < _MOST_NEAR:
            self._near[place] = call
            return
        data = zlib.compress(pickle.dumps(call, pickle.HIGHEST_PROTOCOL), 1)
        self._far[place] = self._file.seek(0, os.SEEK_END), len(data)
        self._file.write(data)


def trace_changed() -> TraceError:
    """Make the error for a trace whose calls have changed since the first reading."""
    return TraceError("the trace has changed while it was compared", "compare it once it ended")
