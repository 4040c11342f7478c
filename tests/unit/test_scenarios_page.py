"""The page of scenarios is what the tests make, and has no answer that is none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.paths import DOCS, REPOSITORY
from virtrace.analysis.explain.registry import all_explainers
from virtrace.lab.scenarios import SCENARIOS
from virtrace.recipe import catalogue

PAGE = (DOCS / "scenarios.md").read_text("utf-8")
RECIPES = dict(re.findall(r"^## `([\w-]+)`\n\n((?:\|.*\n)+)", PAGE, re.M))


def rows(recipe: str) -> dict[str, list[str]]:
    """The causes of each scenario, by release, without the marks of one engine alone."""
    _, _, *lines = RECIPES[recipe].replace(" *", "").splitlines()
    cells = [line.strip("| ").split("|") for line in lines]
    return {scenario.strip(): [cause.strip() for cause in causes] for scenario, *causes in cells}


def texts() -> Iterator[str]:
    """Every text in the tests."""
    for file in (REPOSITORY / "tests" / "lab").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_there_are_scenarios_of_shipped_recipes() -> None:
    assert {*RECIPES} <= {*catalogue.shipped()}
    assert sum(len(rows(recipe)) for recipe in RECIPES) >= 60


def test_each_scenario_is_one_of_the_tests() -> None:
    made = "\n".join([*texts(), *(each.about for each in SCENARIOS.values())])
    scenarios = [scenario for recipe in RECIPES for scenario in rows(recipe)]
    assert [each for each in scenarios if each.removeprefix("--host-facts: ") not in made] == []


def test_each_answer_is_a_cause() -> None:
    known = {cause.name for each in all_explainers() for cause in each.causes.causes} - {"unknown"}
    named = {cause for recipe in RECIPES for causes in rows(recipe).values() for cause in causes}
    assert named - known <= {""}
    assert not [
        scenario
        for recipe in RECIPES
        for scenario, causes in rows(recipe).items()
        if not any(causes)
    ]
