"""Run in GDB before a trace: the hook that VIRTRACE_TEST_HOOK names raises at a later call.

Not in the product: a hook is where GDB, or a thread of ours, calls virtrace while it traces.
"""

from __future__ import annotations

import importlib
import os
from typing import Any


def _raise_at(hook: str, times: int) -> None:
    module_name, _, path = hook.partition(":")
    owner: Any = importlib.import_module(f"virtrace.{module_name}")
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    left = [times]

    def raising(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError(f"as the test wants it: {hook}")
        return real(*arguments, **named)

    setattr(owner, name, raising)


_raise_at(os.environ["VIRTRACE_TEST_HOOK"], int(os.environ.get("VIRTRACE_TEST_CALLS", "1")))
