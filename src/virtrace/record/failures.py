"""Tells whoever asks the host that a call has failed, as soon as its end is recorded."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from virtrace.analysis.explain.messages import errors_of, text_of
from virtrace.analysis.spans import Call, Point
from virtrace.trace.format import FailedCall
from virtrace.trace.roles import ERROR_AGAIN

# A line that a pipe takes whole or not at all (PIPE_BUF, in bytes of ASCII).
_MOST_MESSAGES, _LONGEST_MESSAGE, _LONGEST_LINE = 4, 600, 4096


def tell_failed(call: Call, descriptor: int) -> None:
    """Write the call to a pipe, unless nobody reads there, or too many failed at once."""
    domain = call.root.arguments.get("domain")
    # Old versions have the whole message of a system error only where it is repeated.
    again = [
        node.event
        for node in call.nodes()
        if isinstance(node, Point) and node.event.role == ERROR_AGAIN
    ]
    texts = map(text_of, [*errors_of(call), *again])
    messages = list(dict.fromkeys(text for text in texts if text is not None))
    failed: FailedCall = {
        "call": call.id,
        "name": call.root.name,
        "domain": domain if isinstance(domain, str) else call.domain,
        "seconds": (call.root.duration_ns or 0) / 1e9,
        "messages": [text[-_LONGEST_MESSAGE:] for text in messages[-_MOST_MESSAGES:]],
    }
    line = json.dumps(failed).encode() + b"\n"
    if len(line) <= _LONGEST_LINE:
        with suppress(OSError):
            os.write(descriptor, line)
