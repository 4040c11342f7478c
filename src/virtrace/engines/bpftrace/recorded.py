"""What the program printed, made the stops that a tracer understands.

The lines may be a stranger's, and are not in the order of time: each processor has a buffer of its
own, and events of one can be lost. Whatever was not printed is unavailable.
"""

from __future__ import annotations

import base64
import heapq
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import MappingProxyType

from virtrace.binary import given, x86_64
from virtrace.engine.output import Output
from virtrace.engines.bpftrace.program import HEARTBEAT_MS, REGISTERS, probe_argument
from virtrace.errors import TraceError, Unavailable
from virtrace.image.memory import Recorded
from virtrace.plan.capture import REGISTER
from virtrace.plan.file import MAX_BYTES, StoredPlan, read
from virtrace.plan.model import AnySite, PointSite, ReturnPointSite, SpanSite, StaticProbeSite
from virtrace.record.job import Job
from virtrace.record.recording import Recording
from virtrace.trace.format import Header

# After a failed read, which bpftrace does not say the thread of: heartbeats of each processor
# until what the program printed then must have come.
_HEARTBEATS = 2
# Of what is kept until its turn comes. A word takes some 150 bytes.
_MAX_LINES, _MAX_WAITING, _MAX_WORDS = 20_000, 100_000, 1_000_000
_MAX_ON_LINE, _MAX_CPUS = 64, 8192
_MAX_NUMBER = (1 << 63) - 1
_WORD = (1 << 64) - 1
_YEAR_10000 = 253_402_300_800

_LOST = "bpftrace lost events of this thread"
_NOT_READ = "bpftrace could not read it: the page was not in memory"


# Options of `virtrace record` that mean nothing here, and why.
_NEVER_STOPPED = "this engine never keeps the daemon standing"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "max-stop-ms": _NEVER_STOPPED,
        "max-load": _NEVER_STOPPED,
        "source": "this engine traces no source lines",
    }
)


class BrokenLine(TraceError):
    """A line that no program of virtrace prints; those beside it may be sound."""


class WordsMemory(Recorded):
    """The words that were printed for one event. whole: none of them was lost."""

    def __init__(self, words: Mapping[int, str | None], whole: bool) -> None:
        self._words = words
        self._whole = whole

    def _word(self, address: int) -> bytes:
        try:
            word = self._words[address]
        except KeyError:
            why = "bpftrace's program did not read it" if self._whole else _LOST
            raise Unavailable(f"cannot read memory at {address:#x}: {why}") from None
        if word is None:
            raise Unavailable(f"cannot read memory at {address:#x}: {_NOT_READ}")
        try:
            return (int(word, 16) & _WORD).to_bytes(REGISTER, "little")
        except ValueError:
            raise Unavailable(f"cannot read memory at {address:#x}: no word was printed") from None

    def read(self, address: int, size: int) -> bytes:
        start = address // REGISTER * REGISTER
        found = b"".join(
            self._word(at) for at in range(start, min(address + size, _WORD), REGISTER)
        )
        return found[address - start :][:size]

    def string(self, address: int) -> bytes:
        at = address // REGISTER * REGISTER
        pieces: list[bytes] = []
        while True:
            if at not in self._words and pieces and self._whole:
                kept = sum(map(len, pieces))
                raise Unavailable(f"longer than the {kept} bytes that bpftrace's program reads")
            piece = self._word(at)[address - at if at < address else 0 :]
            end = piece.find(b"\0")
            if end >= 0:
                return b"".join([*pieces, piece[:end]])
            pieces.append(piece)
            at += REGISTER


@dataclass
class Happened:
    """An event as it was printed. number: of the site. nth: of the events of its thread.

    values: registers, or the arguments of a static probe, of which some may not be known.
    """

    kind: str
    number: int
    pid: int
    tid: int
    cpu: int
    nth: int
    t_ns: int
    sp: int
    ip: int
    values: Sequence[int | None]
    memory: WordsMemory


class RecordedThread:
    """The thread of an event, as the tracer sees it (tracer.Stop)."""

    def __init__(self, event: Happened, site: AnySite, t_ns: int) -> None:
        self.memory = event.memory
        self.tid = event.tid
        # Programs whose threads have several stacks are not traced by this engine.
        self.stack = event.tid
        self.sp = event.sp
        self.t_ns = t_ns
        self._event = event
        self._site = site

    def argument_registers(self) -> dict[str, int]:
        return {
            name: value for name, value in zip(REGISTERS, self._event.values) if value is not None
        }

    def register(self, name: str) -> int:
        value = self.argument_registers().get(name)
        if value is None:
            raise Unavailable(f"{name} is not recorded")
        return value

    def probe_argument(self, index: int) -> int:
        assert isinstance(self._site, StaticProbeSite)
        probe_argument(self._site.arguments, index)
        value = dict(enumerate(self._event.values)).get(index)
        if value is None:
            raise Unavailable(_NOT_READ)
        return value

    def return_address(self) -> int:
        return int.from_bytes(self.memory.read(self.sp, REGISTER), "little")

    def result(self) -> int:
        value = self._event.values[0]
        assert value is not None
        return value

    def result_is_used(self) -> bool:
        pattern = x86_64.ABI.reads_result
        assert pattern is not None
        return bool(pattern.match(self.memory.read(self._event.ip, 3)))


# --- From lines to events


@dataclass
class Started:
    """When the program began: by its own clock, and in seconds since 1970.

    pid: of the process that it was told; 0 where it was told none.
    """

    ns: int
    epoch: float
    pid: int


@dataclass
class _Piece:
    """Words of an event that is not whole yet, in hexadecimal; None: a read may have failed."""

    words: dict[int, str | None] = field(default_factory=dict)
    lines: int = 0
    count: int = 0


class Lines:
    """Reads the lines; hands each event over in its order in time, as far as that is known.

    What it holds meanwhile is bounded, whatever the lines are.

    event: what is called for each; lost: for a gap in the events of a thread: whose, how many,
    and when.
    """

    def __init__(
        self,
        event: Callable[[Happened], None],
        lost: Callable[[int, int, int], None] = lambda tid, count, t_ns: None,
    ) -> None:
        self.plan: StoredPlan | None = None
        self.started: Started | None = None
        self.ready: set[str] = set()
        self.ended = False
        self.lost_events = 0
        # The last heartbeat of each processor, and how many there were.
        self.beats: dict[int, int] = {}
        self.rounds: dict[int, int] = defaultdict(int)
        self._event = event
        self._lost = lost
        self._coded: list[str] = []
        self._coded_size = 0
        self._pieces: dict[tuple[int, int], _Piece] = defaultdict(_Piece)
        # By line of the program: the round of each processor at which a read there had failed.
        self._failed: dict[int, dict[int, int]] = {}
        # With how many words it holds.
        self._waiting: list[tuple[int, int, int, int, Happened]] = []
        # Words of events that wait, or are not whole yet.
        self._held = 0
        self._number = 0
        self._nth: dict[int, int] = {}

    def feed(self, line: bytes) -> None:
        """BrokenLine where it is none that our program makes bpftrace print.

        Any other TraceError says that the plan cannot be used.
        """
        if not line.strip():
            return
        try:
            said = json.loads(line)
            kind, data = said["type"], said.get("data")
            if kind == "printf":
                self._printed(data)
            elif kind == "helper_error":
                if said["helper"].startswith("probe_read"):
                    self._read_failed(given.number(said["line"], 0, _MAX_NUMBER))
            elif kind == "lost_events":
                self.lost_events += given.number(data["events"], 0, _MAX_NUMBER)
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            shown = repr(line[:60])
            raise BrokenLine(
                f"{shown} is not the output of a bpftrace program of virtrace",
                "import the complete output of the program, unchanged",
            ) from error

    def finish(self) -> None:
        """Nothing more comes."""
        self._hand_over(None)

    def _printed(self, text: str) -> None:
        what, _, rest = text.partition(" ")
        words = rest.split(" ")
        if what == "w":
            self._words(words)
        elif what in ("e", "p", "u", "r"):
            self._whole(what, words)
        elif what == "h":
            self._beat(words)
        elif what == "ready":
            self.ready.add(words[0])
        elif what == "virtrace":
            version, now, epoch, pid = _numbers(words)
            if version != 1 or epoch >= _YEAR_10000 or pid >= 1 << 31:
                raise ValueError(rest)
            self.started = Started(now, epoch, pid)
        elif what == "plan":
            self._add_to_plan(rest)
        elif what == "planned":
            self._planned()
        elif what == "end":
            self.ended = True
        else:
            raise ValueError(what)

    def _beat(self, words: Sequence[str]) -> None:
        cpu, now = _numbers(words)
        if cpu >= _MAX_CPUS:
            raise ValueError("no such processor")
        self.beats[cpu] = now
        self.rounds[cpu] += 1
        # All processors have come as soon as one comes for the third time. One that was
        # interrupted while it printed may be a little late.
        if self.rounds[cpu] > 2:
            self._hand_over(min(self.beats.values()) - HEARTBEAT_MS * 1_000_000)

    def _add_to_plan(self, coded: str) -> None:
        self._coded.append(coded)
        self._coded_size += len(coded)
        if self._coded_size > MAX_BYTES:
            raise _no_plan("it is too long")

    def _planned(self) -> None:
        if self.plan is not None:
            raise ValueError("a second plan")
        decompressor = zlib.decompressobj()
        try:
            data = base64.b64decode("".join(self._coded), validate=True)
            plan = decompressor.decompress(data, MAX_BYTES)
        except (ValueError, zlib.error) as error:
            raise _no_plan(str(error)) from error
        if decompressor.unconsumed_tail:
            raise _no_plan("it is too long")
        self._coded.clear()
        self.plan = read(plan)

    def _read_failed(self, line: int) -> None:
        """A read on this line of the program, for an event of no processor that is told."""
        if len(self._failed) * len(self.rounds) > _MAX_WORDS:
            raise ValueError("more lines than a program has")
        self._failed[line] = dict(self.rounds)

    def _is_doubtful(self, line: int, cpu: int) -> bool:
        """Whether a read on this line may have failed for an event of this processor."""
        failed = self._failed.get(line)
        return failed is not None and self.rounds[cpu] - failed.get(cpu, 0) <= _HEARTBEATS

    def _words(self, said: list[str]) -> None:
        line, tid, cpu = _numbers(said[:3])
        address = int(said[3], 16)
        if not 0 <= address < 1 << 64 or not 4 < len(said) <= 4 + _MAX_ON_LINE:
            raise ValueError("no words, or too many")
        self._held += len(said) - 4
        while self._held > _MAX_WORDS and self._waiting:
            self._hand_over(self._waiting[0][0] + 1)
        piece = self._pieces[tid, cpu]
        piece.lines += 1
        piece.count += len(said) - 4
        if piece.lines > _MAX_LINES or self._held > _MAX_WORDS:
            self._held -= self._pieces.pop((tid, cpu)).count
            raise ValueError("an event without an end")
        words: list[str | None] = [*said[4:]]
        if self._failed:
            for index, word in enumerate(said[4:]):
                if word == "0" and self._is_doubtful(line + index, cpu):
                    words[index] = None
        piece.words.update(zip(range(address, address + len(words) * REGISTER, REGISTER), words))

    def _whole(self, kind: str, words: list[str]) -> None:
        number, pid, tid, cpu, nth, t_ns, count = _numbers(words[:7])
        sp, ip, *values = (int(word, 16) & _WORD for word in words[7:])
        piece = self._pieces.pop((tid, cpu), _Piece())
        if (kind in "ep" and len(values) != len(REGISTERS)) or (kind == "r" and len(values) != 1):
            raise ValueError("registers are missing")
        known: list[int | None] = [*values]
        if kind == "u":
            first, *arguments = values
            known = [
                None if value == 0 and self._is_doubtful(first + index, cpu) else value
                for index, value in enumerate(arguments)
            ]
        memory = WordsMemory(piece.words, piece.lines == count)
        event = Happened(kind, number, pid, tid, cpu, nth, t_ns, sp, ip, known, memory)
        self._number += 1
        heapq.heappush(self._waiting, (t_ns, nth, self._number, piece.count, event))
        if len(self._waiting) > _MAX_WAITING:
            self._hand_over(self._waiting[0][0] + 1)

    def _hand_over(self, until: int | None) -> None:
        """What was before; without, all."""
        while self._waiting and (until is None or self._waiting[0][0] < until):
            *_, held, event = heapq.heappop(self._waiting)
            self._held -= held
            gap = event.nth - self._nth.get(event.tid, 0) - 1
            self._nth[event.tid] = event.nth
            if gap > 0:
                self._lost(event.tid, gap, event.t_ns)
            self._event(event)


def _numbers(words: Sequence[str]) -> list[int]:
    """As a program prints those that are never negative. ValueError where they are others."""
    return [given.number(int(word), 0, _MAX_NUMBER) for word in words]


def _no_plan(why: str) -> TraceError:
    return TraceError(f"the plan in it is damaged: {why}", "import the complete output, unchanged")


# --- From events to a trace


class Replayer:
    """Gives what the program printed to a recording.

    recording: what came of it
    """

    def __init__(self, job: Job, plan: StoredPlan, output: Output, pid: int | None) -> None:
        """pid: events of other processes are passed over; None: those of any but the first."""
        self.recording = Recording(job.recipe, job.selection, output)
        output.listen(self.recording.ending.request)
        self._job = job
        self._header = plan.header
        self._sites = plan.plan.sites
        self._bases = plan.plan.exported.bases
        self._pid = pid or None
        # Before the trace has begun, not all probes are there.
        self._started_ns: int | None = None
        self._last_ns = 0

    def begin(self, started: Started, version: str | None = None) -> None:
        """version: of bpftrace, if known."""
        self._started_ns = started.ns
        header: Header = {
            **self._header,
            "started": datetime.fromtimestamp(started.epoch, timezone.utc).isoformat(),
            # bpf_ktime_get_boot_ns(), which bpftrace asks.
            "clock": {"source": "CLOCK_BOOTTIME", "start_ns": started.ns},
            "tool": {
                **self._header["tool"],
                "engine": {"name": "bpftrace", "version": version},
            },
            **self._job.header_fields(REFUSED),
        }
        self.recording.begin(header)

    @property
    def is_over(self) -> bool:
        return self.recording.ending.reason is not None

    def event(self, happened: Happened) -> None:
        if self.is_over or happened.number >= len(self._sites):
            return
        if self._started_ns is None or happened.t_ns < self._started_ns:
            return
        self._pid = self._pid or happened.pid
        if happened.pid != self._pid:
            return
        site = self._sites[happened.number]
        if happened.kind not in _kinds(site):
            return
        if happened.kind != "r":
            self.recording.hit(site.probe)
        thread = RecordedThread(happened, site, self._since(happened.t_ns))
        tracer = self.recording.tracer
        if isinstance(site, (PointSite, StaticProbeSite)):
            tracer.point(site, thread)
        elif isinstance(site, (SpanSite, ReturnPointSite)):
            # Each return is reported by itself, even that of a function that was left by a tail
            # call: the address that it returns to is the number of the site.
            if happened.kind == "r":
                tracer.leave(happened.number, thread)
            else:
                self._bases[site.module] = happened.ip - site.entry
                after = x86_64.ABI.sp_after_return(happened.sp)
                tracer.enter(site, thread, happened.number, after)
        self.recording.ending.is_due()

    def lost(self, tid: int, count: int, t_ns: int) -> None:
        """Note a gap in the events of a thread.

        t_ns: of the first event after it
        """
        if not self.is_over and self._started_ns is not None:
            self.recording.lost += count
            self.recording.tracer.lose(tid, self._since(t_ns), _LOST)

    def finish(self, reason: str, lost_events: int) -> None:
        """Write the footer.

        reason: why the recording ends, if it has not ended by itself
        lost_events: as bpftrace counts them: lines, not events of the program
        """
        self.recording.lost = max(self.recording.lost, lost_events)
        if self.recording.ending.reason is None:
            self.recording.ending.reason = reason
        self.recording.finish(self._last_ns, detached=True)

    def _since(self, t_ns: int) -> int:
        since = max(t_ns - (self._started_ns or 0), 0)
        self._last_ns = max(self._last_ns, since)
        return since


def _kinds(site: AnySite) -> str:
    """The letters of the events that a site's program prints."""
    if isinstance(site, StaticProbeSite):
        return "u"
    return "p" if isinstance(site, PointSite) else "er"
