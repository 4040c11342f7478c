"""The report of `virtrace doctor` as a JSON document; docs/fleet.md describes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO, Optional, TypedDict

from virtrace import __version__
from virtrace.record.check import Section
from virtrace.trace.document import DocumentFormat, begins_as
from virtrace.trace.format import Program, Record, TextOrNull

FORMAT = "virtrace-doctor"
VERSION = 1
# Of a file, bytes: a report of a hundred daemons is smaller.
_LARGEST = 16 << 20
ProgramOrNull = Optional[Program]


class CheckRecord(TypedDict):
    """The result of one check. kind: ``ok``, ``note`` or ``problem``; remedy: what to do."""

    kind: str
    text: str
    remedy: TextOrNull


class SectionRecord(TypedDict):
    """The checks of one thing.

    reach: what a trace would show; null if that is not known. program: of a daemon. levels: by
    the name of a probe, by which means it was found.
    """

    title: str
    checks: list[CheckRecord]
    reach: TextOrNull
    program: ProgramOrNull
    levels: dict[str, str]


class DoctorReport(TypedDict):
    """type: ``doctor``. works: whether tracing works there. answer: in a sentence."""

    type: str
    format: str
    version: int
    virtrace: str
    kernel: str
    works: bool
    answer: str
    sections: list[SectionRecord]


def report(works: bool, answer: str, sections: Sequence[Section]) -> DoctorReport:
    """Return the document of what was checked."""
    return {
        "type": "doctor",
        "format": FORMAT,
        "version": VERSION,
        "virtrace": __version__,
        "kernel": os.uname().release,
        "works": works,
        "answer": answer,
        "sections": [_section(each) for each in sections],
    }


def _section(section: Section) -> SectionRecord:
    plan = section.plan
    return {
        "title": section.title,
        "checks": [
            {"kind": each.kind, "text": each.text, "remedy": each.remedy} for each in section.checks
        ],
        "reach": section.reach,
        "program": plan["target"]["program"] if plan else None,
        "levels": {probe["name"]: probe["level"] for probe in plan["probes"]} if plan else {},
    }


def is_report(file: BinaryIO) -> bool:
    """Whether a file begins like a report."""
    return begins_as("doctor", file)


_DOCUMENT = DocumentFormat(FORMAT, "report of doctor", VERSION, DoctorReport, _LARGEST)


def schema() -> Record:
    """Return the JSON Schema (2020-12) of a report, which is kept as schema.json."""
    return _DOCUMENT.schema("A report of virtrace doctor")


def read_report(file: BinaryIO, path: str) -> DoctorReport:
    """Read a report, which may be a stranger's. Raises: TraceError if it is damaged."""
    report: DoctorReport = _DOCUMENT.parse(file.read(_LARGEST + 1), path)
    return report
