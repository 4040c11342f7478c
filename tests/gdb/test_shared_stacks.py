"""Stacks of threads that share one mapping, as those of glibc 2.42 do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until
from virtrace.engine.stacks import Stacks
from virtrace.image.core import CoreImage
from virtrace.image.live import LiveImage
from virtrace.image.model import Thread
from virtrace.image.process import inspect, mappings, stacks_of
from virtrace.image.unwind import BY_ITS_CALL, Unwinder

SOURCE = REPOSITORY / "tests" / "gdb" / "program" / "shared_stacks.c"
# By thread id: where its stack begins and ends, in the order of memory.
Pieces = Mapping[int, "tuple[int, int]"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Pieces]]:
    program = tmp_path_factory.mktemp("shared") / "shared"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run(["gcc", *flags, SOURCE, "-o", program], check=True)
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"ready\n")
            told = [tuple(map(int, line.split())) for line in lines]
            yield process.pid, {tid: (start, end) for tid, start, end in told}
        finally:
            process.kill()


@pytest.fixture(params=["live", "core"])
def image(
    request: pytest.FixtureRequest, running: tuple[int, Pieces], tmp_path: Path
) -> Iterator[LiveImage | CoreImage]:
    pid, _ = running
    with LiveImage(inspect(pid)) as live:

        def all_stand() -> bool:
            return all(thread.waits_in for thread in live.threads())

        # Each says that it stands just before it does.
        wait_until(all_stand, "the threads to stand")
        if request.param == "live":
            yield live
            return
        gcore = ("gcore", "-o", tmp_path / "core", str(pid))
        subprocess.run(gcore, check=True, capture_output=True)
        yield CoreImage(tmp_path / f"core.{pid}")


def test_the_stacks_share_one_mapping(running: tuple[int, Pieces]) -> None:
    """What these tests are about."""
    pid, pieces = running
    first, *_, last = pieces.values()
    assert any(start <= first[0] and last[1] <= end for start, end in mappings(pid))


def test_a_copy_of_a_stack_ends_where_that_of_another_thread_begins(
    image: LiveImage | CoreImage, running: tuple[int, Pieces]
) -> None:
    _, pieces = running
    threads = by_id(image, pieces)
    for tid, (start, end) in pieces.items():
        copy = threads[tid].stack
        assert start <= copy.start < copy.start + len(copy.data) <= end
        assert not copy.is_cut


def test_a_frame_is_not_found_by_a_call_in_the_stack_of_another_thread(
    image: LiveImage | CoreImage, running: tuple[int, Pieces]
) -> None:
    _, pieces = running
    threads = by_id(image, pieces)
    unwinder = Unwinder(image)
    for number, tid in enumerate(pieces):
        found = unwinder.backtrace(threads[tid])
        start, end = pieces[tid]
        assert all(start < frame.cfa <= end for frame in found.frames if frame.cfa is not None)
        if isinstance(image, LiveImage):
            # A call by a pointer is no proof, and there is none in this stack but that.
            by_call = [frame.known_by for frame in found.frames].count(BY_ITS_CALL)
            assert (by_call > 0, found.ended is None) == (number % 2 == 1, number % 2 == 1)


def test_stacks_of_threads_have_numbers_of_their_own(running: tuple[int, Pieces]) -> None:
    pid, pieces = running
    stacks = Stacks(partial(stacks_of, pid))
    # In turns, from within each.
    numbers = [
        [stacks.number(tid, (start + end) // 2) for tid, (start, end) in pieces.items()]
        for _ in range(3)
    ]
    assert len({*numbers[0]}) == len(pieces)
    assert numbers == [numbers[0]] * 3


def by_id(image: LiveImage | CoreImage, pieces: Pieces) -> dict[int, Thread]:
    threads = {thread.tid: thread for thread in image.threads()}
    assert {*pieces} < {*threads}
    return threads
