"""A snapshot as one page for a browser: the answer, the graph, the threads with their stacks."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from virtrace.report.pieces import Piece
from virtrace.report.snapshot import (
    at_work,
    client_text,
    daemon_pieces,
    domain_pieces,
    neighbour_pieces,
    network_pieces,
    server_pieces,
    taken_at,
    thread_pieces,
)
from virtrace.report.template import joined, prepare, rendered
from virtrace.report.wait_graph import graph_svg
from virtrace.snapshot.format import WELL, Snapshot, ThreadRecord
from virtrace.trace.format import Record

_TEMPLATE = "snapshot.html"


def prepare_snapshot_page() -> None:
    """Read everything that a page needs except the snapshot."""
    prepare(_TEMPLATE)


def snapshot_page(snapshot: Snapshot) -> str:
    """Return the whole document."""
    answer, *others = snapshot["verdicts"]
    busy = at_work(snapshot)
    shown = {thread["tid"] for thread in busy}
    resting = [thread for thread in snapshot["threads"] if thread["tid"] not in shown]
    graph = graph_svg(snapshot)
    return rendered(
        _TEMPLATE,
        title=answer["says"],
        searched="threads",
        found="threads",
        role="" if answer["verdict"] in WELL else "red",
        daemon=joined(daemon_pieces(snapshot)),
        answer=answer,
        others=others,
        graph=None if graph is None else Markup(graph),
        busy=[_thread(thread, is_first=thread is busy[0]) for thread in busy],
        resting=[_thread(thread, is_first=False) for thread in resting],
        state=[joined(line) for line in _state(snapshot)],
        notes=snapshot["notes"],
        objects=sorted(
            (name, f"{number:,}, {snapshot['object_bytes'].get(name, 0):,} bytes")
            for name, number in snapshot["objects"].items()
        ),
        facts=list(_facts(snapshot)),
    )


def _thread(thread: ThreadRecord, *, is_first: bool) -> Record:
    command = thread["wait"]["command"]
    return {
        "tid": thread["tid"],
        "title": joined(thread_pieces(thread)),
        "doing": thread["doing"],
        "client": client_text(thread),
        "command": None if command is None else command["text"],
        "fields": list(_fields(thread)),
        "frames": thread["frames"],
        "frames_end": thread["frames_end"],
        "is_first": is_first,
    }


def _fields(thread: ThreadRecord) -> Iterator[tuple[str, str]]:
    yield "name", thread["name"] or "not known"
    yield "state", thread["state"] or "not known"
    if thread["asleep_s"] is not None:
        yield "asleep for", f"{thread['asleep_s']:,.1f} s"
    if thread["moved"] is not None:
        yield "ran between the looks", "yes" if thread["moved"] else "no"
    for child in thread["wait"]["children"]:
        yield f"process {child['pid']}", f"{child['command']}, state {child['state']}"


def _state(snapshot: Snapshot) -> Iterator[list[Piece]]:
    for domain in snapshot["domains"]:
        yield [("domain", "dim"), *domain_pieces(domain, taken_at(snapshot))]
    for server in snapshot["servers"]:
        yield [("server", "dim"), *server_pieces(server)]
    for neighbour in snapshot["neighbours"]:
        if neighbour["pid"] is not None:
            yield [("beside", "dim"), *neighbour_pieces(neighbour)]
    for network in snapshot.get("networks", ()):
        yield [("network", "dim"), *network_pieces(network)]
    for qemu in snapshot["qemus"]:
        traced = "" if qemu["tracer"] is None else f", held by debugger {qemu['tracer']}"
        threads = ", ".join(
            f"{one['name']} {one['state']} in {one['waits_in'] or 'user space'}"
            for one in qemu["threads"]
        )
        yield [("QEMU", "dim"), (f"{qemu['pid']}{traced}:", "bold"), (threads, "")]


def _facts(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    yield "taken", snapshot["taken"]
    yield "source", snapshot["source"]
    yield "kernel", f"{snapshot['host']['kernel']}, {snapshot['host']['machine']}"
    yield "process", f"{snapshot['daemon']['exe']}, pid {snapshot['daemon']['pid']}"
    program = snapshot["daemon"]["program"]
    yield program["name"], program["version"] or "of unknown version"
    yield "virtrace", f"{snapshot['tool']['virtrace']}, with Python {snapshot['tool']['python']}"
