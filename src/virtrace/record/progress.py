"""How far long work has come: one line that changes, on a terminal only."""

from __future__ import annotations

import sys

from virtrace.printing import obeys, own


class Progress:
    """One line on standard error that changes, if that is a terminal, and disappears in the end."""

    def __init__(self, name: str) -> None:
        """name: of the file that the work is about."""
        self._name = name
        self._can_change = obeys(sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def show(self, line: str) -> None:
        self._print(f"{self._name}: {line}")

    def clear(self) -> None:
        self._print("")

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _print(self, text: str) -> None:
        if self._can_change:
            print(own("\r\x1b[K") + text, end="", file=sys.stderr, flush=True)
