"""The answer about many hosts as a JSON document; docs/fleet.md describes it."""

from __future__ import annotations

from typing import TypedDict

from virtrace.fleet.compare import Difference, Fleet, parts
from virtrace.fleet.facts import PART, SHAPE
from virtrace.trace.document import DocumentFormat
from virtrace.trace.format import Count, Record, TextOrNull

FORMAT = "virtrace-fleet"
VERSION = 1


class FileRecord(TypedDict):
    """A file, and what is to be said of it."""

    file: str
    why: str


class GroupRecord(TypedDict):
    """The files that have one value of a trait. says: a sentence of the first of them."""

    value: str
    files: list[str]
    says: TextOrNull


class TraitRecord(TypedDict):
    """A trait, with the groups of its values: of a few files first."""

    trait: str
    groups: list[GroupRecord]


class DifferenceRecord(TypedDict):
    """What some files have and most have not. usual: what most have; null if it is this one.

    lacks, has: of an answer of QEMU, its members beside the usual one.
    """

    trait: str
    value: str
    usual: TextOrNull
    says: TextOrNull
    lacks: list[str]
    has: list[str]


class AlsoRecord(DifferenceRecord):
    """What all of the files have, and fewer than half of the others. others: how many of those."""

    others: Count


class OddRecord(TypedDict):
    """Files that differ from the others in the same."""

    files: list[str]
    differs: list[DifferenceRecord]
    also: list[AlsoRecord]


class SpreadRecord(TypedDict):
    """How numbers of one name are spread. unit: ``bytes``, ``ns`` or empty."""

    name: str
    unit: str
    count: Count
    least: int
    median: int
    most: int
    least_in: str
    most_in: str


class FleetRecord(TypedDict):
    """The document. files: number of those that were read, by kind."""

    format: str
    version: int
    files: dict[str, Count]
    odd: list[OddRecord]
    traits: list[TraitRecord]
    numbers: list[SpreadRecord]
    silent: list[FileRecord]
    incomplete: list[FileRecord]
    left_out: list[FileRecord]


def schema() -> Record:
    """Return the JSON Schema (2020-12) of the document, which is kept as schema.json."""
    document = DocumentFormat(FORMAT, "answer about many hosts", VERSION, FleetRecord, 0)
    return document.schema("What many files say of their hosts")


def fleet_record(fleet: Fleet) -> Record:
    """Return the document."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "files": fleet.kinds,
        "odd": [
            {
                "files": list(each.files),
                "differs": [_difference(one) for one in each.differs],
                "also": [{**_difference(one), "others": others} for one, others in each.also],
            }
            for each in fleet.odd
        ],
        "traits": [
            {"trait": trait, "groups": [{**vars(each), "files": list(each.files)} for each in all_]}
            for trait, all_ in fleet.traits.items()
        ],
        "numbers": [vars(each) for each in fleet.spreads],
        **{
            name: [{"file": file, "why": why} for file, why in files]
            for name, files in (
                ("silent", fleet.silent),
                ("incomplete", fleet.incomplete),
                ("left_out", fleet.left_out),
            )
        },
    }


def _difference(one: Difference) -> Record:
    lacks: list[str] = []
    has: list[str] = []
    if one.trait.startswith(SHAPE) and one.usual is not None:
        lacks, has = parts(one.value, one.usual)
    shown = {name: None if text is None else text.replace(PART, " ")
             for name, text in (("value", one.value), ("usual", one.usual))}  # fmt: skip
    return {"trait": one.trait, **shown, "says": one.says, "lacks": lacks, "has": has}
