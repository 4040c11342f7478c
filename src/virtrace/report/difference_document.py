"""The differences between two traces as one JSON document, for scripts; see docs/diff.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virtrace import resources
from virtrace.analysis.compare.model import AnswersApart, Comparison, Pair, texts
from virtrace.analysis.compare.values import Difference
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.report.difference import sentence
from virtrace.report.explanation import answer
from virtrace.trace.format import Record
from virtrace.trace.reader import ReadableTrace

FORMAT = "virtrace-difference"
VERSION = 2


def difference_schema() -> Record:
    """Return the JSON Schema (2020-12) of the document."""
    file = Path(__file__).with_name("difference.schema.json")
    document: Record = json.loads(resources.text(file))
    return document


def difference_json(found: Comparison, paths: tuple[str, str]) -> str:
    """Return the document as text. paths: names of the two traces."""
    return json.dumps(difference_record(found, paths), indent=2)


def difference_record(found: Comparison, paths: tuple[str, str]) -> Record:
    return {
        "format": FORMAT,
        "version": VERSION,
        "equal": found.equal,
        "a": _trace(found.a, paths[0], found.problems("a")),
        "b": _trace(found.b, paths[1], found.problems("b")),
        "same_daemon": found.passed.same_daemon,
        "answers": [_answers(each) for each in found.answers],
        "pairs": [_pair(each) for each in found.pairs],
        "more_pairs": found.more,
        "more_differ": found.more_differ,
        "alone": [
            {
                "side": each.side,
                "call": each.call.id,
                "api": each.call.root.name,
                "arguments": texts(each.call),
            }
            for each in found.alone
        ],
        "hidden": [vars(each) for each in found.hidden],
        "notes": list(found.notes),
        "ignored": dict(found.passed.ignored),
        "folders": [{"a": one, "b": other} for one, other in found.passed.folders],
        "timings": [vars(each) for each in found.timings],
    }


def _answers(each: AnswersApart) -> Record:
    first = each.a or each.b
    assert first is not None
    return {
        "explainer": first.explainer,
        "subject": list(first.case.subject),
        **{name: one and _answer(one) for name, one in (("a", each.a), ("b", each.b))},
    }


def _answer(one: Explanation[Any]) -> Record:
    causes = [finding.cause.name for finding in one.findings]
    return {"answer": answer(one), "causes": causes}


def _trace(trace: ReadableTrace, path: str, problems: list[str]) -> Record:
    return {
        "file": path,
        "program": trace.header["target"]["program"],
        "started": trace.header["started"],
        "recipe": trace.header["recipe"].get("name"),
        "problems": problems,
    }


def _pair(pair: Pair) -> Record:
    return {
        "api": pair.a.root.name,
        "arguments": texts(pair.a),
        "calls": [{"a": one, "b": other} for one, other in pair.calls],
        "equal": pair.equal,
        "says": sentence(pair),
        "explained": pair.explained
        and {side: _explained(each) for side, each in zip("ab", pair.explained)},
        "steps": [vars(each) for each in pair.steps],
        "differences": [_difference(each) for each in pair.differences],
    }


def _explained(explanation: Explanation[DiskCase]) -> Record:
    return {
        "answer": answer(explanation),
        "numbers": {each.number: each.answer.value for each in explanation.lineages} or None,
        "causes": [each.cause.name for each in explanation.findings],
    }


def _difference(difference: Difference) -> Record:
    return {
        "kind": difference.kind,
        **vars(difference.place),
        "path": difference.path,
        "a": difference.a,
        "b": difference.b,
    }
