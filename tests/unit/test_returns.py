"""Which places that functions return to get a breakpoint, and for how long."""

from __future__ import annotations

from virtrace.engine.budget import Switch
from virtrace.inferior.returns import ReturnSites

OUTER, INNER = Switch(3, "outer"), Switch(2, "inner")


def test_a_place_is_wanted_until_it_has_its_breakpoint() -> None:
    sites = ReturnSites()
    assert sites.want(0x100, OUTER)
    assert sites.want(0x100, INNER)
    assert sites.wanted() == [0x100]
    assert {*sites.wanted_by(0x100)} == {OUTER, INNER}
    assert sites.take() == {0x100: {OUTER, INNER}}
    assert sites.wanted() == []
    assert sites.take() == {}
    # The same call site serves every call.
    assert not sites.want(0x100, OUTER)


def test_the_breakpoint_has_whoever_comes_later() -> None:
    sites = ReturnSites()
    sites.want(0x100, OUTER)
    switches = sites.take()[0x100]
    assert not sites.want(0x100, INNER)
    assert switches == {OUTER, INNER}
    sites.drop(OUTER)
    assert switches == {INNER}


def test_a_place_that_nobody_wants_any_more_is_forgotten() -> None:
    sites = ReturnSites()
    sites.want(0x100, OUTER)
    sites.take()
    sites.want(0x200, OUTER)
    sites.want(0x300, OUTER)
    sites.want(0x300, INNER)
    sites.drop(OUTER)
    assert sites.wanted() == [0x300]
    assert sites.wanted_by(0x200) == []
    # Its breakpoint went with the probe: it would have to be set again.
    assert sites.want(0x100, INNER)
