"""Images of a small program: its threads without GDB, beside what GDB says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import backtraces
from tests.support.paths import REPOSITORY
from virtrace.image.core import CoreImage
from virtrace.image.live import LiveImage
from virtrace.image.model import Thread
from virtrace.image.process import inspect
from virtrace.image.unwind import BY_ITS_CALL, BY_REGISTERS, BY_UNWINDING, StackTrace, Unwinder

# With glibc 2.42 and later, the stacks of threads share one mapping, and each copy of one is cut.
pytestmark = pytest.mark.matrix

SOURCE = REPOSITORY / "tests" / "gdb" / "program" / "threads.c"
# The main thread, and threads deep in a recursion, in a function whose frame is found by its call,
# in a signal handler, at a mutex, and in a function whose frame expressions describe.
STILL = 6
KERNEL_SECONDS = 60.0


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("threads") / "threads"
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run(["gcc", *flags, SOURCE, "-o", program], check=True)
    subprocess.run(["strip", program], check=True)
    return program


@contextmanager
def running(program: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, once all of its threads stand."""
    pipe = subprocess.PIPE
    with subprocess.Popen([program, *arguments], stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@contextmanager
def image_of(pid: int) -> Iterator[LiveImage]:
    with LiveImage(inspect(pid)) as image:
        yield image


def until_still(image: LiveImage) -> None:
    """Wait until the threads sleep: each says that it stands just before it does."""
    end = time.monotonic() + KERNEL_SECONDS
    while not all(thread.waits_in for thread in image.threads()):
        assert time.monotonic() < end


def test_every_frame_is_that_of_gdb(threads: Path) -> None:
    with running(threads) as process, image_of(process.pid) as image:
        until_still(image)
        ours = backtraces.of_image(image)
        theirs = backtraces.of_gdb("-p", str(process.pid))
    found, frames, registers = backtraces.differences(ours, theirs)
    assert found == []
    assert len(ours) == STILL
    # More than half of them in the recursion; of its registers most are saved.
    assert frames > 40
    assert registers > 100


def test_how_each_frame_is_known(threads: Path) -> None:
    with running(threads) as process, image_of(process.pid) as image:
        until_still(image)
        ours = backtraces.of_image(image)
    known = [[frame.known_by for frame in found.frames] for found in ours.values()]
    assert all(names[0] == BY_REGISTERS for names in known)
    inferred = [names for names in known if BY_ITS_CALL in names]
    # poll, the function with a frame of no fixed size, and all that lies beyond it.
    assert [names[1:] for names in inferred] == [[BY_ITS_CALL] * 4]
    assert all(set(names[1:]) == {BY_UNWINDING} for names in known if names not in inferred)


def test_a_look_wakes_and_stops_nobody(threads: Path) -> None:
    with running(threads) as process, image_of(process.pid) as image:
        until_still(image)
        before = scheduled(process.pid)
        for _ in range(20):
            assert {thread.state for thread in image.threads()} == {"S"}
        # A thread that is stopped or traced has to run for it.
        assert scheduled(process.pid) == before
        assert "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text()


def scheduled(pid: int) -> dict[str, list[str]]:
    """How often a processor took up each thread, and for how long."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {task.name: (task / "schedstat").read_text().split() for task in tasks}


def test_what_moves_is_given_only_where_it_stood_still(threads: Path) -> None:
    """It waits in one of two places; a mixture of both, or half of one, would be seen."""
    with running(threads, "moving") as process, image_of(process.pid) as image:
        unwinder = Unwinder(image)
        moving: list[tuple[Thread, StackTrace]] = []
        end = time.monotonic() + KERNEL_SECONDS
        while time.monotonic() < end:
            by_name = {thread.name: thread for thread in image.threads()}
            computing = by_name["computing"]
            assert (dict(computing.registers.known), computing.waits_in) == ({}, None)
            assert computing.registers.missing in ("it was running", "it ran while it was read")
            assert unwinder.backtrace(computing).frames == ()
            moving.append((by_name["moving"], unwinder.backtrace(by_name["moving"])))
            if len(ways(moving)) == 2 and len(moving) > 100:
                break
    for thread, found in moving:
        if thread.waits_in is None:
            assert found.frames == ()
            assert thread.registers.missing in ("it was running", "it ran while it was read")
            assert not thread.stack.data
        else:
            assert found.ended is None
    assert {len(way) for way in ways(moving)} == {6, 11}


def ways(moving: list[tuple[Thread, StackTrace]]) -> set[tuple[int | None, ...]]:
    """The functions of each backtrace."""
    return {tuple(frame.function for frame in found.frames) for _, found in moving if found.frames}


def test_two_calls_of_a_function_prove_no_frame(threads: Path) -> None:
    with running(threads, "twice") as process, image_of(process.pid) as image:
        until_still(image)
        [twice] = [thread for thread in image.threads() if thread.name == "twice"]
        found = Unwinder(image).backtrace(twice)
    assert found.ended is not None
    assert re.fullmatch(
        "rbp is not known: no function further in saved it; and the stack has 2 return addresses "
        "behind calls of 0x[0-9a-f]+",
        found.ended,
    )
    # poll, and the function that called it.
    assert [frame.cfa is None for frame in found.frames] == [False, True]


@pytest.fixture(scope="module")
def core(threads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    with running(threads) as process, image_of(process.pid) as image:
        until_still(image)
        gcore = ("gcore", "-o", folder / "core", str(process.pid))
        subprocess.run(gcore, check=True, capture_output=True)
    return folder / f"core.{process.pid}"


def rebuilt(file: Path) -> None:
    """Another program, which has a build-id of its own."""
    source = file.with_suffix(".c")
    source.write_text("int main(void) { return 7; }")
    subprocess.run(["gcc", source, "-o", file], check=True)


def of_another_processor(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        (Path.unlink, "cannot read {file}: No such file or directory"),
        (
            rebuilt,
            "{file} is not proven to be the file that was mapped: the program has another one in "
            "memory",
        ),
        (of_another_processor, "frames of aarch64 are not understood, only of x86_64"),
    ],
    ids=["missing", "other", "aarch64"],
)
def test_a_file_that_cannot_be_believed_ends_a_backtrace(
    core: Path, threads: Path, tmp_path: Path, change: Callable[[Path], None], ended: str
) -> None:
    """Libc's code is the innermost, the program's the one after it."""
    for module in CoreImage(core).program.modules:
        copy = tmp_path / module.path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module.path, copy)
    change(tmp_path / str(threads).lstrip("/"))
    found = backtraces.of_image(CoreImage(core, tmp_path))
    assert {trace.ended for trace in found.values()} == {ended.format(file=threads)}
    assert {len(trace.frames) for trace in found.values()} == {2, 3}


def test_every_frame_of_a_core_is_that_of_gdb(core: Path, threads: Path) -> None:
    image = CoreImage(core)
    assert image.pid == int(core.suffix[1:])
    assert image.program.exe == str(threads)
    ours = backtraces.of_image(image)
    found, frames, registers = backtraces.differences(ours, backtraces.of_gdb(threads, core))
    assert found == []
    assert len(ours) == STILL
    assert frames > 40
    # A core knows the registers of every thread.
    assert registers == frames * len(backtraces.KEPT)
