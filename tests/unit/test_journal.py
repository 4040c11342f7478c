"""What is taken back out of a process, and what is left alone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from virtrace.guard import restore
from virtrace.guard.journal import Mark, Noted, Place

CC = b"\xcc"


@pytest.fixture
def memory() -> Iterator[int]:
    """Of this very process, as the guard has it of a daemon."""
    opened = os.open("/proc/self/mem", os.O_RDWR)
    yield opened
    os.close(opened)


def test_only_what_is_still_ours_is_taken_back(memory: int) -> None:
    code = ctypes.create_string_buffer(b"MARK\xcc\x90\xcc")
    start = ctypes.addressof(code)
    places = tuple(Place(start + at, b"U", CC) for at in (4, 5, 6))
    noted = Noted((Mark(start, b"MARK"),), places)
    # Somebody else has written over the second.
    assert noted.left_behind(memory) == [places[0], places[2]]
    restore.take_back(memory, noted.left_behind(memory))
    assert code.raw[:7] == b"MARKU\x90U"
    assert noted.left_behind(memory) == []


def test_nothing_is_written_where_the_module_has_gone(memory: int) -> None:
    code = ctypes.create_string_buffer(b"KRAM\xcc")
    start = ctypes.addressof(code)
    assert Noted((Mark(start, b"MARK"),), (Place(start + 4, b"U", CC),)).left_behind(memory) == []
    # Nor where nothing is mapped.
    assert Noted((Mark(0, b"MARK"),), (Place(start + 4, b"U", CC),)).left_behind(memory) == []
