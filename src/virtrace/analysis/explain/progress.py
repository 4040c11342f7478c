"""How far the jobs of a QEMU are, and why they do not end; texts in progress.yaml.

A copy, and a commit of the disk that the guest uses, also have to do again what the guest writes to
meanwhile: that adds to what there is to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import data_of, event_name, monitor_of
from virtrace.analysis.explain.model import (
    Bytes,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    number_of,
    stated,
)
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

_SECOND = 1_000_000_000
# Its rate is that of so long until the end.
_LATELY = 10 * _SECOND
# Less does not show a rate.
_SHORTEST = _SECOND
# For how long a job has to do nothing to stand still; two looks are a second apart.
_STILL = 3 * _SECOND
# Parts of a rate: of its limit, for a job that is held back; that the guest writes to, of one that
# does not come to an end.
_NEAR_LIMIT, _AS_MUCH = 0.7, 0.9
# What strangers' traces may have.
_MOST_JOBS, _MOST_EVENTS, _MOST_MONITORS = 1000, 100_000, 1000
_KINDS = {"commit": "commit", "stream": "pull", "mirror": "copy", "backup": "backup"}
# As libvirt names its jobs.
_DISK = re.compile(r"(?:commit|pull|copy|backup)-(\w+)-")
# States of a job that does not work.
_WAITS = ("created", "waiting", "pending", "paused")
_ENDS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
_FAILED = "BLOCK_JOB_ERROR"


@dataclass
class _Said:
    """What was said of a job over a monitor. limits: bytes per second; 0 for none."""

    events: list[Event] = field(default_factory=list)
    limits: list[Quoted] = field(default_factory=list)


@dataclass
class ProgressCase(model.Case):
    """One job. looks: what was read of it, where it was not as before, and as the trace ended."""

    looks: list[Event]
    said: _Said = field(default_factory=_Said)

    @property
    def id(self) -> str:
        return str(self.looks[0].values.get("id"))

    @property
    def last(self) -> Event:
        return self.looks[-1]

    @property
    def domain(self) -> str | None:
        name = self.last.values.get("domain")
        return name if isinstance(name, str) else None

    @property
    def _disk(self) -> str | None:
        found = _DISK.match(self.id)
        return found[1] if found else None

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain or "the guest", self._disk or self.id)

    @property
    def key(self) -> object:
        return self.looks[0].seq

    @property
    def status(self) -> str:
        return str(self.last.values.get("status"))

    @property
    def is_paused(self) -> bool:
        return self.last.values.get("user_paused") is True

    def told(self, *names: str) -> list[Event]:
        """QEMU's events of these names."""
        return [event for event in self.said.events if event_name(event) in names]

    @property
    def ended(self) -> Event | None:
        ends = self.told(*_ENDS)
        return ends[-1] if ends else None

    @property
    def error(self) -> str | None:
        """What QEMU said as the job ended."""
        error = data_of(self.ended).get("error")
        return error if isinstance(error, str) else None

    @property
    def limit(self) -> Quoted | None:
        return self.said.limits[-1] if self.said.limits else None

    @property
    def _limit(self) -> int:
        value = None if self.limit is None else self.limit.value
        return value if type(value) is int else 0

    @cached_property
    def _known(self) -> Sequence[Event]:
        """The looks since the job knew how much there is to do."""
        return [look for look in self.looks if number_of(look, "total")]

    @cached_property
    def lately(self) -> tuple[Event, Event] | None:
        """The looks between which its rate is; None where they show none."""
        running = [look for look in self._known if look.values.get("status") == "running"]
        since = [look for look in running if look.t_ns >= running[-1].t_ns - _LATELY]
        if not since or since[-1].t_ns - since[0].t_ns < _SHORTEST:
            return None
        return since[0], since[-1]

    def rate(self, of: str) -> int | None:
        """How much more of `done` or `total` there was per second, lately."""
        if self.lately is None:
            return None
        first, last = self.lately
        before, after = number_of(first, of), number_of(last, of)
        if before is None or after is None:
            return None
        return max(after - before, 0) * _SECOND // (last.t_ns - first.t_ns)

    @property
    def left(self) -> int | None:
        done, total = number_of(self.last, "done"), number_of(self.last, "total")
        return None if done is None or total is None else max(total - done, 0)

    @property
    def _still_ns(self) -> int | None:
        """For how long it has done nothing until the last look."""
        done = number_of(self.last, "done")
        same = [look for look in self._known if number_of(look, "done") == done]
        return self.last.t_ns - same[0].t_ns if same and done is not None else None

    @property
    def _is_still(self) -> bool:
        return self.is_running and (self._still_ns or 0) >= _STILL

    @property
    def stands(self) -> bool:
        return self._is_still and not self.is_held

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def is_endless(self) -> bool:
        rate, written = self.rate("done"), self.rate("total")
        return bool(rate and written is not None and written >= rate * _AS_MUCH)

    @property
    def is_held(self) -> bool:
        """Whether it is at its limit; with a low one, it does nothing for seconds."""
        rate = self.rate("done") or 0
        return self._limit > 0 and (rate >= self._limit * _NEAR_LIMIT or self._is_still)

    @property
    def ends(self) -> bool:
        return self._needs_ns is not None

    @property
    def _needs_ns(self) -> int | None:
        """How long it needs for the rest, if it goes on so."""
        rate, written = self.rate("done"), self.rate("total")
        if self.is_held:
            rate = max(rate or 0, self._limit)
        if rate is None or written is None or self.left is None or rate <= written:
            return None
        return self.left * _SECOND // (rate - written)

    @property
    def names(self) -> Mapping[str, Json]:
        kind = _KINDS[str(self.looks[0].values.get("type"))]
        job = f"{kind} of {self._disk}" if self._disk else f"{kind} {self.id}"
        return {
            "domain": self.domain,
            "disk": self._disk,
            "job": job,
            "error": self.error,
            "status": self.status,
            "held": f", its limit of {Bytes(self._limit).mib} per second" if self.is_held else "",
            "mebibytes": f"{-(-2 * (self.rate('total') or 0) // (1 << 20))}",
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        since = self.looks[0].t_ns
        return {
            "done": Bytes.of(number_of(self.last, "done")),
            "total": Bytes.of(number_of(self.last, "total")),
            "left": Bytes.of(self.left),
            "rate": Bytes.of(self.rate("done")),
            "written": Bytes.of(self.rate("total")),
            "limit": Bytes.of(self._limit),
            "still": _time(self._still_ns),
            "needs": _time(self._needs_ns),
            "lasted": _time(self.ended.t_ns - since if self.ended else None),
        }

    @property
    def facts(self) -> Sequence[Fact]:
        last = self.last
        found = [Fact("state", self.status, "of QEMU's job", last.seq, ".status")]
        for name, means in (("done", "so far"), ("total", "of so much")):
            number = number_of(last, name)
            if number is not None:
                found.append(Fact(name, Bytes(number), means, last.seq, f".{name}"))
        if self.limit is not None:
            limit = self.limit
            means = "bytes per second; 0 for none"
            found.append(Fact("limit", limit.value, means, limit.seq, limit.path))
        return found


def _time(ns: int | None) -> Nanoseconds | None:
    return None if ns is None else Nanoseconds(ns)


class _Reader:
    def __init__(self) -> None:
        self._jobs: dict[str, list[Event]] = {}
        # By the monitor, and by the job.
        self._said: dict[str, dict[str, _Said]] = {}

    def take(self, node: Node) -> Iterator[ProgressCase]:
        for each in node.nodes() if isinstance(node, Call) else (node,):
            if isinstance(each, Exchange):
                self._asked(each)
            elif isinstance(each, Point) and each.event.role == roles.JOB_STANDING:
                self._stands(each.event)
            elif isinstance(each, Point) and each.event.role == roles.QMP_EVENT:
                said = self._of(each.event, data_of(each.event).get("device"))
                if said is not None and len(said.events) < _MOST_EVENTS:
                    said.events.append(each.event)
        return iter(())

    def finish(self, end_ns: int) -> Iterator[ProgressCase]:
        for name, looks in self._jobs.items():
            found = [said[name] for said in self._said.values() if name in said]
            # Jobs of two guests can have one name.
            yield ProgressCase(looks, found[0] if len(found) == 1 else _Said())

    def _stands(self, event: Event) -> None:
        name = event.values.get("id")
        # Others, such as one that makes a file, end at once.
        if event.values.get("type") not in _KINDS or not isinstance(name, str):
            return
        if name in self._jobs or len(self._jobs) < _MOST_JOBS:
            looks = self._jobs.setdefault(name, [])
            if len(looks) < _MOST_EVENTS:
                looks.append(event)

    def _of(self, event: Event, job: Json) -> _Said | None:
        """What is said of a job over the monitor of an event."""
        mon = monitor_of(event)
        if not isinstance(job, str) or (
            mon not in self._said and len(self._said) >= _MOST_MONITORS
        ):
            return None
        jobs = self._said.setdefault(mon, {})
        if job not in jobs and len(jobs) >= _MOST_JOBS:
            return None
        return jobs.setdefault(job, _Said())

    def _asked(self, exchange: Exchange) -> None:
        send = exchange.send
        arguments = Quoted(send.values, send.name, send.seq).get("json", "arguments")
        if arguments is None or exchange.failed:
            return
        # `device` is the job in block-job-set-speed, and the disk in commands that begin one.
        named = arguments.text("job-id") or arguments.text("device")
        speed = arguments.number("speed")
        if speed is not None:
            said = self._of(send, named)
            if said is not None and len(said.limits) < _MOST_EVENTS:
                said.limits.append(speed)


_CAUSES: Catalogue[ProgressCase] = Catalogue(Path(__file__).with_name("progress.yaml"))
EXPLAINER = Explainer("progress", _CAUSES, lambda _: _Reader())


def _read(case: ProgressCase) -> list[Evidence]:
    """What was read of it last, and before."""
    found = []
    if case.lately is not None and case.ended is None:
        found += stated(case.lately[0], "done", "done, at a look before")
    found += stated(case.last, "done", "done, at the last look")
    return [*found, *stated(case.last, "total", "of so much")]


def _register(
    cause: str,
    holds: Callable[[ProgressCase], bool],
    *events: str,
    is_over: bool = False,
    limit: bool = False,
) -> None:
    """events: of QEMU, that show it. is_over: of a job that has ended. limit: it shows it, too."""

    @_CAUSES.condition(cause)
    def condition(case: ProgressCase) -> list[Evidence] | None:
        if (case.ended is not None) != is_over or not holds(case):
            return None
        told = case.told(*events)[-1:]
        by = [Evidence(f"QEMU told libvirt: {event_name(one)}", seq=one.seq) for one in told]
        if limit and case.limit is not None:
            by.append(state(case.limit, "the limit that QEMU was given"))
        return [*by, *_read(case)]


_register("failed", lambda case: case.error is not None, *_ENDS, is_over=True)
_register("cancelled", lambda case: bool(case.told(_ENDS[1])), *_ENDS, is_over=True)
_register("ended", lambda _: True, *_ENDS, is_over=True)
_register("stopped-by-error", lambda case: case.is_paused and bool(case.told(_FAILED)), _FAILED)
_register("paused", lambda case: case.is_paused)
_register("ready", lambda case: case.status in ("ready", "standby"), "BLOCK_JOB_READY")
_register("stands", lambda case: case.stands)
_register("endless", lambda case: case.is_running and case.is_endless, limit=True)
_register("limited", lambda case: case.is_running and case.is_held and case.ends, limit=True)
_register("goes-on", lambda case: case.is_running and case.ends)
_register("waits", lambda case: case.status in _WAITS and not case.is_paused)
_register("begins", lambda case: case.is_running and case.lately is None)
_CAUSES.condition("unknown")(_read)
