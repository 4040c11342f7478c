"""How a call ended: the errors, which of them the caller got, and whether its return was seen."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator

from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.analysis.values.meaning import one_of
from virtrace.trace.format import Event

_PATH = re.compile(r"""['"[](/[^'"\]\n]+)['"\]]""")
# QEMU's own words in a message of libvirt, after its name and the argument that they are about.
_QEMU = re.compile(r"qemu[\w-]*: (?:-[\w-]+ (?:\{.*\}|\S+): )?(.+)", re.DOTALL)
# For texts, where a call failed and the trace has no error.
UNSEEN = "no error was seen"
_NOT_READ = "an error of which neither message nor code could be read"


def errors_of(call: Call) -> list[Event]:
    """Return the errors of a call that failed, the one that its caller got last.

    Without errors of its own, those of other threads meanwhile: the thread that receives QEMU's
    messages notices first that QEMU has ended.
    """
    return (call.errors() or call.meanwhile) if call.failed else []


def text_of(event: Event) -> str | None:
    """Return the message of an error; None if it is unavailable."""
    message = event.values.get("message")
    return message if isinstance(message, str) else None


def said(errors: Iterable[Event]) -> str | None:
    """Return the message of the last error that has one; else, the word for its code.

    None: there is no error.
    """
    codes, errors = None, list(errors)
    for event in reversed(errors):
        text = text_of(event)
        if text is not None:
            return text
        code = event.values.get("code")
        codes = codes or (one_of("virErrorNumber", code) if type(code) is int else None)
    return codes or (_NOT_READ if errors else None)


def brief(message: str | None) -> str | None:
    """Return a message in one line, of QEMU's own words only these."""
    found = _QEMU.search(message or "")
    if found:
        message = f"QEMU says: {found[1]}"
    return " ".join(message.split()).rstrip(".") if message else message


def told(call: Call, errors: Iterable[Event]) -> str | None:
    """Return what was said, or where no message could be read, what the system's error was.

    Libvirt 7.0.0 makes the message of an error of the system where no probe sees it.
    """
    errors = list(errors)
    if not any(text_of(each) for each in errors):
        for node in reversed(list(call.nodes())):
            system = system_error(node.event) if isinstance(node, Point) else None
            if system is not None:
                return system
    return said(errors)


def system_error(place: Event) -> str | None:
    """Return the system's words for the error that was raised at a place; None if it was none."""
    number = place.values.get("errno")
    if type(number) is not int or number not in errno.errorcode:
        return None
    return f"system error: {os.strerror(number)}"


def path_in(message: str | None) -> str | None:
    """Return the first quoted path of a file in a message."""
    found = _PATH.search(message or "")
    return found[1] if found else None


def no_return(call: Call) -> list[Evidence] | None:
    """Return what the trace lacks of a call whose return was not seen; None if it was seen."""
    if call.root.returned is not None:
        return None
    return [Evidence(problem) for problem in call.problems]


def quoted_errors(call: Call) -> Iterator[Evidence]:
    """Yield the errors of a call in order of time."""
    return quoted(errors_of(call), is_apart=not call.errors())


def quoted(errors: Iterable[Event], is_apart: bool) -> Iterator[Evidence]:
    """Yield the messages of errors. is_apart: of other threads than that of the call."""
    apart = "on another thread meanwhile: " if is_apart else ""
    for event in errors:
        message = text_of(event) or "an error without a message that could be read"
        yield Evidence(f"{apart}{message}", seq=event.seq, path=".message")
