"""A snapshot as a page: the answer, the graph, the threads; whole, closed and escaped."""

from __future__ import annotations

import json
import re
import stat
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.command import virtrace
from tests.support.pages import HOSTILE
from tests.support.snapshots import deadlock, domain, job, snapshot, stopped_qemu, thread
from tests.unit.test_page import Page
from virtrace.report.snapshot_page import snapshot_page
from virtrace.report.wait_graph import graph_svg

Edge = tuple[str, str]


def drawn(document: Any) -> list[ElementTree.Element]:
    svg = graph_svg(document)
    assert svg is not None
    return [*ElementTree.fromstring(svg)]


def boxes(document: Any) -> dict[str, tuple[float, float]]:
    """The place of each box, by its text."""
    found = {}
    for group in drawn(document):
        if group.tag == "g":
            (rect,) = group.findall("rect")
            text = " / ".join(line.text or "" for line in group.findall("text"))
            found[text] = float(rect.attrib["x"]), float(rect.attrib["y"])
    return found


def arrows(document: Any) -> set[Edge]:
    """Who waits for whom: the first word of the last line of each box, as it is drawn."""
    rects = []
    for group in drawn(document):
        if group.tag == "g":
            (rect,) = group.findall("rect")
            x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            text = " / ".join(line.text or "" for line in group.findall("text"))
            rects.append((x, y, x + width, y + height, text))
    found = set()
    for path in drawn(document):
        if path.attrib.get("class") == "arrow":
            start = re.match(r"M([\d.]+) ([\d.]+)", path.attrib["d"])
            end = re.search(r" ([\d.]+)H([\d.]+)$", path.attrib["d"])
            assert start is not None
            assert end is not None
            waiter = [
                text
                for x, top, _, bottom, text in rects
                if x == float(start[1]) and top <= float(start[2]) <= bottom
            ]
            holder = [
                text
                for _, top, right, bottom, text in rects
                if abs(right - float(end[2])) < 0.2 and top <= float(end[1]) <= bottom
            ]
            found.add((waiter[0], holder[0]))
    return found


def called(tid: int) -> str:
    return f"virDomainSave / domain vm1, thread {tid} / for process 5"


QEMU = "QEMU of vm1 / process 9 / stopped by a signal"
MONITOR = "monitor of vm1 / query-blockstats"


def test_a_stopped_qemu() -> None:
    document = stopped_qemu()
    assert arrows(document) == {
        (MONITOR, QEMU),
        (called(11), MONITOR),
        ("job query of vm1", called(11)),
        *((called(tid), "job query of vm1") for tid in (20, 21, 22)),
    }
    places = boxes(document)
    # The cause is at the top left, and each arrow leads to the left.
    assert min(places.values()) == places[QEMU]
    assert all(places[holder][0] < places[waiter][0] for waiter, holder in arrows(document))


def test_a_deadlock_is_drawn_once_and_ends() -> None:
    assert arrows(deadlock()) == {
        ("the lock of pool b", called(11)),
        (called(12), "the lock of pool b"),
        (called(13), "the lock of pool b"),
        ("the lock of pool a", called(12)),
        ("thread 11 again: / a deadlock", "the lock of pool a"),
    }


def test_a_job_without_a_thread_is_the_root() -> None:
    document = snapshot(
        thread(11, "job", domain="vm1"),
        thread(12, "job", domain="vm1"),
        domains=[domain("vm1", job(None, "async job", "migration in"))],
    )
    held = "async job migration in of vm1 / held by no thread"
    assert arrows(document) == {(called(11), held), (called(12), held)}


def test_two_locks_without_an_owner_are_two() -> None:
    document = snapshot(*(thread(tid, "mutex", what="a lock") for tid in (11, 12)))
    assert len(boxes(document)) == 3
    assert len(arrows(document)) == 2


def test_other_waits() -> None:
    child = {"pid": 77, "command": "/etc/libvirt/hooks/qemu vm1", "state": "S"}
    mount = {"point": "/mnt", "type": "nfs4"}
    document = snapshot(
        thread(11, "child", children=[child]),
        thread(12, "system call", system_call="openat", file="/mnt/x", mount=mount),
        thread(13, "computes"),
        thread(15, "peer", children=[{**child, "pid": 78, "command": "virtlogd"}]),
        thread(14, "idle"),
    )
    assert arrows(document) == {
        (called(11), "process 77 (S) / /etc/libvirt/hooks/qemu vm1"),
        (called(15), "process 78 (S) / virtlogd"),
        (called(12), "the kernel, in openat / /mnt/x / nfs4 at /mnt"),
    }
    assert called(13) in boxes(document)
    assert called(14) not in boxes(document)


def test_nobody_waits() -> None:
    document: Any = snapshot(thread(11, "idle"))
    assert graph_svg(document) is None
    assert "Every thread waits for work." in snapshot_page(document)


def test_many_are_folded_and_counted() -> None:
    document = stopped_qemu(1000)
    places = boxes(document)
    assert "and 988 more threads" in places
    assert len(places) < 20


@pytest.mark.parametrize("length", [30, 20_000])
def test_a_long_chain_is_bounded(length: int) -> None:
    threads = [
        thread(tid, "mutex", what=f"lock {tid}", owner=tid - 1 if tid > 1 else None)
        for tid in range(1, length + 1)
    ]
    document = snapshot(*threads)
    began = time.process_time()
    places = boxes(document)
    assert time.process_time() - began < 5
    assert len(places) < 20
    assert any(re.fullmatch("and [0-9,]+ more threads", text) for text in places)


def everything() -> dict[str, Any]:
    document = stopped_qemu()
    document["threads"] += [thread(30, "child", children=[
        {"pid": 7, "command": "/etc/hook", "state": "S"}])]  # fmt: skip
    document["networks"] = [
        {"name": "lan", "dnsmasq": 8, "state": "T"},
        {"name": "dmz", "dnsmasq": None, "state": None},
    ]
    document["notes"] = ["something was not found"]
    document["verdicts"] *= 2
    return document


def poisoned(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: poisoned(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, key) for one in value]
    fixed = ("type", "format", "taken", "kind", "unavailable")
    return HOSTILE if isinstance(value, str) and key not in fixed else value


def test_the_page_has_the_answer_first_and_every_thread() -> None:
    document: Any = everything()
    page = Page(snapshot_page(document))
    assert page.texts["h1"] == ["virDomainSave on vm1 waits."]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {f"thread-{one['tid']}" for one in document["threads"]} <= set(ids)
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert "open64+0x55 (libc.so.6)" in page.text
    words = re.sub("<[^>]+>", "", page.text)
    assert "network lan: dnsmasq: process 8, stopped by a signal\n" in words
    assert "network dmz: dnsmasq does not run\n" in words


def test_hostile_text_is_escaped() -> None:
    page = Page(snapshot_page(poisoned(everything())))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert not {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed"}


def test_the_command_writes_a_private_page(tmp_path: Path) -> None:
    file, page = tmp_path / "now.snapshot", tmp_path / "page.html"
    file.write_text(json.dumps(everything(), separators=(",", ":")))
    done = virtrace("show", "--html", page, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {page}; like the snapshot, it can contain secrets")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert Page(page.read_text()).texts["h1"] == ["virDomainSave on vm1 waits."]
    assert "{&#34;execute&#34;:&#34;query-blockstats&#34;}" in page.read_text()


def test_each_frame_has_its_line() -> None:
    document: Any = snapshot(
        thread(11, "computes") | {"frames": ["poll+0x4f (libc.so.6)", "a\nb+0x1"]}
    )
    assert "<pre>poll+0x4f (libc.so.6)\na\\nb+0x1\n</pre>" in snapshot_page(document)
