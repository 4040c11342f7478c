"""Everything that is printed to a terminal, or to a file in its place, passes through one gate.

Strangers chose the names of files, processes and guests, and everything in a trace. A terminal
would obey control characters in them, and a newline could begin a line that looks like one of
virtrace. Therefore, one ``print(line)`` prints one line: any character that is not part of a line
is written as an escape, except what ``own`` made.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from virtrace.errors import OwnError, VirtraceError

# Encloses control characters of virtrace's own. No stranger knows it.
_MARK = f"\0{os.urandom(8).hex()}"
_OWN = re.compile(f"{_MARK}(.*?){_MARK}", re.DOTALL)

_UNUSUAL = re.compile("[^\x20-\x7e]")
# Python calls these printable, but they are invisible.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0100-\U000e01ef]"
)


class OutputError(VirtraceError):
    """Standard output could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"standard output cannot be written: {error.strerror}",
            "free some space, or redirect it, for example to /dev/null",
        )


def is_unicode(stream: TextIO) -> bool:
    # Other encodings may have the box-drawing characters, but not every name of a domain.
    try:
        return codecs.lookup(stream.encoding or "ascii").name.startswith("utf")
    except LookupError:
        return False


def obeys(stream: TextIO) -> bool:
    """Whether it is a terminal that may get control characters, such as those of colour."""
    terminal = os.environ.get("TERM") or "dumb"
    return stream.isatty() and terminal != "dumb" and not os.environ.get("NO_COLOR")


def own(controls: str) -> str:
    """Mark control characters that a terminal may obey, as a part of a line."""
    return f"{_MARK}{controls}{_MARK}"


def without_own(text: str) -> str:
    return _OWN.sub("", text) if _MARK in text else text


def safe(text: str, *, unicode: bool) -> str:
    """Replace what a terminal would obey, or not show, by escapes.

    unicode: keep text beyond ASCII. The escapes are those of JSON, so that JSON text stays JSON.
    """
    # Most text needs no escape, and is not examined character by character.
    if text.isprintable() and (text.isascii() or (unicode and not _INVISIBLE.search(text))):
        return text
    return _UNUSUAL.sub(_visible if unicode else _escaped, text)


def _visible(match: re.Match[str]) -> str:
    is_seen = match[0].isprintable() and not _INVISIBLE.match(match[0])
    return match[0] if is_seen else _escaped(match)


def _escaped(match: re.Match[str]) -> str:
    # Imported here, because most output does not need it.
    from json import dumps

    return dumps(match[0])[1:-1]


def line(text: str, *, controls: bool, unicode: bool) -> str:
    """Make a line safe. controls: keep what own() made, which is removed otherwise."""
    if _MARK not in text:
        return safe(text, unicode=unicode)
    parts = _OWN.split(text)
    parts[::2] = [safe(part, unicode=unicode) for part in parts[::2]]
    return "".join(parts if controls else parts[::2])


class Gate:
    """Replaces standard output or standard error. Each write is a line, or the end of one."""

    def __init__(self, stream: TextIO, terminal: TextIO, *, must: bool) -> None:
        """terminal: where the stream leads. must: raise OutputError if it cannot be written."""
        self._stream = stream
        self._can = {"controls": obeys(terminal), "unicode": is_unicode(terminal)}
        self._must = must

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text if text == "\n" else line(text, **self._can))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        # Otherwise, Python tries again at exit, and complains. A confined process may be unable to
        # open files.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._must:
            raise error if error.errno == errno.EPIPE else OutputError(error)


@contextmanager
def gated(out: TextIO, err: TextIO, terminal: TextIO) -> Iterator[None]:
    """Send both standard streams through a gate. terminal: where ``out`` leads."""
    told, complained = Gate(out, terminal, must=True), Gate(err, err, must=False)
    with redirect_stdout(cast(TextIO, told)), redirect_stderr(cast(TextIO, complained)):
        try:
            yield
        finally:
            complained.flush()


def print_lines(lines: Iterable[str]) -> None:
    for each in lines:
        print(each)


def complain(error: VirtraceError) -> None:
    """Print what is wrong, and what to do about it."""
    for told in error.lines():
        print(told, file=sys.stderr, flush=True)


def fail(error: Exception) -> int:
    """Print what ended the work; return the exit status."""
    if os.environ.get("VIRTRACE_DEBUG") == "1":
        for part in traceback.format_exception(type(error), error, error.__traceback__):
            for row in part.rstrip("\n").split("\n"):
                print(row, file=sys.stderr)
    told = error if isinstance(error, VirtraceError) else OwnError(error)
    if not told.is_told:
        complain(told)
    return told.exit_status
