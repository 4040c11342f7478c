"""Every explainer: its causes have conditions and words, and the documents name it."""

from __future__ import annotations

import re
from string import Formatter
from typing import Any

import pytest

from tests.support.paths import DOCS
from virtrace.analysis.explain.model import Explainer
from virtrace.analysis.explain.registry import EXPLAINERS
from virtrace.trace import roles

EACH = pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda each: each.name)


@EACH
def test_every_cause_has_a_condition_and_words(explainer: Explainer[Any]) -> None:
    causes = explainer.causes.causes
    names = [cause.name for cause in causes]
    assert names[-1] == "unknown"
    assert sorted(explainer.causes.conditions) == sorted(names)
    for cause in causes:
        assert {*cause.either, *cause.excludes} <= set(names)
        # One sentence.
        assert not re.search(r"[.] [A-Z]", cause.says), cause.name
        assert cause.says.endswith(".")
        assert "{" not in "".join(shows for _, shows in cause.do)


@EACH
def test_every_placeholder_is_explained(explainer: Explainer[Any]) -> None:
    head = explainer.causes.file.read_text(encoding="utf-8").partition("\n\n")[0]
    for cause in explainer.causes.causes:
        for text in (cause.says, cause.means, *(command for command, _ in cause.do)):
            names = {name for _, name, _, _ in Formatter().parse(text) if name}
            assert all(f"{{{name}}}" in head for name in names), (cause.name, names)


@EACH
def test_it_is_documented(explainer: Explainer[Any]) -> None:
    page = (DOCS / "explain.md").read_text(encoding="utf-8")
    assert f"| `{explainer.name}` |" in page
    for cause in explainer.causes.causes:
        assert f"`{cause.name}`" in page, cause.name


def test_roles_that_explainers_read_exist() -> None:
    known = {*roles.OF_SPANS, *roles.OF_POINTS}
    for explainer in EXPLAINERS:
        assert all(name in known for name in explainer.traces if "." in name)


def test_no_name_can_become_an_option() -> None:
    """A name in a command follows `--`, or is the value of an option."""
    commands = [
        command
        for explainer in EXPLAINERS
        for cause in explainer.causes.causes
        for command, _ in cause.do
        if "{" in command
    ]
    assert len(commands) > 20
    for command in commands:
        words = command.split()
        # Where each of the programs begins: `virtrace record` starts another one.
        programs = [0, *(at for at, word in enumerate(words) if word == "virsh")]
        for at, word in enumerate(words):
            if word.startswith("{") and word != "{format}":
                begin = max(start for start in programs if start < at)
                takes_it = words[at - 1] in ("-d", "-p")
                assert "--" in words[begin:at] or takes_it, command
