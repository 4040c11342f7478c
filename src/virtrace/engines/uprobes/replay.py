"""From what the programs recorded to a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone

from virtrace.binary.x86_64 import ABI
from virtrace.engine.output import Output
from virtrace.engine.tracer import RawEvent
from virtrace.engines.uprobes.contents import content_of
from virtrace.engines.uprobes.coroutines import CoroutineStacks
from virtrace.engines.uprobes.hits import Hit, Hits, HitThread
from virtrace.engines.uprobes.host import REFUSED
from virtrace.engines.uprobes.layout import Layout
from virtrace.engines.uprobes.live import Taken
from virtrace.engines.uprobes.program import Program
from virtrace.engines.uprobes.rises import Rises, values_of
from virtrace.errors import TraceError
from virtrace.plan.capture import PendingBacktrace, PendingStack
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import (
    ContentSite,
    LineSite,
    PointSite,
    ReturnPointSite,
    Rising,
    SpanSite,
    StaticProbeSite,
)
from virtrace.record.job import Job
from virtrace.record.recording import Recording
from virtrace.targets.target import Standing
from virtrace.trace.format import (
    Footer,
    Header,
    Json,
    ProbeRecord,
    Record,
    SwitchedOff,
    unavailable,
)

# Events that are written at a time.
_BATCH = 32
_LOST = "the kernel's buffer was full, and events of this thread were lost"
_NO_BACKTRACE = "the thread could not be looked at when this was recorded"


def _no_stack(_: Hit) -> Json:
    return unavailable(_NO_BACKTRACE)


class Replayer:
    """Gives what the programs recorded to a recording.

    recording: what came of it. hits: takes the records.
    """

    def __init__(
        self,
        job: Job,
        plan: StoredPlan,
        programs: Sequence[Program],
        output: Output,
        *,
        own_tids: bool,
        stack_of: Callable[[Hit], Json] = _no_stack,
        stacks: CoroutineStacks | None = None,
    ) -> None:
        """own_tids: as of ``Hits``. stack_of: the frames of the thread of an event.

        stacks: of a program whose threads have several.
        """
        layouts = [program.layout for program in programs]
        self._batches = _Batches(
            output,
            stack_of,
            completes=any(
                one.backtraces or one.has_stack or one.risen or one.began for one in layouts
            ),
        )
        self._rises = Rises()
        self.recording = Recording(job.recipe, job.selection, self._batches)
        output.listen(self.recording.ending.request)
        self.hits = Hits(programs, self._hit, self._lost, own_tids=own_tids)
        self._stacks = stacks
        self._job = job
        self._header = plan.header
        self._sites = plan.plan.sites
        self._bases = plan.plan.exported.bases
        self._programs = programs
        self._started_ns = 0
        self.last_ns = 0
        entries = {(site.file, site.entry) for site in self._sites if isinstance(site, SpanSite)}
        self._lines_at_entry = {
            at
            for at, program in enumerate(programs)
            if isinstance(site := self._sites[program.site], LineSite)
            and (site.file, site.address) in entries
        }
        # By thread: where it entered a function last, if nothing was met since; and a line that
        # waits for the entry of its function.
        self._entered: dict[int, tuple[int, int]] = {}
        self._held: dict[int, Hit] = {}

    def begin(self, started_ns: int, epoch: float, refused: Sequence[LineSite] = ()) -> None:
        """Write the header.

        started_ns: CLOCK_BOOTTIME; epoch: the same moment in seconds since 1970
        refused: statements that the kernel sets no probe at
        """
        self._started_ns = started_ns
        header: Header = {
            **self._header,
            "started": datetime.fromtimestamp(epoch, timezone.utc).isoformat(),
            "clock": {"source": "CLOCK_BOOTTIME", "start_ns": started_ns},
            "probes": [_without(probe, refused) for probe in self._header["probes"]],
            **self._job.header_fields(REFUSED),
        }
        self.recording.begin(header)

    def note_standing(self, standing: Mapping[str, Sequence[Standing]], t_ns: int) -> None:
        """Record what stands, by the name of its kind. t_ns: CLOCK_BOOTTIME."""
        # These are events of no hit.
        self._batches.current = None
        for point in self._job.recipe.points:
            for one in standing.get(point.standing or "", ()) if self._batches.has_room else ():
                self.recording.hit(point.name)
                self._batches.take(
                    [
                        RawEvent(
                            *(
                                "point",
                                self.since(t_ns),
                                self._job.qemu or self._job.pid,
                                point.name,
                            ),
                            *(None, None, None),
                            dict(one.values),
                        )
                    ]
                )

    @property
    def is_over(self) -> bool:
        return self.recording.ending.reason is not None

    def note_backtraces(self, taken: Taken) -> None:
        """Note the backtraces for an event that will come."""
        self._batches.taken[taken.tid, taken.nth] = taken.backtraces

    def flush(self) -> None:
        """Hand on every event that was decoded."""
        try:
            self._batches.flush()
        except TraceError as error:
            self.recording.ending.fail(error)

    def finish(self, reason: str) -> None:
        """Write the footer.

        reason: why the recording ends, if it has not ended by itself. What ended it together with
        the command says more.
        """
        for held in self._held.values():
            self._take(held)
        self.record_held()
        if self.recording.ending.reason in (None, "done"):
            self.recording.ending.reason = reason
        self.recording.finish(self.last_ns, detached=True)

    def record_held(self) -> None:
        """Record the last rise of each thing that has not been recorded yet."""
        for hit in self._rises.rest() if self._batches.has_room else ():
            self._meet(hit)

    def since(self, t_ns: int) -> int:
        """Return the time since the start, in ns, and note it as the last that is known."""
        self.last_ns = max(t_ns - self._started_ns, self.last_ns)
        return max(t_ns - self._started_ns, 0)

    def _hit(self, hit: Hit) -> None:
        # Before the trace has begun, not all probes are there.
        if self.is_over or hit.t_ns < self._started_ns:
            return
        if self._lines_at_entry:
            for ready in self._in_order(hit):
                self._take(ready)
        else:
            self._take(hit)

    def _in_order(self, hit: Hit) -> Iterator[Hit]:
        """Return what comes now: where a line begins with its function, the entry comes first.

        The kernel runs the programs of one place in any order.
        """
        held, place = self._held.pop(hit.tid, None), (hit.ip, hit.sp)
        came_before = self._entered.pop(hit.tid, None) == place
        if hit.program in self._lines_at_entry and not came_before:
            self._held[hit.tid] = hit
            if held is not None:
                yield held
            return
        is_behind = held is not None and (held.ip, held.sp) == place
        if held is not None and not is_behind:
            yield held
        yield hit
        if isinstance(self._sites[self._programs[hit.program].site], SpanSite):
            self._entered[hit.tid] = place
        if held is not None and is_behind:
            yield held

    def _take(self, hit: Hit) -> None:
        program = self._programs[hit.program]
        site = self._sites[program.site]
        if isinstance(site, PointSite) and isinstance(site.when, Rising):
            self.recording.hit(site.probe)
            thread = HitThread(hit, program.layout, site, self.since(hit.t_ns))
            assert program.layout.risen is not None
            if not self._rises.is_kept(site, site.when, hit, thread, program.layout.risen):
                return
        self._meet(hit)

    def _meet(self, hit: Hit) -> None:
        program = self._programs[hit.program]
        site = self._sites[program.site]
        is_rise = isinstance(site, PointSite) and isinstance(site.when, Rising)
        is_alone = isinstance(site, ReturnPointSite) and site.is_conditional
        if is_alone or (not program.at_return and not is_rise):
            self.recording.hit(site.probe)
        self._batches.current, self._batches.layout = hit, program.layout
        thread = HitThread(
            *(hit, program.layout, site, self.since(hit.t_ns)),
            None if self._stacks is None else self._stacks.number(hit),
            at_ret=program.at_return and not program.is_return_probe,
        )
        tracer = self.recording.tracer
        if isinstance(site, (PointSite, StaticProbeSite)):
            tracer.point(site, thread)
        elif isinstance(site, LineSite):
            tracer.line(site, hit.ip, thread)
        elif isinstance(site, ReturnPointSite) and is_alone:
            tracer.returned(site, thread)
        elif program.at_return:
            # Each return is reported by itself, even that of a function that was left by a tail
            # call: the address that it returns to is the number of the site.
            tracer.leave(program.site, thread)
        else:
            # One of a ContentSite leaves no record.
            assert not isinstance(site, ContentSite)
            self._bases[site.module] = hit.ip - site.entry
            tracer.enter(site, thread, program.site, ABI.sp_after_return(hit.sp))
        self._batches.taken.pop((hit.own_tid, hit.nth), None)
        self.recording.ending.is_due()

    def _lost(self, tid: int, count: int, t_ns: int) -> None:
        """Note a gap in the events of a thread. t_ns: of the first event after it."""
        if not self.is_over:
            self.recording.lost += count
            self.recording.tracer.lose(tid, self.since(t_ns), _LOST)


def _without(probe: ProbeRecord, refused: Sequence[LineSite]) -> ProbeRecord:
    """Return a probe that lacks the lines that are refused."""
    lines = sorted({site.line for site in refused if site.probe == probe["name"]})
    if probe["kind"] != "span" or not lines:
        return probe
    return {**probe, "lacks": [*probe["lacks"], *(f"line {line}" for line in lines)]}


class _Batches:
    """A sink that puts backtraces into events, and hands on several at a time.

    taken: by thread and number of the event. current: the event that is being recorded
    layout: of its record, which has what its condition noted
    """

    def __init__(self, output: Output, stack_of: Callable[[Hit], Json], *, completes: bool) -> None:
        """completes: whether there is anything to put into events."""
        self._output = output
        self._stack_of = stack_of
        self._completes = completes
        self._waiting: list[RawEvent | SwitchedOff] = []
        self.rotates = output.rotates
        self.taken: dict[tuple[int, int], Mapping[int, Json]] = {}
        self.current: Hit | None = None
        self.layout: Layout | None = None

    @property
    def has_room(self) -> bool:
        """Whether the trace may have more events."""
        return self._output.remaining > 0

    def begin(self, header: Header) -> None:
        self._output.begin(header)

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        if self._completes and self.current is not None:
            for item in items:
                if isinstance(item, RawEvent):
                    self._complete(item.values, self.current)
        self._waiting += items
        if len(self._waiting) >= min(_BATCH, self._output.remaining):
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._output.take(waiting)

    def _complete(self, values: Record, hit: Hit) -> None:
        taken = self.taken.get((hit.own_tid, hit.nth), {})
        for name, value in values.items():
            if isinstance(value, PendingBacktrace):
                values[name] = taken.get(value.tid, unavailable(_NO_BACKTRACE))
            elif isinstance(value, PendingStack):
                values[name] = self._stack_of(hit)
        if self.layout is not None and self.layout.risen is not None:
            values.update(values_of(hit, self.layout.risen))
        if self.layout is not None and self.layout.began is not None:
            values["took_ns"] = hit.t_ns - hit.memory.word(self.layout.began)
        if self.layout is not None and self.layout.content is not None:
            values["content"] = content_of(hit.memory.word(self.layout.content))

    def rotate(self, footer: Footer) -> None:
        self.flush()
        self._output.rotate(footer)

    def finish(self, footer: Footer) -> None:
        try:
            self.flush()
        finally:
            self._output.finish(footer)
