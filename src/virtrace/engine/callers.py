"""Who called, where errors are recorded outside of calls: written with the errors alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from virtrace.engine.tracer import RawEvent
from virtrace.trace import roles
from virtrace.trace.format import Header, Record, SwitchedOff

# The client comes first in a call, then the procedure, then each domain that it is about. It is
# enough to know that there are two.
_CALLERS = frozenset({roles.RPC_CLIENT, roles.RPC_PROCEDURE, roles.RPC_DOMAIN})
_MOST_OF_A_CALL = 4
# A thread that ends stays in it.
_MOST_THREADS = 10_000


class Callers:
    """Holds back who called until something else happens on the thread, if anything does.

    Most calls raise no error, and would fill the trace.
    """

    def __init__(self) -> None:
        self._roles: Mapping[str, str | None] = {}
        self._holds = False
        self._held: dict[int, list[RawEvent]] = {}

    def begin(self, header: Header) -> None:
        self._roles = {
            probe["name"]: probe["role"]
            for probe in header["probes"]
            if probe["level"] != "missing"
        }
        self._holds = {roles.API_FAILED, roles.RPC_CLIENT} <= {*self._roles.values()}

    def released(self, items: Sequence[RawEvent | SwitchedOff]) -> Iterator[RawEvent | SwitchedOff]:
        """Yield what belongs into the trace by now."""
        for item in items:
            if not self._holds or not isinstance(item, RawEvent) or item.call is not None:
                yield item
                continue
            role = self._roles.get(item.name)
            if role not in _CALLERS:
                yield from self._held.pop(item.tid, ())
                yield item
            elif role == roles.RPC_CLIENT:
                if len(self._held) >= _MOST_THREADS:
                    self._held.clear()
                self._held[item.tid] = [item]
            else:
                self._hold(item, role)

    def _hold(self, item: RawEvent, role: str | None) -> None:
        held = self._held.get(item.tid, [])
        if role == roles.RPC_PROCEDURE and len(held) > 1:
            # Another call, of which the client was lost.
            del self._held[item.tid]
        elif held and len(held) < _MOST_OF_A_CALL and item.values not in map(_values, held):
            held.append(item)


def _values(event: RawEvent) -> Record:
    return event.values
