"""What a child without rights can do, tried by a child that wants to do harm."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from tests.support.waiting import wait_until
from virtrace.confined import Bounds, Child, Tell, run, started
from virtrace.errors import TargetError
from virtrace.image.process import read_status

SMALL = Bounds(memory=64 << 20, processor_seconds=1, seconds=20)


def outcome(attempt: Callable[[], object]) -> str:
    """Of an attempt, as the child has it."""
    return str(run("the file", lambda: lambda _: _tried(attempt), SMALL))


def _tried(attempt: Callable[[], object]) -> str:
    try:
        return f"done: {attempt()}"
    except OSError as error:
        return type(error).__name__ + f" {error.errno}"


def test_it_hands_back_plain_data() -> None:
    answer = {"a": [1, "ä\ud800", None, True], "b": {}}
    assert run("the file", lambda: lambda _: answer, SMALL) == answer


def test_what_was_opened_before_can_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "file"
    secret.write_text("content")
    secret.chmod(0o600)

    def begin() -> Callable[[Tell], str]:
        file = secret.open()
        return lambda _: file.read()

    assert run("the file", begin, SMALL) == "content"


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.open("/proc/self/mem", os.O_RDWR),
        lambda: os.open(".", os.O_RDONLY),
        lambda: socket.socket(socket.AF_INET),
        lambda: socket.socketpair(),
        os.pipe,
        os.fork,
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.setuid(0),
        lambda: os.kill(os.getppid() if os.getppid() > 1 else 1, 0),
    ],
    ids=["file", "memory", "folder", "socket", "pair", "pipe", "fork", "exec", "root", "kill"],
)
def test_what_it_must_not_do_fails(attempt: Callable[[], object]) -> None:
    if os.geteuid() != 0:
        pytest.skip("of a user's own child the user's processes are not hidden")
    said = outcome(attempt)
    # Where exec were possible there would be no answer at all.
    assert said.split()[0] in ("OSError", "PermissionError", "BlockingIOError"), said


def test_it_has_no_rights_left() -> None:
    child = Child("the file", lambda: lambda *_: os.getpid(), SMALL)
    pid = child.ask("pid")
    status = read_status(pid)
    assert status is not None
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert status["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert len({*status["Uid"].split(), *status["Gid"].split()}) == 1
        assert int(status["Uid"].split()[0]) > 1 << 30
        assert status["Groups"] == ""
    del child
    wait_until(lambda: read_status(pid) is None, "the child ends with whoever asks")


def fill_memory() -> int:
    kept = []
    while True:
        kept.append(bytes(1 << 20))


def crash() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize(
    "work",
    [
        fill_memory,
        lambda: sum(iter(int, 1)),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        crash,
        lambda: "x" * (48 << 20),
    ],
    ids=["memory", "time", "killed", "crash", "answer"],
)
def test_what_takes_too_much_is_an_error(work: Callable[[], Any]) -> None:
    with pytest.raises(
        TargetError, match="the file cannot be read within 64 MiB of memory and 1 s of"
    ):
        run("the file", lambda: lambda _: work(), SMALL)


def test_what_never_answers_is_an_error() -> None:
    bounds = Bounds(memory=64 << 20, processor_seconds=1, seconds=1)
    begun = time.monotonic()
    with pytest.raises(TargetError, match="cannot be read"):
        run("the file", lambda: lambda _: time.sleep(3600), bounds)
    assert time.monotonic() - begun < 60


def test_what_never_opens_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    bounds = Bounds(memory=64 << 20, processor_seconds=1, seconds=1)

    def begin() -> Callable[[Tell], str]:
        (tmp_path / "fifo").read_bytes()
        return lambda _: ""

    with pytest.raises(TargetError, match="cannot be opened within 1 s"):
        run("the file", begin, bounds)


def test_an_error_arrives_as_it_was() -> None:
    def fail(_: Tell) -> None:
        raise TargetError("what", "remedy")

    with pytest.raises(TargetError) as caught:
        run("the file", lambda: fail, SMALL)
    assert (caught.value.what, caught.value.remedy) == ("what", "remedy")
    empty: dict[str, str] = {}
    with pytest.raises(TargetError, match="the file is not intact: KeyError: 'x'"):
        run("the file", lambda: lambda _: empty["x"], SMALL)


def test_progress_is_told() -> None:
    told: list[str] = []

    def work(tell: Tell) -> str:
        tell("half")
        return "all"

    assert run("the file", lambda: work, SMALL, told.append) == "all"
    assert told == ["half"]


def test_a_program_has_no_rights(tmp_path: Path) -> None:
    """It reads what it is given, and writes to its standard output alone."""
    tmp_path.chmod(0o777)
    script = (
        # Where the folder can be reached, the signal of a file that is too large ends the writer.
        f"id -u; cat; (echo x >{tmp_path}/made) || echo no file; "
        "cat /etc/shadow || echo no shadow; ulimit -v; grep NoNewPrivs /proc/self/status"
    )
    with TemporaryFile() as file:
        file.write(b"given\n")
        file.seek(0)
        program = started(["/bin/sh", "-c", script], file, Bounds(memory=64 << 20))
        printed, _ = program.communicate(timeout=20)
    lines = printed.decode().splitlines()
    if os.geteuid() == 0:
        assert lines[0] not in ("0", str(os.getuid()))
        assert "no shadow" in lines
    assert lines[1] == "given"
    # Where it may make a file, that stays empty.
    assert not (tmp_path / "made").exists() or (tmp_path / "made").stat().st_size == 0
    assert str((64 << 20) >> 10) in lines
    assert lines[-1].split()[-1] == "1"
