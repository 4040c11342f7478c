"""A daemon that is called as fast as its clients can, while the kernel's probes trace it.

    python -m tests.faults.storms --calls 100000              # all storms
    python -m tests.faults.storms --calls 2000 domstats --guests 200
    python -m tests.faults.storms --calls 100000 loop small   # those whose names begin so

Eight clients make a tenth of the calls of the untraced daemon, then all of the traced one. After
each storm the daemon must be unharmed. Each value of the trace must be one that a trace of the
quiet daemon has, and the trace must have each call, or say what it lost. Prints what it took;
docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.killed import LabWhileItLives
from tests.faults.uprobe_ends import unharmed
from tests.support.waiting import wait_until
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.errors import DONE, INCOMPLETE
from virtrace.lab.daemon import Lab
from virtrace.trace.format import Event, Json, is_unavailable
from virtrace.trace.reader import TraceStream

CLIENTS = 8
_CLIENT = Path(__file__).with_name("storm_client.py")
_RECORD = "import sys; from virtrace.cli.main import main"
_RING = """\
from functools import partial
from virtrace.engines.uprobes import attach
attach.Probes = partial(attach.Probes, ring_bytes={})
"""
_SPOOL = """\
from virtrace.engines.uprobes import run
run.MOST_WAITING, run._MUST_KEEP_UP = 1 << 20, 1 << 30
"""
_SAMPLE_SECONDS = 0.05
# What is another for a quiet guest, too: times, and the memory of its QEMU.
_MOVES = re.compile(
    r"idle_time_ns|process-(id|time)|.*\.(time|system|user|rss|delay|wait|last-update)"
)
_POINTER = re.compile(r"0x0*[1-9a-f][0-9a-f]*")
# More than any storm makes, as the limits are not what is tried.
_LIMITS = ("--max-events", "900000000", "--max-bytes", "900000000000")


@dataclass(frozen=True)
class Storm:
    """What the clients do, and how it is traced.

    kind: of calls, as storm_client.py has it
    patch: of virtrace, before it records
    loses: whether events must be lost
    """

    recipe: str
    kind: str
    options: Sequence[str] = ()
    patch: str = ""
    loses: bool = False


STORMS = {
    "loop": Storm("blockinfo", "info"),
    "errors": Storm("errors", "error"),
    "domstats": Storm("domstats", "stats"),
    "max-load": Storm("blockinfo", "info", ("--max-load", "0.1")),
    "small-ring": Storm("blockinfo", "info", patch=_RING.format(1 << 16), loses=True),
    # Decoding never has to keep up: the kernel's buffer fills behind it.
    "small-spool": Storm("blockinfo", "info", patch=_SPOOL),
    "small-both": Storm("blockinfo", "info", patch=_RING.format(1 << 19) + _SPOOL, loses=True),
}


@dataclass
class Calls:
    """What the clients report. answers: how often which came."""

    began: float
    ended: float
    answers: dict[str, int]

    @property
    def count(self) -> int:
        return sum(self.answers.values())

    @property
    def rate(self) -> float:
        return self.count / (self.ended - self.began)


def client_command(storm: Storm, lab: Lab, clients: int, calls: int, result: Path) -> list[str]:
    words = (storm.kind, lab.uri, clients, calls, result)
    return [sys.executable, str(_CLIENT), *map(str, words)]


def calls_of(result: Path) -> Calls:
    """Take the report of clients, so that the file is there for the next."""
    text = result.read_text()
    result.unlink()
    return Calls(*json.loads(text))


@dataclass
class Usage:
    """What the tracer's process takes. times: (when, processor time so far), seconds.

    memory, files: the most at a time, bytes; memory with what it keeps of the records in memory
    """

    times: list[tuple[float, float]] = field(default_factory=list)
    memory: int = 0
    files: int = 0

    @contextmanager
    def watched(self, pid: int) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SAMPLE_SECONDS):
                with suppress(OSError, IndexError):
                    self._look(pid)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        self.times.append((time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")))
        in_memory = in_files = 0
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                target = os.readlink(descriptor)
                if target.startswith("/memfd:"):
                    in_memory += descriptor.stat().st_blocks * 512
                elif target.endswith(" (deleted)"):
                    in_files += descriptor.stat().st_blocks * 512
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGESIZE"
        )
        self.memory = max(self.memory, resident + in_memory)
        self.files = max(self.files, in_files)

    @property
    def seconds(self) -> float:
        return self.times[-1][1]

    def share(self, calls: Calls) -> float:
        """Of one processor, while the calls were made."""
        taken = [used for at, used in self.times if calls.began <= at <= calls.ended]
        return (taken[-1] - taken[0]) / (calls.ended - calls.began) if taken else float("nan")


def traced(
    storm: Storm, lab: Lab, clients: int, calls: int, folder: Path
) -> tuple[Calls, Usage, int]:
    """Record the calls of clients as ``t.jsonl`` in the folder; the last is the exit status."""
    result, output, usage = folder / "result", folder / "t.jsonl", Usage()
    command = client_command(storm, lab, clients, calls, result)
    options = ["-p", str(lab.pid), "--engine", "uprobes", "-o", str(output), *storm.options]
    code = f"{_RECORD}\n{storm.patch}\nsys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "record", storm.recipe, *options, *_LIMITS, "--", *command]
    with (folder / "said").open("w+") as said:
        tracing = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=said)
        with usage.watched(tracing.pid):
            status = tracing.wait()
        assert status in (DONE, INCOMPLETE), (folder / "said").read_text()
    # A recording that ends by its limits leaves the command to run on.
    wait_until(result.exists, "the clients to end")
    return calls_of(result), usage, status


def untraced(storm: Storm, lab: Lab, clients: int, calls: int, folder: Path) -> Calls:
    result = folder / "result"
    subprocess.run(client_command(storm, lab, clients, calls, result), check=True)
    return calls_of(result)


# --- Values


def values_of(event: Event) -> dict[str, Json]:
    """What does not differ from call to call."""
    values = {name: value for name, value in event.values.items() if name != "text"}
    document = values.get("json")
    if isinstance(document, dict) and not is_unavailable(document):
        text = event.values["text"]
        # The id is checked with the request's.
        values["json"] = {name: value for name, value in document.items() if name != "id"}
        values["whole"] = isinstance(text, str) and json.loads(text) == document
    return values


def still(value: Json, name: str = "") -> Json:
    """Without what is another every time."""
    if isinstance(value, dict):
        return {name: still(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [still(inner) for inner in value]
    if isinstance(value, str) and _POINTER.fullmatch(value):
        return "a pointer"
    return "moves" if _MOVES.fullmatch(name) else value


def facts_of(node: Call | Span | Exchange | Point) -> Iterator[tuple[str, Json]]:
    """What a trace has of a function, an exchange or a point: names and values."""
    if isinstance(node, Call):
        node = node.root
    if isinstance(node, Span):
        yield f"{node.name} enter", still(node.arguments)
        if node.returned is not None:
            yield f"{node.name} exit", still(node.returned)
    elif isinstance(node, Exchange):
        yield node.send.name, still(values_of(node.send))
        if node.reply is not None:
            document = node.reply.values.get("json")
            answers = isinstance(document, dict) and document.get("id") == node.id
            yield node.reply.name, {**still(values_of(node.reply)), "answers": answers}
    else:
        yield node.event.name, still(values_of(node.event))


def is_whole(node: Call | Span | Exchange | Point) -> bool:
    if isinstance(node, Exchange):
        return node.reply is not None
    return not isinstance(node, Span) or node.returned is not None


def agrees(found: Json, right: Json) -> bool:
    """Whether each value is right or unavailable."""
    if is_unavailable(found):
        return True
    if isinstance(found, dict) and isinstance(right, dict):
        return all(
            is_unavailable(value) or (name in right and agrees(value, right[name]))
            for name, value in found.items()
        )
    if isinstance(found, list) and isinstance(right, list):
        return len(found) == len(right) and all(map(agrees, found, right))
    return bool(found == right)


def leaves(value: Json) -> int:
    if isinstance(value, dict) and not is_unavailable(value):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


@dataclass
class Judged:
    """What a trace has. facts: by name and values as JSON, how often it has them.

    calls: recorded. whole: of these. orders: the names of the facts in whole calls
    switched_off: probes, by the reason
    """

    facts: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: int = 0
    whole: int = 0
    orders: set[tuple[str, ...]] = field(default_factory=set)
    dropped: int = 0
    switched_off: dict[str, list[str]] = field(default_factory=dict)

    @property
    def values(self) -> int:
        return sum(times * leaves(json.loads(fact)) for (_, fact), times in self.facts.items())

    @property
    def unavailable(self) -> int:
        return sum(times * fact.count('{"unavailable"') for (_, fact), times in self.facts.items())

    def wrong(self, right: Judged) -> Counter[tuple[str, str]]:
        """Return what it has that another has not.

        Where events are lost or probes switched off, values may be unavailable.
        """
        return Counter(
            {
                (name, fact): times
                for (name, fact), times in self.facts.items()
                if (name, fact) not in right.facts
                and not (
                    (self.dropped or self.switched_off)
                    and any(
                        agrees(json.loads(fact), json.loads(known))
                        for other, known in right.facts
                        if other == name
                    )
                )
            }
        )


def judge(output: Path) -> Judged:
    found = Judged()
    with TraceStream(output) as trace:
        for node in CallBuilder().everything(trace):
            nodes = [*node.nodes()] if isinstance(node, Call) else [node]
            facts = tuple(
                (name, json.dumps(values, sort_keys=True))
                for one in nodes
                for name, values in facts_of(one)
            )
            found.facts.update(facts)
            if isinstance(node, Call):
                found.calls += 1
                if node.complete and all(map(is_whole, nodes)):
                    found.whole += 1
                    found.orders.add(tuple(name for name, _ in facts))
            elif isinstance(node, Point) and node.event.name == "api.failed":
                found.calls += 1
                found.whole += 1
        assert trace.footer is not None
        found.dropped = trace.footer["dropped"]
        losses = [f"{found.dropped} events were dropped while it was recorded"]
        assert trace.problems == losses * (found.dropped > 0), trace.problems
        for one in trace.switched_off:
            found.switched_off.setdefault(one["why"], []).append(one["name"])
    return found


def run(name: str, lab: Lab, calls: int, clients: int = CLIENTS) -> Judged:
    """A storm. Raises: AssertionError if the daemon or the trace is not as it must be."""
    storm, pid = STORMS[name], lab.pid
    with TemporaryDirectory(dir="/var/tmp") as place:
        folder = Path(place)
        quiet = Storm(storm.recipe, storm.kind)
        traced(quiet, lab, 1, 5, folder)
        right = judge(folder / "t.jsonl")
        assert (right.whole, right.dropped, right.switched_off) == (5, 0, {}), right
        (folder / "t.jsonl").unlink()
        before = untraced(storm, lab, clients, max(calls // 10, clients), folder)
        made, usage, status = traced(storm, lab, clients, calls, folder)
        found = judge(folder / "t.jsonl")
        size = (folder / "t.jsonl").stat().st_size
    wrong, odd = found.wrong(right), found.orders - right.orders
    off = [f"{', '.join(names)} ({why})" for why, names in found.switched_off.items()]
    print(
        f"{name}: {clients} clients, {made.count:,} calls: {before.rate:,.0f} a second untraced, "
        f"{made.rate:,.0f} traced",
        f"  tracer: {usage.share(made):.0%} of a processor meanwhile, {usage.seconds:.1f} s in all "
        f"({usage.seconds / made.count * 1000:.2f} ms a call); at most {usage.memory >> 20} MiB of "
        f"memory and {usage.files >> 20} MiB of files beside the trace of {size >> 20} MiB",
        f"  trace: {found.calls:,} calls, {found.whole:,} of them whole; {found.dropped:,} events "
        f"lost; {found.values:,} values, {found.unavailable:,} of them unavailable, in "
        f"{sum(found.facts.values()):,} facts, {sum(wrong.values())} of them wrong; "
        f"switched off: {'; '.join(off) or 'nothing'}",
        sep="\n",
        flush=True,
    )
    assert status == (INCOMPLETE if found.dropped else DONE), status
    assert made.answers.keys() == before.answers.keys(), (made.answers, before.answers)
    assert not wrong, [*wrong][:3]
    if not found.switched_off:
        assert not odd, [*odd][:1]
        assert found.whole == made.count or found.dropped > 0, "calls are missing in silence"
    assert unharmed(lab, pid), "the daemon has ended"
    return found


def start_guests(lab: Lab, count: int, folder: Path) -> None:
    """Start so many further guests, which have no disk and never run."""
    for number in range(count):
        name = f"storm{number}"
        lab.define(name, folder / f"{name}.xml", "")
        lab.virsh_checked("start", "--paused", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--guests", type=int, default=0, help="besides that of the lab")
    parser.add_argument("names", nargs="*", help=f"beginnings of {', '.join(STORMS)}")
    args = parser.parse_args()
    failed = False
    with LabWhileItLives() as labs, TemporaryDirectory(dir="/var/tmp") as folder:
        start_guests(labs.up(), args.guests, Path(folder))
        for name in STORMS:
            if not args.names or name.startswith(tuple(args.names)):
                try:
                    found = run(name, labs.up(), args.calls, args.clients)
                    assert (found.dropped > 0) >= STORMS[name].loses, "no event was lost"
                except AssertionError as error:
                    failed = True
                    print(f"{name}: {error}"[:4000], flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
