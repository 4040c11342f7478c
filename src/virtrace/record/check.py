"""What `virtrace doctor` reports: checks, in sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from virtrace.trace.format import Header


@dataclass(frozen=True)
class Check:
    """The result of one check.

    kind: ``ok``, ``note`` (a trace is possible all the same) or ``problem``
    text: what was found
    remedy: what the user can do about it
    """

    kind: str
    text: str
    remedy: str | None = None

    def lines(self) -> Iterator[str]:
        yield f"  {self.kind:<8} {self.text}"
        if self.remedy is not None:
            yield f"  {'':<8} try: {self.remedy}"


@dataclass(frozen=True)
class Section:
    """The checks of one thing.

    reach: what a trace would show; None if that is not known
    plan: the header that a trace would have, with what each probe resolves to
    """

    title: str
    checks: Sequence[Check]
    reach: str | None = None
    plan: Header | None = None

    @property
    def problem(self) -> Check | None:
        return next((check for check in self.checks if check.kind == "problem"), None)
