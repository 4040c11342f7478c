"""What is switched off once a trace costs too much, in which order."""

from __future__ import annotations

import pytest

from virtrace.binary.x86_64 import ABI
from virtrace.engine.budget import Budget
from virtrace.plan.arguments import ByPlaces
from virtrace.plan.model import AnySite, LineSite, PointSite, SpanSite
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Limits

MS = 1_000_000
BUDGET = Limits(stop_ms=10, load=50)
CALL = "a call was held for more than 10 ms in total"
SECOND = "threads were stopped for more than 50 % of a second"

FILE = ("libvirt.so.0", "/usr/lib/libvirt.so.0")
NOWHERE = ByPlaces({}, ABI)
ROOT = SpanSite("virDomainGetBlockInfo", *FILE, 1, 1, NOWHERE, {}, {}, root=True)
SPAN = SpanSite("qemuDomainGetBlockInfo", *FILE, 2, 2, NOWHERE, {}, {})
POINT = PointSite("error", *FILE, 3, 3, NOWHERE, {})
LINE = LineSite("qemuDomainGetBlockInfo", *FILE, 4, NOWHERE, "qemu_driver.c", 1, 1, {})


def point(name: str) -> PointSite:
    return PointSite(name, *FILE, 6, 6, NOWHERE, {}, anywhere=True)


@pytest.fixture
def budget() -> Budget:
    return Budget(BUDGET, catalogue.find_recipe("blockinfo"))


def spend(
    budget: Budget,
    site: AnySite,
    ms: int,
    at_ms: int = 0,
    tid: int = 1,
    in_call: bool = True,
) -> tuple[str, str, str] | None:
    gone = budget.spend(budget.switch(site), ms * MS, at_ms * MS, tid, in_call)
    return gone and (gone[0].kind, gone[0].name, gone[1])


def test_lines_go_first_and_a_root_last(budget: Budget) -> None:
    for plan in (ROOT, SPAN, POINT, LINE):
        assert spend(budget, plan, 2) is None
    # The cost of what went is not counted further: the rest may be cheap enough.
    assert spend(budget, ROOT, 3) == ("line", LINE.probe, CALL)
    assert spend(budget, LINE, 9) is None
    assert spend(budget, ROOT, 1) is None
    assert spend(budget, ROOT, 1) == ("point", POINT.probe, CALL)
    assert spend(budget, ROOT, 2) == ("span", SPAN.probe, CALL)
    assert spend(budget, ROOT, 2) == ("span", ROOT.probe, CALL)


def test_the_root_goes_last_even_where_the_time_is_its_own(budget: Budget) -> None:
    for site in (ROOT, SPAN, LINE):
        budget.switch(site)
    assert spend(budget, ROOT, 11) == ("line", LINE.probe, CALL)
    # It has all the time again: what is off may have made it slow.
    assert spend(budget, ROOT, 9) is None
    assert spend(budget, ROOT, 2) == ("span", SPAN.probe, CALL)
    assert spend(budget, ROOT, 11) == ("span", ROOT.probe, CALL)


def test_what_costs_nothing_stays(budget: Budget) -> None:
    spend(budget, SPAN, 6)
    assert spend(budget, SPAN, 6) == ("span", SPAN.probe, CALL)


def test_of_equal_worth_the_dearest_goes(budget: Budget) -> None:
    cheap = SpanSite("cheap", *FILE, 5, 5, NOWHERE, {}, {})
    spend(budget, cheap, 3)
    assert spend(budget, SPAN, 8) == ("span", SPAN.probe, CALL)


def test_each_call_has_a_budget_of_its_own(budget: Budget) -> None:
    for tid in range(5):
        assert spend(budget, SPAN, 9, tid=tid) is None
    assert spend(budget, ROOT, 9, tid=0, in_call=False) is None
    assert spend(budget, ROOT, 9, tid=0) is None
    assert spend(budget, ROOT, 9, tid=1) == ("span", SPAN.probe, CALL)


def test_all_calls_share_a_second(budget: Budget) -> None:
    for i in range(50):
        assert spend(budget, SPAN, 10, at_ms=10 * i, tid=i) is None
    assert spend(budget, ROOT, 1, at_ms=990, tid=99) == ("span", SPAN.probe, SECOND)


def test_the_next_second_has_a_new_one(budget: Budget) -> None:
    for i in range(500):
        assert spend(budget, POINT, 5, at_ms=10 * i, in_call=False) is None


def test_an_answer_goes_with_what_it_answers(budget: Budget) -> None:
    assert budget.switch(point("qmp.send")) == budget.switch(point("qmp.reply"))
    # Nor does a trace go on for answers alone.
    assert {switch.name for switch in budget.beginnings} == {ROOT.probe}


def test_a_recipe_without_calls_goes_on_as_long_as_a_point_does() -> None:
    budget = Budget(BUDGET, catalogue.find_recipe("qmp"))
    assert budget.switch(point("qmp.send")) in budget.beginnings
    assert {switch.kind for switch in budget.beginnings} == {"point"}
