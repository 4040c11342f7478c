"""The page of scenarios is what the tests were answered, has no answer that is none, and no gap.

That each answer of a test is on it, tests.support.scenarios.assert_answers checks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.paths import DOCS, REPOSITORY
from tests.support.scenarios import kept
from tools import scenarios
from virtrace.analysis.explain.registry import all_explainers
from virtrace.lab.scenarios import SCENARIOS
from virtrace.recipe import catalogue

RELEASES = {"7.0.0", "9.0.0", "11.3.0", "12.8.0"}
# Before the docstring of what is prepared.
HOST_FACTS = "--host-facts: "
BOTH = {"gdb", "uprobes"}
# Their events are QEMU's, or of a daemon that no GDB could be attached to before.
BY_UPROBES = {"daemon-start", "high-water", "io-error", "migration-source"}
BY_UPROBES |= {"job-progress", "qemu-query", "qmp-slow"}
# What the page says of them is the reason.
NOT_ON_EACH_RELEASE = {
    "raw, written at its end, with QEMU started by -drive (libvirt before 7.9)",
    "a hook script refuses it",
    "a client sends QEMU the command quit",
}


def made() -> Iterator[str]:
    """Every text in the tests that can be the name of a scenario."""
    for file in (REPOSITORY / "tests" / "lab").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A docstring ends with a full stop.
                yield node.value.removesuffix(".")
    yield from (each.about for each in SCENARIOS.values())


def test_the_page_is_what_was_answered() -> None:
    assert scenarios.page_of(kept()) == (DOCS / "scenarios.md").read_text("utf-8"), "make scenarios"
    assert scenarios.text_of(kept()) == scenarios.KEPT.read_text("utf-8")


def test_each_answer_is_a_cause_and_the_same_by_both_engines() -> None:
    assert scenarios.problems(kept()) == []
    known = {(each.name, cause.name) for each in all_explainers() for cause in each.causes.causes}
    assert {
        (explainer, cause)
        for (_, _, explainer), releases in kept().items()
        for causes in releases.values()
        for cause in causes.values()
    } <= known


def test_each_recipe_has_scenarios() -> None:
    assert {recipe for recipe, _, _ in kept()} == {*catalogue.shipped()}


def test_each_scenario_is_made_on_each_release_with_both_engines() -> None:
    gaps = {
        scenario
        for (recipe, scenario, _), releases in kept().items()
        for release in RELEASES
        if not {*releases.get(release, {})} >= ({"uprobes"} if recipe in BY_UPROBES else BOTH)
    }
    assert gaps == NOT_ON_EACH_RELEASE


def test_each_scenario_is_one_of_the_tests() -> None:
    names = {*made()}
    rows = {scenario for _, scenario, _ in kept()}
    assert [each for each in rows if not {each, each.removeprefix(HOST_FACTS)} & names] == []


def test_each_scenario_of_the_lab_has_a_row() -> None:
    rows = {scenario for _, scenario, _ in kept()}
    single = [each for each in SCENARIOS.values() if len(each.disks) == 1]
    assert [each.about for each in single if each.about not in rows] == []
