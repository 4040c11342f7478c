"""What a work takes of memory and processor time, with all the processes that it starts."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Taken:
    """size: bytes, of the largest process that the work starts. seconds: of all of these.

    They begin as copies of the test itself: what that has is left out of the size.
    result: what the work returned. failure: what it raised, empty where it did not.
    """

    size: int
    seconds: float
    result: object
    failure: str


def taken_by(work: Callable[[], object]) -> Taken:
    """The work is done in a process of its own, which waits for those that it starts."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        result, failure, size, seconds = None, "", 0, 0.0
        begins_with = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        # Also for those whose parents end: they become children of this one.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            result = work()
        except BaseException:
            failure = traceback.format_exc()
        while True:
            try:
                _, _, usage = os.wait4(-1, 0)
            except ChildProcessError:
                break
            size = max(size, (usage.ru_maxrss << 10) - begins_with)
            seconds += usage.ru_utime + usage.ru_stime
        with open(tell, "w") as pipe:
            json.dump([size, seconds, result, failure], pipe)
        os._exit(0)
    os.close(tell)
    with open(told) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return Taken(*found)
