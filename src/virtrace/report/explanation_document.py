"""Explanations as one JSON document, for scripts; see docs/explain.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virtrace import resources
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Case, Explanation, Finding
from virtrace.analysis.explain.trace import Explained, SeenCalls
from virtrace.analysis.lineage import Lineage, Origin
from virtrace.analysis.source_lines import Seen
from virtrace.report.explanation import answer, fill_text
from virtrace.report.pieces import plain
from virtrace.trace.format import Record
from virtrace.trace.reader import ReadableTrace

FORMAT = "virtrace-explanation"
VERSION = 2


def explanation_schema() -> Record:
    """Return the JSON Schema (2020-12) of the document."""
    file = Path(__file__).with_name("explanation.schema.json")
    document: Record = json.loads(resources.text(file))
    return document


def explanation_json(trace: ReadableTrace, explanations: Explained[Any]) -> str:
    """Return the document as text."""
    cases = [json.dumps(explanation_record(each)) for each in explanations]
    program = json.dumps(trace.header["target"]["program"])
    return (
        f'{{"format": "{FORMAT}", "version": {VERSION},\n'
        f'"program": {program},\n'
        f'"cases": [\n{",".join(cases)}\n],\n'
        f'"seen": {json.dumps([_seen_calls(each) for each in explanations.seen])},\n'
        f'"more_cases": {explanations.more}, "more_calls": {explanations.more_calls},\n'
        f'"problems": {json.dumps(trace.problems)}}}'
    )


def explanation_record(explanation: Explanation[Any]) -> Record:
    """Return one of the document's ``cases``."""
    case = explanation.case
    return {
        "explainer": explanation.explainer,
        "subject": list(case.subject),
        "calls": explanation.calls,
        "answer": answer(explanation),
        "facts": [each._asdict() for each in case.facts],
        "causes": [_finding(each, case) for each in explanation.findings],
        **(_disk(explanation, case) if isinstance(case, DiskCase) else {}),
    }


def _disk(explanation: Explanation[Any], case: DiskCase) -> Record:
    block = case.block
    return {
        "domain": block.domain,
        "disk": block.disk,
        "running": block.running,
        "numbers": {each.number: each.answer.value for each in explanation.lineages} or None,
        "lineage": [_lineage(each) for each in explanation.lineages],
        "devices": list(dict.fromkeys(device.name for device in block.devices)),
        "device_by": block.chosen_by,
    }


def _finding(finding: Finding, case: Case) -> Record:
    cause = finding.cause
    return {
        "name": cause.name,
        "possible": finding.possible,
        "says": fill_text(cause.says, case),
        "means": fill_text(cause.means, case),
        "evidence": [each._asdict() for each in finding.evidence],
        "do": [
            {"command": fill_text(command, case, command=True), "shows": shows}
            for command, shows in cause.do
        ],
        "versions": cause.versions,
        "links": [{"name": name, "url": url} for name, url in cause.links],
    }


def _seen_calls(row: SeenCalls) -> Record:
    return {**vars(row), "error": None if row.error is None else plain(row.error)}


def _lineage(lineage: Lineage) -> Record:
    return {
        "number": lineage.number,
        "rule": {
            "text": lineage.rule.text,
            "seen": sorted({seq for seen in lineage.rule.seen for seq in seen.events}),
            "lines": [_seen(each) for each in lineage.rule.seen],
        },
        "answer": _step(lineage.answer),
    }


def _seen(seen: Seen) -> Record:
    return {
        "old": seen.old,
        "new": seen.now.value,
        "file": seen.after.file,
        "after": seen.after.number,
        "before": seen.before.number if seen.before else None,
        "text": seen.after.text,
        "seq": seen.now.seq,
        "path": seen.now.path,
    }


def _step(step: Origin) -> Record:
    return {**step._asdict(), "sources": [_step(source) for source in step.sources]}
