"""A snapshot as text for a terminal: the answer, what to do, who waits for whom, the evidence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from virtrace.report.highlight import Style
from virtrace.report.lines import copyable, fold, label, labelled
from virtrace.report.pieces import Piece, listed, words
from virtrace.snapshot.changes import Changes
from virtrace.snapshot.format import (
    AT_REST,
    STATES,
    WELL,
    DomainRecord,
    JobRecord,
    NeighbourRecord,
    NetworkRecord,
    ServerRecord,
    Snapshot,
    ThreadRecord,
    VerdictRecord,
)
from virtrace.wording import count


def snapshot_lines(snapshot: Snapshot, style: Style, next_step: str | None) -> Iterator[str]:
    """Yield the report. next_step: a command that shows more."""
    for number, verdict in enumerate(snapshot["verdicts"]):
        if number == 1:
            yield ""
            yield from fold([("also:", "dim")], style)
        yield from _verdict(verdict, style, is_first=number == 0)
    busy = at_work(snapshot)
    if busy:
        yield ""
        yield from fold([("threads at work:", "dim")], style)
        for thread in busy:
            yield from _thread(thread, style)
    yield ""
    yield from _evidence(snapshot, style)
    if next_step is not None:
        yield copyable("next", next_step, style)


def _evidence(snapshot: Snapshot, style: Style) -> Iterator[str]:
    for domain in snapshot["domains"]:
        yield from labelled("domain", domain_pieces(domain, taken_at(snapshot)), style)
    for server in snapshot["servers"]:
        yield from labelled("server", server_pieces(server), style)
    for neighbour in snapshot["neighbours"]:
        if neighbour["pid"] is not None:
            yield from labelled("beside", neighbour_pieces(neighbour), style)
    for network in snapshot.get("networks", ()):
        yield from labelled("network", network_pieces(network), style)
    yield from labelled("at rest", resting_pieces(snapshot["threads"]), style)
    yield from labelled("daemon", daemon_pieces(snapshot), style)
    for note in snapshot["notes"]:
        yield from labelled("note", words(note, "yellow"), style)


def at_work(snapshot: Snapshot) -> list[ThreadRecord]:
    """The threads that are not at rest; what keeps others waiting comes before them."""
    order: dict[int | None, int] = {}
    for one in snapshot["verdicts"]:
        for tid in (one["thread"], *one["behind"]):
            order.setdefault(tid, len(order))
    busy = [thread for thread in snapshot["threads"] if thread["wait"]["kind"] not in AT_REST]
    return sorted(busy, key=lambda one: order.get(one["tid"], len(order)))


def taken_at(snapshot: Snapshot) -> float:
    """When the snapshot was taken, seconds since 1970."""
    return datetime.fromisoformat(snapshot["taken"]).timestamp()


def changes_lines(found: Changes, style: Style) -> Iterator[str]:
    """Yield what has changed between two snapshots."""
    if not found["same_daemon"]:
        yield from fold(words("The snapshots are of two processes.", "yellow"), style)
    stuck = count(len(found["stuck"]), "thread")
    yield from fold(
        words(
            f"In {found['seconds']:.0f} s, {stuck} stayed where {_it(found['stuck'])}, "
            f"{count(len(found['ended']), 'call')} ended, and "
            f"{count(len(found['began']), 'call')} began.",
            "red" if found["stuck"] else "green",
        ),
        style,
    )
    for number, verdict in enumerate(found["verdicts"]):
        if verdict["verdict"] in found["new"] or number == 0:
            yield from _verdict(verdict, style, is_first=False)
    for name in found["gone"]:
        yield from fold(words(f"no longer: {name}", "green"), style, "  ")
    for title, threads in (
        ("still there:", found["stuck"]),
        ("began:", found["began"]),
        ("ended:", found["ended"]),
    ):
        if threads:
            yield ""
            yield from fold([(title, "dim")], style)
            for thread in threads:
                yield from _thread(thread, style)
    if found["counts"]:
        yield ""
        yield from fold([("numbers that changed:", "dim")], style)
        for one in found["counts"]:
            grown = one["after"] - one["before"]
            change = f"{one['before']:,} -> {one['after']:,} ({grown:+,})"
            yield from fold(words(f"{one['name']}: {change}"), style, "  ", "    ")


def _it(threads: Sequence[ThreadRecord]) -> str:
    return "it was" if len(threads) == 1 else "they were"


def _verdict(verdict: VerdictRecord, style: Style, *, is_first: bool) -> Iterator[str]:
    colour = "green" if verdict["verdict"] in WELL else "red" if is_first else "yellow"
    if is_first:
        yield from fold(words(verdict["says"], colour), style)
        yield from labelled("means", words(verdict["means"]), style)
    else:
        yield from fold(words(verdict["says"], colour), style, "  ", "    ")
    for step in verdict["do"]:
        yield copyable("do", step["command"], style)
        yield from fold(words(step["effect"], "dim"), style, label(""), label(""))


def thread_pieces(thread: ThreadRecord) -> list[Piece]:
    """A thread's role, and the call that it serves."""
    pieces: list[Piece] = [(thread["role"], "")]
    if thread["api"] is not None:
        pieces.append((thread["api"], "cyan"))
    request = thread["request"]
    if request is not None and request["name"] is not None:
        given = [f"{name}={text}" for name, text in request["arguments"].items()]
        pieces += words(" ".join([f"{request['subject']} {request['name']}", *given]))
    return pieces


def client_text(thread: ThreadRecord) -> str | None:
    """For whom a thread works; None if that is not known."""
    client = thread["client"]
    if client is None:
        return None
    told = client["command"] or "a process that is gone"
    user = "" if client["user"] is None else f", user {client['user']}"
    return f"for {told} (process {client['pid']}{user})"


def _thread(thread: ThreadRecord, style: Style) -> Iterator[str]:
    pieces = [(f"{thread['tid']}", "bold"), *thread_pieces(thread)]
    yield from fold(pieces, style, "  ", "    ")
    yield from fold(words(thread["doing"]), style, "      ", "      ")
    command = thread["wait"]["command"]
    if command is not None:
        yield from fold(words(command["text"], "json"), style, "      ", "        ")
        if not command["sent"]:
            yield from fold(words("QEMU has not taken it yet", "yellow"), style, "      ")
    client = client_text(thread)
    if client is not None:
        yield from fold(words(client), style, "      ")
    if thread["moved"]:
        yield from fold(words("it ran meanwhile", "dim"), style, "      ")
    if style.full:
        for frame in thread["frames"]:
            yield from fold(words(frame, "dim"), style, "      ", "        ")
        if thread["frames_end"] is not None:
            yield from fold(words(thread["frames_end"], "yellow"), style, "      ", "        ")


def domain_pieces(domain: DomainRecord, taken: float) -> list[Piece]:
    pieces: list[Piece] = [(domain["name"], "bold")]
    if domain["qemu"] is not None:
        pieces += words(f"(id {domain['id']}, QEMU {domain['qemu']}):")
    elif domain["id"] is None:
        pieces[0] = (f"{domain['name']}:", "bold")
    elif domain["id"] >= 0:
        pieces += words(f"(id {domain['id']}):")
    else:
        pieces += words("(not running):")
    jobs = domain["jobs"]
    if isinstance(jobs, dict):
        return [*pieces, *words(f"jobs not known ({jobs['unavailable']})", "yellow")]
    if not jobs:
        return [*pieces, *words("no job")]
    return [*pieces, *words("; ".join(_job(job, taken) for job in jobs), "yellow")]


def _job(job: JobRecord, taken: float) -> str:
    held = "no thread" if job["owner"] is None else f"thread {job['owner']}"
    api = "" if job["api"] is None else f" ({job['api']})"
    since = time.strftime("%H:%M:%S", time.localtime(job["since"]))
    lasted = f"since {since}, {taken - job['since']:.1f} s"
    return f"{job['kind']} {job['work']}, held by {held}{api} {lasted}"


def server_pieces(server: ServerRecord) -> list[Piece]:
    pieces: list[Piece] = [(f"{server['name']}:", "bold")]
    most = server["most_clients"]
    pieces += words(count(server["clients"], "client") + (f" of {most:,}" if most else ""))
    pool = server["pool"]
    if pool is not None:
        pieces += words(
            f"| {pool['workers']} of {pool['most']} workers, {pool['free']} free | "
            f"{count(len(pool['queued']), 'call')} queued"
        )
    return pieces


def neighbour_pieces(neighbour: NeighbourRecord) -> list[Piece]:
    """Return what is said of a daemon that runs beside."""
    return _process_pieces(neighbour["name"], neighbour["pid"], neighbour["state"])


def network_pieces(network: NetworkRecord) -> list[Piece]:
    """Return what is said of a network."""
    about = f"{network['name']}: dnsmasq"
    if network["dnsmasq"] is None:
        return words(f"{about} does not run", "yellow")
    return _process_pieces(about, network["dnsmasq"], network["state"])


def _process_pieces(about: str, pid: int | None, letter: str | None) -> list[Piece]:
    state = STATES.get(letter or "")
    return words(f"{about}: process {pid}, {state or 'running'}", "yellow" if state else "")


def resting_pieces(threads: Sequence[ThreadRecord]) -> list[Piece]:
    found: dict[str, int] = {}
    for thread in threads:
        if thread["wait"]["kind"] in AT_REST:
            found[thread["role"]] = found.get(thread["role"], 0) + 1
    parts = [f"{number} x {role}" if number > 1 else role for role, number in found.items()]
    return listed(parts) if parts else words("no thread")


def daemon_pieces(snapshot: Snapshot) -> list[Piece]:
    daemon = snapshot["daemon"]
    version = daemon["program"]["version"] or "of unknown version"
    if snapshot["source"] == "text":
        return words("from a text")
    if snapshot["source"] == "core":
        return words(f"{daemon['exe']} {version}, process {daemon['pid']}, from a core")
    if not snapshot["seconds"]:
        # Only a debugger looks once.
        held = "it was looked at once, stopped by a debugger"
        return words(f"{daemon['exe']} {version}, process {daemon['pid']}; {held}")
    pauses = [ms for one in snapshot["threads"] if (ms := one["stopped_ms"]) is not None]
    harm = "it was not stopped for this"
    if pauses:
        harm = f"{count(len(pauses), 'thread')} of it stopped for at most {max(pauses):.1f} ms"
    return words(
        f"{daemon['exe']} {version}, process {daemon['pid']}; {harm}, and two looks were "
        f"{snapshot['seconds']:.1f} s apart"
    )
