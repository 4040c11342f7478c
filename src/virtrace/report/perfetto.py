"""A trace in Perfetto's own format (protobuf), by the package ``perfetto``.

The messages are described in https://perfetto.dev/docs/reference/synthetic-track-event
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

from virtrace.report.highlight import without_surrogates
from virtrace.report.moments import Moment
from virtrace.trace.format import Header, Json, Target
from virtrace.trace.target import in_qemu

_SEQUENCE = 1
# A thread's track has the number of the thread, which is below this; a process's is above.
_PROCESS_TRACK = 1 << 32
_TOGETHER = 1000


def perfetto_pieces(header: Header, moments: Iterable[Moment]) -> Iterator[bytes]:
    """Yield the trace in pieces; concatenated, they are one protobuf message.

    Times are those of the clock that the header names; the time of day is included.
    """
    trace = _TraceEncoder(header)
    for number, moment in enumerate(moments, 1):
        trace.add(moment)
        if number % _TOGETHER == 0:
            yield trace.taken()
    yield trace.taken()


class _TraceEncoder:
    def __init__(self, header: Header) -> None:
        self.builder = TraceProtoBuilder()
        self._start_ns: int = header["clock"]["start_ns"]
        self._pid: int = header["target"]["pid"]
        self._elsewhere = in_qemu(header)
        self._threads: set[int] = set()
        first = self._packet()
        first.sequence_flags = protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        # The clock of the engine; that of uprobes continues while the host sleeps.
        clock = protos.BUILTIN_CLOCK_MONOTONIC
        if header["clock"]["source"] == "CLOCK_BOOTTIME":
            clock = protos.BUILTIN_CLOCK_BOOTTIME
        first.trace_packet_defaults.timestamp_clock_id = clock
        clocks = first.clock_snapshot
        clocks.primary_trace_clock = clock
        day = datetime.fromisoformat(header["started"])
        clocks.clocks.add(clock_id=clock, timestamp=self._start_ns)
        clocks.clocks.add(
            clock_id=protos.BUILTIN_CLOCK_REALTIME, timestamp=round(day.timestamp() * 1e6) * 1000
        )
        self._add_process(header["target"])
        if "qemu" in header:
            self._add_process(header["qemu"])

    def _add_process(self, target: Target) -> None:
        process = self._packet().track_descriptor
        process.uuid = _PROCESS_TRACK + target["pid"]
        process.process.pid = target["pid"]
        process.process.process_name = target["exe"]

    def taken(self) -> bytes:
        """Return what was added since the last time."""
        made: bytes = self.builder.serialize()
        self.builder = TraceProtoBuilder()
        return made

    def add(self, moment: Moment) -> None:
        if moment.tid not in self._threads:
            self._threads.add(moment.tid)
            thread = self._packet().track_descriptor
            thread.uuid = moment.tid
            pid = self._elsewhere.get(moment.name.partition(" ")[0], self._pid)
            thread.parent_uuid = _PROCESS_TRACK + pid
            thread.thread.pid, thread.thread.tid = pid, moment.tid
        event = self._event(moment.t_ns, moment.tid)
        lasts = moment.duration_ns is not None
        event.type = event.TYPE_SLICE_BEGIN if lasts else event.TYPE_INSTANT
        event.name = without_surrogates(moment.name)
        event.categories.append(moment.category)
        for name, value in moment.values.items():
            _annotate(event.debug_annotations.add(name=without_surrogates(name)), value)
        if moment.flow is not None:
            (event.terminating_flow_ids if moment.replies else event.flow_ids).append(moment.flow)
        if moment.duration_ns is not None:
            # An end belongs to the last begin on its track; Perfetto sorts all by time.
            end = self._event(moment.t_ns + moment.duration_ns, moment.tid)
            end.type = end.TYPE_SLICE_END

    def _event(self, t_ns: int, tid: int) -> protos.TrackEvent:
        packet = self._packet()
        packet.timestamp = self._start_ns + t_ns
        packet.track_event.track_uuid = tid
        return packet.track_event

    def _packet(self) -> protos.TracePacket:
        packet = self.builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet


def _annotate(annotation: protos.DebugAnnotation, value: Json) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _annotate(annotation.dict_entries.add(name=without_surrogates(name)), inner)
    elif isinstance(value, list):
        for inner in value:
            _annotate(annotation.array_values.add(), inner)
    elif isinstance(value, bool):
        annotation.bool_value = value
    elif isinstance(value, float):
        annotation.double_value = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        annotation.int_value = value
    elif isinstance(value, int) and 0 <= value < 1 << 64:
        annotation.uint_value = value
    else:
        annotation.string_value = "null" if value is None else without_surrogates(str(value))
