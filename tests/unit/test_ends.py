"""How a recording ends: what is first asked for, what has to wait, what outranks it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until
from virtrace.record.ends import Ending, Outside, Watch, ending_signals


@dataclass
class Counted:
    calls_done: int = 0
    calls_open: int = 0


def test_the_first_reason_counts() -> None:
    ending = Ending(None, Counted())
    assert not ending.is_due()
    ending.request("interrupt")
    ending.request("limit")
    assert ending.is_due()
    assert ending.reason == "interrupt"


def test_an_error_outranks_what_was_asked_for() -> None:
    ending = Ending(None, Counted())
    ending.request("interrupt")
    first = ValueError("first")
    ending.fail(first)
    ending.fail(ValueError("second"))
    assert (ending.reason, ending.failure) == ("error", first)


def test_the_last_call_wanted_ends_it() -> None:
    calls = Counted(calls_done=1)
    ending = Ending(2, calls)
    assert not ending.is_due()
    calls.calls_done = 2
    assert ending.is_due()
    assert ending.reason == "limit"


def test_the_end_of_the_command_waits_for_open_calls() -> None:
    calls = Counted(calls_open=2)
    ending = Ending(None, calls)
    ending.request("done")
    assert not ending.is_due()
    calls.calls_open = 0
    assert ending.is_due()
    assert ending.reason == "done"


def test_open_calls_are_waited_for_no_longer_than_their_grace() -> None:
    ending = Ending(None, Counted(calls_open=1))
    ending.request("done")
    assert not ending.is_due()
    ending.request("done")
    assert ending.reason == "done"


class Target:
    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        self.descriptor = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)


def test_outside_nothing_ends_it() -> None:
    with Target() as target:
        assert Outside(target.descriptor, [], None, []).reason() is None


def test_outside_the_end_of_the_process_ends_it() -> None:
    with Target() as target:
        outside = Outside(target.descriptor, [], None, [])
        target.process.kill()
        wait_until(lambda: outside.reason() == "target-exit", "the end of the process")
        assert not outside.has_target


def test_outside_signals_and_time_end_it() -> None:
    signals: list[int] = []
    with Target() as target, ending_signals(signals.append):
        outside = Outside(target.descriptor, [], 1e-9, signals)
        assert outside.reason() == "limit"
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals == [signal.SIGHUP]
        assert outside.reason() == "interrupt"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_outside_the_end_of_the_command_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with Target() as target:
        outside = Outside(target.descriptor, ["sh", "-c", "exit 3"], None, [])
        wait_until(lambda: outside.reason() == "done", "the end of the command")
        assert capfd.readouterr().err == "virtrace: sh ended with 3\n"
        assert Outside(target.descriptor, ["/no/such/command"], None, []).reason() == "done"
        assert "virtrace: /no/such/command cannot be run: " in capfd.readouterr().err


# A process of its own: here other threads could take the signal, which ends the process.
_WATCHING = """
import os, signal
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until
from virtrace.record.ends import Watch

asked = []

def end(reason):
    asked.append(reason)
    if len(asked) == 1:
        raise RuntimeError("not now")

with Watch(None, end):
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: len(asked) == 2, "the end to be asked for again")
print(*asked)
"""


def test_a_watch_takes_signals_and_asks_again_where_asking_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WATCHING], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "interrupt interrupt\n"), done.stderr


def test_a_watch_ends_a_recording_in_time() -> None:
    asked: list[str] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        with Watch(0.01, asked.append):
            wait_until(lambda: bool(asked), "the time limit")
        assert asked == ["limit"]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
