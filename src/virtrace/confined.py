"""Reads files that strangers made, in a child process that has no rights.

The child opens the files with our rights and then drops them for good: it runs as a user that owns
nothing, can open no file or socket, start no process and gain no rights, and the kernel kills it
if it takes too much memory or time. It returns plain data. Every failure in the child, its death
included, becomes a VirtraceError here.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from virtrace import detached
from virtrace.errors import TargetError, TraceError, UsageError, VirtraceError

if TYPE_CHECKING:
    import subprocess

Json = Any
# Reports a line of progress before the answer is complete.
Tell = Callable[[str], None]
# Answers a question, by its name and its arguments.
Answer = Callable[[str, "list[Json]", Tell], Json]

# A user id that no system assigns: no other user's process may signal or trace the child.
_NOBODY = 0x7FFE7ACE
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LARGEST_ANSWER = 32 << 20
_LONGEST_REASON = 1000
# The errors that a child can raise.
_ERRORS = {kind.__name__: kind for kind in (TargetError, TraceError, UsageError, VirtraceError)}
# Not the exit status of any command.
_CRASHED = 99
_PIECE = 1 << 16


class Bounds(NamedTuple):
    """Limits for a child.

    memory: bytes of address space, beyond what it begins with.
    processor_seconds: processor time, for all questions.
    seconds: wall-clock time, for each question.
    file_size: bytes up to which it may write to an open file.
    """

    memory: int = 256 << 20
    processor_seconds: int = 10
    seconds: int = 20
    file_size: int = 0

    def __str__(self) -> str:
        return f"{self.memory >> 20} MiB of memory and {self.processor_seconds} s of processor time"


class Child:
    """A child that answers questions, one after the other, until it is dropped.

    about: what it reads, for messages.
    begin: runs in the child, still with our rights. It opens the files, imports what is needed,
        and returns the function that answers the questions. The first question raises its errors.
    """

    def __init__(self, about: str, begin: Callable[[], Answer], bounds: Bounds) -> None:
        """Start it. Raises: OSError."""
        # Whether the child has opened all files; whether it has ended.
        self.has_begun = self.has_ended = False
        # Bytes of all answers so far.
        self.answered = 0
        self._about = about
        self._bounds = bounds
        self._rest = bytearray()
        questions, self._ask = os.pipe()
        self._told, answers = os.pipe()
        try:
            work = partial(_serve, about, questions, answers, begin, bounds)
            detached.spawn("virtrace-reader", (questions, answers), work)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(questions)
            os.close(answers)

    def ask(self, question: str, *arguments: Json, progress: Tell | None = None) -> Json:
        """Ask a question and wait for the answer.

        progress: called with every line of progress that the child reports.
        Raises: the VirtraceError that the child raised; TargetError if the child died.
        """
        self.send(question, *arguments)
        return self.answer(progress)

    def send(self, question: str, *arguments: Json) -> None:
        """Ask a question, and do not wait. If the child has died, ``answer`` says so."""
        data = json.dumps([question, arguments]).encode() + b"\n"
        with suppress(OSError):
            while data:
                data = data[os.write(self._ask, data) :]

    def answer(self, progress: Tell | None = None) -> Json:
        """Wait for the answer to the first question that has none yet. As ``ask``."""
        until = time.monotonic() + self._bounds.seconds
        try:
            if not self.has_begun:
                self._line(until)
                self.has_begun = True
            while "progress" in (message := json.loads(self._line(until))):
                if progress is not None:
                    progress(str(message["progress"]))
            if "answer" in message:
                return message["answer"]
            name, what, remedy = message["error"]
            kind = _ERRORS[name]
        # The last two: what it reads has taken it over.
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise self._ended() from error
        # Not kept in a variable: its traceback would keep this frame, and so the child.
        raise kind(str(what), str(remedy))

    def _line(self, until: float) -> bytearray:
        """Read a line. Raises: ValueError if it does not arrive in time, or is too long."""
        while b"\n" not in self._rest[-_PIECE:]:
            left = until - time.monotonic()
            if left < 0 or not select.select([self._told], [], [], left)[0]:
                raise ValueError("no answer")
            piece = os.read(self._told, _PIECE)
            if not piece or len(self._rest) > _LARGEST_ANSWER:
                raise ValueError("no whole answer")
            self._rest += piece
            self.answered += len(piece)
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        """Let the child end."""
        if not self.has_ended:
            self.has_ended = True
            os.close(self._ask)
            os.close(self._told)

    def _ended(self) -> TargetError:
        self.close()
        if not self.has_begun:
            return TargetError(
                f"{self._about} cannot be opened within {self._bounds.seconds} s",
                "check whether its file system responds",
            )
        return _takes_too_much(self._about, f"{self._bounds}, or in {self._bounds.seconds} s")

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()


def run(
    about: str,
    begin: Callable[[], Callable[[Tell], Json]],
    bounds: Bounds,
    progress: Tell | None = None,
) -> Json:
    """Start a child for a single question and return its answer. begin: as for Child."""

    def begun() -> Answer:
        work = begin()
        return lambda _, __, tell: work(tell)

    return Child(about, begun, bounds).ask("", progress=progress)


def status_of(about: str, work: Callable[[], int], bounds: Bounds) -> int:
    """Do work that prints in a child, which keeps the open files; return its exit status.

    The work flushes what it prints. What it needs is imported and open beforehand. Ctrl-C reaches
    the child.
    Raises: TargetError if the child died.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        status = _CRASHED
        try:
            libc = ctypes.CDLL(None)
            _give_up_rights(libc, bounds, _address_space() + bounds.memory, may_write=True)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            status = work()
        finally:
            # Never return into the parent's code.
            os._exit(status)
    while True:
        with suppress(KeyboardInterrupt):
            _, ended = os.waitpid(child, 0)
            break
    status = os.waitstatus_to_exitcode(ended)
    if status < 0 or status == _CRASHED:
        raise _takes_too_much(about, str(bounds))
    return status


def started(command: Sequence[str], file: BinaryIO, bounds: Bounds) -> subprocess.Popen[bytes]:
    """Start a program that reads a stranger's file, without rights, and return it.

    It can open what everybody may read; its standard output is a pipe. It ends with this process.
    Raises: OSError.
    """
    # Not for all others, which start no program.
    import subprocess

    libc = ctypes.CDLL(None)

    def confine() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _give_up_rights(libc, bounds._replace(file_size=0), bounds.memory, for_program=True)

    return subprocess.Popen(
        command,
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=confine,
    )


def _takes_too_much(about: str, bounds: str) -> TargetError:
    return TargetError(
        f"{about} cannot be read within {bounds}",
        "it is damaged or malicious: check where it comes from, and get a new copy",
    )


def _address_space() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _serve(
    about: str, questions: int, answers: int, begin: Callable[[], Answer], bounds: Bounds
) -> None:
    """Run in the child, until the parent closes the pipe."""
    # A stranger's file must not write to the terminal through Python's messages.
    os.dup2(1, 2)
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM, signal.SIGXCPU))
    signal.alarm(bounds.seconds)

    def say(message: dict[str, Json]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(answers, data) :]

    def tell(line: str) -> None:
        say({"progress": line})

    def guarded(work: Callable[[], Json]) -> dict[str, Json]:
        try:
            return {"answer": work()}
        except VirtraceError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
            return {"error": [kind.__name__, error.what, error.remedy]}
        except MemoryError:
            # The next steps may fail as well.
            os._exit(1)
        except Exception as error:
            said = f"{about} is not intact: {type(error).__name__}: {error}"
            remedy = "reinstall the package that owns it"
            return {"error": [TargetError.__name__, said[:_LONGEST_REASON], remedy]}

    answer: list[Answer] = []
    libc = ctypes.CDLL(None)
    size = _address_space()
    begun = guarded(lambda: answer.append(begin()))
    # Not earlier: begin() needs our rights.
    _give_up_rights(libc, bounds, size + bounds.memory)
    say({"begun": True})
    with open(questions, "rb") as asked:
        while line := asked.readline():
            signal.alarm(bounds.seconds)
            question, arguments = json.loads(line)
            ask = partial(answer[0], question, arguments, tell) if answer else None
            say(guarded(ask) if ask else begun)
            # No limit while it waits for a question.
            signal.alarm(0)


def _give_up_rights(
    libc: ctypes.CDLL,
    bounds: Bounds,
    address_space: int,
    *,
    may_write: bool = False,
    for_program: bool = False,
) -> None:
    """Drop all rights for good. A process that is not root keeps its user.

    address_space: the limit, bytes. may_write: keep the right to write to open files.
    for_program: keep what running a program takes: files that everybody may read, and threads.
    """
    limits = {
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_CPU: bounds.processor_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: resource.RLIM_INFINITY if may_write else bounds.file_size,
    }
    if not for_program:
        limits[resource.RLIMIT_NPROC] = 0
        # No further descriptor: neither a file nor a socket can be opened.
        limits[resource.RLIMIT_NOFILE] = 0
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        # In a user namespace that does not map this id, root stays root; the rest is dropped
        # all the same.
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    version = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(version, (ctypes.c_uint32 * 6)())
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
