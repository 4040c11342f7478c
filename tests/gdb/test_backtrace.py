"""The backtrace of a thread that another asks for, beside what that thread itself unwound."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.harness import Daemon, Tracing, events, gdb_command, trace
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from virtrace.errors import INCOMPLETE
from virtrace.image.process import Process, inspect
from virtrace.trace.format import Json, is_unavailable
from virtrace.trace.reader import read_trace

RAISING = REPOSITORY / "tests" / "faults" / "raising.py"

ASK = """\
virtrace: 1
name: ask
about: a
try: t
spans:
- prototype: bool virTestAsk(unsigned long long owner)
  module: libvirt.so.0
  root: true
  enter: {owner: owner, frames: backtrace(owner)}
  exit: {frames: backtrace(owner), result: return}
"""
FRAME = re.compile(r"(?P<name>.+)\+(?P<offset>0x[0-9a-f]+)(?: \((?P<module>.+)\))?")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Daemon, int], tuple[list[Json], list[str]]]:
    """What each asking call saw of a thread that waits so deep, and what it saw itself."""

    def asked(daemon: Daemon, depth: int) -> tuple[list[Json], list[str]]:
        recipe = tmp_path / "ask.yaml"
        recipe.write_text(ASK)
        found, [answer] = trace(daemon, tmp_path / "t.jsonl", f"hold {depth}", recipe=str(recipe))
        entered = [event.values for event in events(found, "virTestAsk", "enter")]
        left = [event.values for event in events(found, "virTestAsk", "exit")]
        nobody, _, gone = [values["frames"] for values in entered]
        assert nobody == {"unavailable": "no thread holds it (owner is 0)"}
        tid = entered[1]["owner"]
        assert gone == {"unavailable": f"thread {tid} is no longer there"}
        frames: list[Json] = entered[1]["frames"]
        # At the return too: it waits on.
        assert left[1]["frames"] == frames
        return frames, answer

    return asked


def place(process: Process, frame: str) -> str:
    """The frame as MODULE+OFFSET; of the static function as it is."""
    found = FRAME.fullmatch(frame)
    assert found is not None, frame
    if found["module"] is None:
        return frame
    module = process.module(found["module"])
    assert module is not None
    starts = [start for start, _, name in module.elf.exported_functions() if name == found["name"]]
    # glibc has several functions of a name, for old programs.
    return " ".join(f"{found['module']}+{start + int(found['offset'], 16):#x}" for start in starts)


@pytest.mark.parametrize("variant", ["optimized", "plain", "stripped"])
def test_the_frames_are_those_that_the_thread_itself_finds(
    daemons: Callable[[str], Daemon],
    ask: Callable[[Daemon, int], tuple[list[Json], list[str]]],
    variant: str,
) -> None:
    daemon = daemons(variant)
    process = inspect(daemon.pid)
    frames, own = ask(daemon, 3)
    assert all(isinstance(frame, str) for frame in frames)
    outer = frames[-len(own) :]
    for frame, expected in zip(outer, own):
        found = place(process, frame)
        # What is not exported has its name from debug info, or of a libc that was not stripped.
        named = variant != "stripped" or expected.startswith("libpthread")
        assert expected in found.split() or (named and not found)
    names = [shown["name"] for frame in frames if (shown := FRAME.fullmatch(frame))]
    assert names.count("virTestHold") == 4
    assert (names[names.index("virTestHold") - 1] == "hold") is (variant != "stripped")
    assert (names[-len(own) + 4] == "run_holder") is (variant != "stripped")
    # All that is between is how libc waits.
    waiting = frames[: names.index("virTestHold") - 1]
    assert all("libc" in frame or "libpthread" in frame for frame in waiting)


def test_it_is_bounded(
    daemon: Daemon, ask: Callable[[Daemon, int], tuple[list[Json], list[str]]]
) -> None:
    frames, own = ask(daemon, 100)
    assert len(own) > 100
    *frames, end = frames
    assert len(frames) == 64
    assert all("virTestHold+" in frame for frame in frames[-50:])
    assert end == {"unavailable": "only the innermost 64 frames are recorded"}


def test_it_ends_where_no_table_tells_the_caller(
    daemon: Daemon, ask: Callable[[Daemon, int], tuple[list[Json], list[str]]]
) -> None:
    """GDB would go on: it takes the code for one that begins as compilers once had it."""
    *frames, end = ask(daemon, -1)[0]
    assert is_unavailable(end)
    assert end["unavailable"] == "there is no unwind table for the code of this frame"
    module = inspect(daemon.pid).module("libvirt.so.0")
    assert module is not None
    start = module.elf.exported_function("virTestHoldBare")
    # Behind `sub` and `call`.
    assert start is not None
    assert frames[-1] == f"{module.name}+{start + 6:#x}"
    assert frames[-2].startswith("hold+")


def test_an_error_of_handing_over_what_had_to_wait_ends_the_trace(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Where GDB calls us for a stop, it would print the error and go on."""
    recipe, output = tmp_path / "ask.yaml", tmp_path / "t.jsonl"
    recipe.write_text(ASK)
    *gdb, option, action = gdb_command(str(recipe))
    tracing = Tracing(
        [*gdb, "-x", str(RAISING), option, action],
        {
            "PID": str(daemon.pid),
            "OUTPUT": str(output),
            # The header, then the call that asks of nobody; then the first that has to wait.
            "TEST_HOOK": "inferior.recorder:Recorder._put",
            "TEST_CALLS": "4",
        },
    )
    daemon.do("hold 3")
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert "as the test wants it" in printed
    assert_untraced_and_intact(daemon.pid)
    found = read_trace(output)
    assert found.footer is not None
    assert found.footer["reason"] == "error"
    assert [event.type for event in found.events][:2] == ["enter", "exit"]
