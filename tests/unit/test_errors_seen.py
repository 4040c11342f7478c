"""Whatever fails, with whatever errors: no answer says that no error was seen below one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.unit.test_explainers import explained
from virtrace.analysis.explain.registry import TRACES
from virtrace.analysis.spans import CallBuilder
from virtrace.report.explanation import answer, explanation_lines
from virtrace.report.highlight import Style
from virtrace.report.pieces import failure
from virtrace.trace.format import unavailable

# Every function that an explainer reads, with what identifies its call.
APIS = sorted({name for each in TRACES.values() for name in each if name.startswith("vir")})
NAMES = {"domain": "vm1", "disk": "vda", "pool": "pool", "flags": 0}
MISSING = unavailable("its register cannot be proven")
TEXTS = st.sampled_from(
    [
        "internal error: something new",
        "Cannot access storage file '/a/b': Permission denied",
        "Requested operation is not valid: storage pool is not active",
        MISSING,
    ]
)
ERRORS = st.lists(st.tuples(st.one_of(st.integers(0, 110), st.just(MISSING)), TEXTS), max_size=3)


@dataclass(frozen=True)
class Failed:
    """A call that failed. own, apart: its errors, and those of other threads meanwhile."""

    api: str
    result: Any
    own: list[tuple[Any, Any]]
    apart: list[tuple[Any, Any]]

    def events(self) -> samples.Recorder:
        recorder = samples.Recorder()
        call = recorder.new_span()
        place: dict[str, Any] = {"call": call, "span": call}
        recorder.add("enter", self.api, values=NAMES, **place)
        for code, message in self.own:
            values = {"code": code, "message": message}
            recorder.add("point", "error", values=values, call=call, parent=call)
        for code, message in self.apart:
            recorder.add("point", "error", values={"code": code, "message": message}, tid=99)
        recorder.add("exit", self.api, values={"result": self.result}, **place)
        return recorder

    @property
    def shows_an_error(self) -> bool:
        return bool(self.own or self.apart)


CALLS = st.builds(Failed, st.sampled_from(APIS), st.sampled_from([-1, -2, "0x0"]), ERRORS, ERRORS)


def test_there_are_many_apis() -> None:
    assert len(APIS) > 10


@settings(deadline=None, max_examples=400)
@given(failed=CALLS)
def test_no_answer_denies_an_error_that_was_seen(failed: Failed) -> None:
    for one in explained(failed.events()):
        said = answer(one)
        # What a text lacks would be its name in capitals.
        assert not re.search(r"\b(ERROR|FILE|WHAT|None)\b", said), said
        lines = " ".join(" ".join(explanation_lines([one], Style(), path="t")).split())
        if failed.shows_an_error:
            for denial in ("no error was seen", "has no error of it", "no error that the trace"):
                assert denial not in lines, lines
        if failed.result != "0x0":
            assert "It started" not in said


@settings(deadline=None, max_examples=200)
@given(failed=CALLS)
def test_no_tree_denies_an_error_that_was_seen(failed: Failed) -> None:
    [call] = CallBuilder().calls(failed.events().events)
    assert call.failed == (failed.result != "0x0" or failed.shows_an_error)
    if call.failed:
        said = " ".join(text for text, _ in failure(call))
        assert ("no error was seen" in said) != failed.shows_an_error


def test_a_guest_that_was_not_created_did_not_start() -> None:
    """The function returns a pointer, and the only error is one of another thread."""
    failed = Failed("virDomainCreateXML", "0x0", [], [(1, "QEMU ended")])
    [one] = explained(failed.events())
    assert answer(one) == "It does not start: QEMU ended."


@pytest.mark.parametrize("code", [42, MISSING])
def test_errors_alone_are_explained(code: Any) -> None:
    recorder = samples.Recorder()
    recorder.add("point", "error", values={"code": code, "message": "no domain 'none'"})
    recorder.add("point", "api.failed", values={"api": "virDomainLookupByName"})
    [one] = explained(recorder, api_failed="api.failed", error="error")
    assert one.explainer == "errors"
    assert "once, an API failed with it" in answer(one)
    assert "no domain 'none'" in answer(one)
