"""Structs that QEMU's own answers must confirm; one that they do not is unavailable."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from virtrace.binary.ctype import Struct
from virtrace.engine.confirm import settle
from virtrace.plan.capture import Unconfirmed
from virtrace.targets import LIBVIRT

COUNTERS = (712, 17435136, 130, 418816, 527027278, 86798718, 20, 94396427)
CAPACITY, PHYSICAL, HIGHEST = 2147483648, 1717986918, 32870912
PLAIN = struct.pack("<11Q?7xQ", *COUNTERS, CAPACITY, PHYSICAL, HIGHEST, True, 0)
GOBJECT = struct.pack("<QQQ", 0x7F0000001000, 1, 0) + PLAIN
STATS = {
    **dict(
        zip(
            (
                *("rd_req", "rd_bytes", "wr_req", "wr_bytes"),
                *("rd_total_times", "wr_total_times", "flush_req", "flush_total_times"),
            ),
            COUNTERS,
        )
    ),
    "capacity": CAPACITY,
    "physical": PHYSICAL,
    "wr_highest_offset": HIGHEST,
    "wr_highest_offset_valid": True,
    "write_threshold": 0,
}


def exchanges(**changes: Any) -> list[tuple[str, Any]]:
    """What QEMU answers of two disks, the second of which is the one meant."""
    names = (
        *("rd_operations", "rd_bytes", "wr_operations", "wr_bytes"),
        *("rd_total_time_ns", "wr_total_time_ns", "flush_operations", "flush_total_time_ns"),
    )
    device: dict[str, Any] = {"stats": dict(zip(names, COUNTERS))}
    device["parent"] = {"stats": {"wr_highest_offset": HIGHEST}}
    device.update(changes)
    other = {"stats": dict.fromkeys(names, 0), "parent": {"stats": {"wr_highest_offset": 0}}}
    nodes = [
        {"image": {"virtual-size": 5, "actual-size": 5}, "write_threshold": 0},
        {"image": {"virtual-size": CAPACITY, "actual-size": PHYSICAL}, "write_threshold": 0},
    ]
    return [("query-blockstats", [other, device]), ("query-named-block-nodes", nodes)]


def on_the_legacy_path(said: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same of a QEMU that was started with -drive; a drive without a medium has no image."""
    (_, devices), (_, nodes) = said
    drives = [{"device": "cd"}, *({"device": "drive", "inserted": node} for node in nodes)]
    return [("query-blockstats", devices), ("query-block", drives)]


def settled(raw: bytes, said: list[tuple[str, Any]]) -> Any:
    layout = LIBVIRT.type_named("qemuBlockStats")
    assert isinstance(layout, Struct)
    # As it is read: as much as the largest layout takes.
    value = Unconfirmed(layout, raw.ljust(128, b"\x5a"))
    return settle({"stats": value, "result": 0}, said)["stats"]


@pytest.mark.parametrize("raw", [PLAIN, GOBJECT], ids=["plain", "gobject"])
def test_the_layout_that_qemu_agrees_with(raw: bytes) -> None:
    assert settled(raw, exchanges()) == STATS


@pytest.mark.parametrize("raw", [PLAIN, GOBJECT], ids=["plain", "gobject"])
def test_a_qemu_that_is_asked_by_query_block(raw: bytes) -> None:
    said = on_the_legacy_path(exchanges())
    assert settled(raw, said) == STATS
    for at in range(len(raw) - len(PLAIN), len(raw) - 16, 8):
        wrong = bytearray(raw)
        wrong[at] ^= 1
        assert set(settled(bytes(wrong), said)) == {"unavailable"}
    # libvirt does not take this over.
    said[1][1][2]["inserted"]["write_threshold"] = 5
    assert settled(raw, said)["write_threshold"] == 0


def test_half_of_one_set_of_commands_and_half_of_another_are_none() -> None:
    (stats, nodes), (_, drives) = exchanges(), on_the_legacy_path(exchanges())
    other = ("query-named-block-nodes", nodes[1][:1])
    assert set(settled(PLAIN, [stats, other])) == {"unavailable"}
    assert set(settled(PLAIN, [nodes, drives])) == {"unavailable"}


def test_without_an_actual_size_the_image_is_taken_for_full() -> None:
    said = exchanges()
    del said[1][1][1]["image"]["actual-size"]
    assert set(settled(PLAIN, said)) == {"unavailable"}
    full = struct.pack("<11Q?7xQ", *COUNTERS, CAPACITY, CAPACITY, HIGHEST, True, 0)
    assert settled(full, said)["physical"] == CAPACITY
    # Which is not so where QEMU can tell.
    assert set(settled(full, exchanges())) == {"unavailable"}


@pytest.mark.parametrize("shift", [8, 16, 32, 40])
def test_a_layout_of_the_future_is_unavailable(shift: int) -> None:
    value = settled(bytes(shift) + PLAIN, exchanges())
    assert set(value) == {"unavailable"}
    assert value["unavailable"].startswith("0 of 2 known layouts of qemuBlockStats agree")


def test_one_number_that_differs_is_enough() -> None:
    for at in range(0, 88, 8):
        raw = bytearray(PLAIN)
        raw[at] ^= 1
        assert set(settled(bytes(raw), exchanges())) == {"unavailable"}


def test_a_boolean_says_whether_the_key_is_there() -> None:
    without = exchanges(parent=None)
    assert set(settled(PLAIN, without)) == {"unavailable"}
    never = struct.pack("<11Q?7xQ", *COUNTERS, CAPACITY, PHYSICAL, 0, False, 0)
    assert settled(never, without)["wr_highest_offset_valid"] is False


@pytest.mark.parametrize("gobject", [False, True])
def test_where_sizes_were_not_asked_for_they_are_nought(gobject: bool) -> None:
    raw = bytes(24 * gobject) + struct.pack("<11Q?7xQ", *COUNTERS, 0, 0, HIGHEST, True, 0)
    found = settled(raw, exchanges()[:1])
    assert found == {**STATS, "capacity": 0, "physical": 0, "write_threshold": 0}
    for at in range(24 * gobject, len(raw) - 16, 8):
        wrong = bytearray(raw)
        wrong[at] ^= 1
        assert set(settled(bytes(wrong), exchanges()[:1])) == {"unavailable"}


def test_a_disk_that_was_never_used_reads_the_same_by_any_layout() -> None:
    said = [("query-blockstats", [{"stats": dict.fromkeys(exchanges()[0][1][0]["stats"], 0)}])]
    found = settled(bytes(128), said)
    assert found == {name: False if name.endswith("valid") else 0 for name in STATS}


def test_sizes_that_were_asked_for_are_not_nought() -> None:
    """A layout of the future, of a disk that was never used: new fields stand where sizes were."""
    raw = struct.pack("<8Q", *[0] * 8) + bytes(48) + PLAIN[64:]
    unused = dict.fromkeys(exchanges()[0][1][0]["stats"], 0)
    said = exchanges(stats=unused, parent=None)
    assert "unavailable" in settled(raw, said)
    assert "unavailable" in settled(raw, on_the_legacy_path(said))
    # Where nobody asked, they are.
    assert settled(raw, said[:1])["capacity"] == 0


def test_without_an_answer_there_is_no_value() -> None:
    assert set(settled(PLAIN, [])) == {"unavailable"}
    assert set(settled(PLAIN, exchanges()[:1])) == {"unavailable"}
    assert set(settled(PLAIN, [("query-blockstats", {"class": "GenericError"})])) == {"unavailable"}


def test_other_values_stay() -> None:
    assert settle({"result": -1, "disk": "vda"}, []) == {"result": -1, "disk": "vda"}
