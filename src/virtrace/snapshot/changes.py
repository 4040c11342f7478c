"""What has changed between two snapshots of a daemon: what moved, what stays, what grew."""

from datetime import datetime
from typing import TypedDict

from virtrace.snapshot.format import AT_REST, Snapshot, ThreadRecord, VerdictRecord


class Count(TypedDict):
    """A number in both snapshots."""

    name: str
    before: int
    after: int


class Changes(TypedDict):
    """What has changed from one snapshot to a later one.

    seconds: between them. same_daemon: whether both are of one process.
    verdicts: those of the later one; new: which of them the earlier one has not; gone: what it had.
    stuck: threads that wait for the very same thing; ended, began: calls.
    counts: numbers that differ, the largest growth first.
    """

    seconds: float
    same_daemon: bool
    verdicts: list[VerdictRecord]
    new: list[str]
    gone: list[str]
    stuck: list[ThreadRecord]
    ended: list[ThreadRecord]
    began: list[ThreadRecord]
    counts: list[Count]


def changes(before: Snapshot, after: Snapshot) -> Changes:
    """Compare two snapshots."""
    earlier, later = _working(before), _working(after)
    names_before = [verdict["verdict"] for verdict in before["verdicts"]]
    names_after = [verdict["verdict"] for verdict in after["verdicts"]]
    counts = [
        Count(name=name, before=old, after=new)
        for name, (old, new) in _both(_numbers(before), _numbers(after)).items()
        if old != new
    ]
    return {
        "seconds": _time(after) - _time(before),
        "same_daemon": before["daemon"]["pid"] == after["daemon"]["pid"],
        "verdicts": after["verdicts"],
        "new": [name for name in names_after if name not in names_before],
        "gone": [name for name in names_before if name not in names_after],
        "stuck": [thread for key, thread in later.items() if key in earlier],
        "ended": [thread for key, thread in earlier.items() if key not in later],
        "began": [thread for key, thread in later.items() if key not in earlier],
        "counts": sorted(counts, key=lambda one: (one["before"] - one["after"], one["name"])),
    }


def _working(snapshot: Snapshot) -> dict[tuple[object, ...], ThreadRecord]:
    """The threads that do something, by what makes it the same thing later."""
    found: dict[tuple[object, ...], ThreadRecord] = {}
    for thread in snapshot["threads"]:
        wait, request, client = thread["wait"], thread["request"], thread["client"]
        if wait["kind"] in AT_REST:
            continue
        command = wait["command"]
        found[
            thread["tid"],
            None if request is None else request["serial"],
            None if client is None else client["pid"],
            wait["kind"],
            None if command is None else command["id"],
        ] = thread
    return found


def _numbers(snapshot: Snapshot) -> dict[str, int]:
    numbers = {
        "threads": len(snapshot["threads"]),
        "domains": len(snapshot["domains"]),
        **{f"objects {name}": count for name, count in snapshot["objects"].items()},
        **{f"bytes of {name}": count for name, count in snapshot["object_bytes"].items()},
    }
    for server in snapshot["servers"]:
        numbers[f"clients of {server['name']}"] = server["clients"]
        pool = server["pool"]
        if pool is not None:
            numbers[f"workers of {server['name']}"] = pool["workers"]
            numbers[f"calls queued in {server['name']}"] = len(pool["queued"])
    return numbers


def _both(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    names = dict.fromkeys((*before, *after))
    return {name: (before.get(name, 0), after.get(name, 0)) for name in names}


def _time(snapshot: Snapshot) -> float:
    return datetime.fromisoformat(snapshot["taken"]).timestamp()
